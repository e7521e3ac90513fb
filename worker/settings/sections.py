"""What a user may set, section by section, declared once: names, kinds, defaults and what they mean.

This file is long because it is a table: each setting that no component owns, with its description, in the order of a
configuration file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from worker.filesystem import is_dir, is_file
from worker.registry import CONTENTS, INPUT_FORMATS, PAYLOAD_FILTERS, POSTPROCESSES
from worker.settings.choice import INLINE, ChoiceOf, Chosen
from worker.settings.encryption import EncryptionSettings
from worker.settings.kinds import (
    MIB,
    Body,
    CustomClass,
    File,
    Filters,
    Given,
    HostAndPort,
    InputFormat,
    Missing,
    Names,
    OutputFormat,
    Pixels,
    Positive,
    Providers,
    Seconds,
    Sha256,
    Text,
    Topic,
    Topics,
    Wait,
    from_file,
)
from worker.settings.labels import LabelsSettings
from worker.settings.origins import Origins
from worker.settings.record_tests import TestSettings
from worker.settings.references import labels_of
from worker.settings.repository import Place, SignatureSettings
from worker.settings.rollout import ControlSettings, RolloutSettings
from worker.settings.schema_registry import RegistrySettings
from worker.settings.section import ContentSettings, Section
from worker.settings.stores import OffloadSettings, ReferenceSettings, StoreOptions, redacted
from worker.settings.stores import secrets as store_secrets
from worker.settings.tracing import TracingSettings
from worker.settings.yaml_text import dotted
from worker.topics import Topics as TopicNames

S = TypeVar("S", bound=Section)
T = TypeVar("T")
CONTENT = ChoiceOf(CONTENTS, "ContentSettings", "What a source holds.")
POSTPROCESS = ChoiceOf(
    POSTPROCESSES,
    "PostprocessSettings",
    "From the model's outputs to a prediction: exactly one of these, or custom code `module:attribute` "
    "`f({output name: array of one item}) -> JSON-able`; nothing is `raw`.",
    default="raw",
)


class FieldSettings(Section):
    """One field that may be absent."""

    from_: Text = Field(alias="from")
    """The field's name or dotted path."""
    default: Given | None = None
    """What counts if the field is absent or null."""


def _distinct_fields(fields: list[str | FieldSettings]) -> list[str | FieldSettings]:
    names = [each if isinstance(each, str) else each.from_ for each in fields]
    if not names or len(set(names)) != len(names):
        raise ValueError("expected at least one entry and none of them twice")
    return fields


Fields = Annotated[list[Text | FieldSettings], AfterValidator(_distinct_fields)]


class EverySettings(Section):
    """Answer some of the records only."""

    every: Annotated[int, Field(ge=2)]
    """Of each key's records (without a key: of a partition's) every n-th is answered, the first one included."""


class WindowSettings(Section):
    """Records are single samples; the model takes windows of them."""

    by: Text = "key"
    """What samples of one series have in common: `key` for the record's key, or a field's name or dotted path."""
    size: Annotated[int, Field(ge=1, le=100_000)]
    """Samples in one window: the first dimension of an item of the model's input."""
    hop: Positive | None = None
    """Samples from the beginning of one window to that of the next; default: `size`, at most `size`."""
    keys: Annotated[int, Field(ge=1, le=1_200)] = 1_000
    """Most series of one partition with an incomplete window; a record that would begin one more is invalid."""
    within: Annotated[int, Field(ge=1, le=2_000_000)] = 1_000_000
    """A window that is incomplete so many offsets after its first record is given up: its series begins anew."""

    @model_validator(mode="after")
    def _hops_within(self) -> WindowSettings:
        if self.hop is not None and self.hop > self.size:
            raise ValueError(f"expected hop of at most size, {self.size}")
        return self


class InputSettings(Section):
    """Where records come from and what they are."""

    topics: Topics
    """Topics to read; `^cam-.*` stands for every topic whose whole name matches, also for those that are made later."""
    format: InputFormat
    """What a record's value is, or custom code `f(value: bytes, headers) -> {tensor name: array of one item}`."""
    max_bytes: Positive = 8 * MIB
    """A larger record is a dead letter, undecoded."""
    unwrap: Filters | None = None
    """What is taken off a value before it is read, in this order; without it a header `content-encoding: gzip | zstd` is followed. Custom code: `f(value: bytes, headers) -> bytes`."""
    max_unwrapped_bytes: Positive | None = None
    """A value that is larger than this unwrapped is a dead letter; default: four times max_bytes."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a new consumer group begins."""
    keep: Literal["all", "latest"] | EverySettings = "all"
    """latest: of the records of one key (without a key: of a partition) that wait in this worker, only the newest is answered; every: one of so many. The others are dropped and counted."""
    tombstone: Literal["pass", "drop", "reject"] = "pass"
    """A record without a value: pass it on under the same key, drop it, or make it a dead letter."""
    fields: Fields | None = None
    """Formats with fields: these, by name or dotted path, in this order, instead of "features"; `{from: user.age, default: 0}` gives one a default."""
    missing: Missing = "reject"
    """json and oip: what stands for a number that is null, NaN or a named field that is not there; `nan` also takes infinities."""
    reference: ReferenceSettings | None = None
    """The record names an object in a store, and the object is decoded in place of the record's value."""

    window: WindowSettings | None = None
    """json and tensor: records are single samples of series; each complete window of them is answered."""

    @property
    def names(self) -> TopicNames:
        """What ``topics`` stands for: a topic that a pattern matches is in it."""
        return TopicNames(self.topics)

    @property
    def unwrapped_bytes(self) -> int:
        """Most bytes that a value may have unwrapped."""
        return self.max_unwrapped_bytes or 4 * self.max_bytes

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names or paths of ``fields``, in their order."""
        return tuple(each if isinstance(each, str) else each.from_ for each in self.fields or ())

    @property
    def field_defaults(self) -> dict[str, Any]:
        """The defaults of ``fields``, by name or path."""
        return {
            each.from_: each.default
            for each in self.fields or ()
            if isinstance(each, FieldSettings) and each.default is not None
        }


class WhenSettings(Section):
    """Which records of a shared topic a pipeline takes."""

    header: Text
    """Name of the record header to look at, matched without case; the last one of that name counts."""
    equals: str
    """The header's value, compared as UTF-8 bytes."""


class _FromContent(Section):
    """A section that may hold the name of one content (picture, numbers, ...) with its options, beside keys of its own."""

    content: Annotated[Chosen | None, CONTENT] = Field(default=None, alias="<content>")
    """What the source holds, by the content's own name; default: what the input format takes for granted."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if key in CONTENTS and value is not None}
        for name in [*given]:
            for held in getattr(CONTENTS.entry(name), "holds", ()):
                if held in given and isinstance(given[name], dict):
                    given[name] = {**given[name], held: given.pop(held)}
        return {key: value for key, value in data.items() if key not in CONTENTS} | {INLINE: given}

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        content = plain.pop(INLINE, None) or plain.pop("content", None)
        return plain | (content or {})

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        section = handler.resolve_ref_schema(found)
        del section["properties"][INLINE]
        section["properties"] |= CONTENT.properties()
        return found

    def options(self, kind: type[S]) -> S | None:
        """The content's options where it is of this kind."""
        return self.content.options if self.content and isinstance(self.content.options, kind) else None


class TensorInput(_FromContent):
    """Where one model input comes from."""

    from_: Text | None = Field(alias="from")
    """`value` for the record's value, or the name or dotted path of one of its fields (`user.age`, `items[0].price`); none beside `constant`."""
    default: Given | None = None
    """What counts if the field is absent or null: one value, or one for each element."""

    @model_validator(mode="before")
    @classmethod
    def _placeless(cls, data: Any) -> Any:
        """A content that reads nothing of a record has no ``from``."""
        if not isinstance(data, dict):
            return data
        name = next((key for key in data if key in CONTENTS and _is_placeless(key)), None)
        if name is None:
            if "from" in data and data["from"] is None:
                return {key: value for key, value in data.items() if key != "from"}
            return data
        if data.get("from") is not None or data.get("default") is not None:
            raise ValueError(f"expected {name} alone, without from and default")
        return {**data, "from": None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = super().__get_pydantic_json_schema__(schema, handler)
        section = handler.resolve_ref_schema(found)
        del section["required"]
        placeless = [name for name in CONTENTS if _is_placeless(name)]
        section["anyOf"] = [{"required": [key]} for key in ("from", *placeless)]
        return found


def _is_placeless(content: str) -> bool:
    return bool(getattr(CONTENTS.entry(content), "placeless", False))


class PreprocessSettings(_FromContent):
    """From a decoded record to the model's inputs."""

    inputs: dict[Text, TensorInput] = Field(default={})
    """Per model input where it comes from; a content alone is enough for a model with one input."""

    @property
    def contents(self) -> list[Chosen]:
        """Every content that is named, for the only input or for several."""
        sources = [self, *self.inputs.values()]
        return [source.content for source in sources if source.content is not None]

    @property
    def one_shape(self) -> bool:
        """Whether every input is made to fit a shape given here, whatever shapes the model would take."""
        found = self.contents
        return len(found) == max(1, len(self.inputs)) and all(
            isinstance(content.options, ContentSettings) and content.options.one_shape for content in found
        )

    @property
    def sizes(self) -> list[int]:
        """Lengths that free dimensions of the model's inputs are known to take."""
        found = (content.options for content in self.contents)
        return [size for options in found if isinstance(options, ContentSettings) for size in options.sizes]


def _distinct(devices: list[int]) -> list[int]:
    if len(set(devices)) != len(devices):
        raise ValueError("expected no number twice")
    return devices


class ModelSettings(Section):
    """The ONNX model and how it runs."""

    path: File | None = None
    """The .onnx file, or a folder in Hugging Face's layout: model.onnx with tokenizer.json, config.json (names of classes) and 1_Pooling/config.json; relative to the configuration file. Required without repository."""
    repository: Place | None = None
    """A folder with <name>/<version>/model.onnx, or the beginning of URLs of such a folder in a store (s3://, gs://, az://), or a model of an MLflow registry (mlflow:models:/name@alias), instead of path: a new version is answered from without a restart."""
    store_options: StoreOptions = Field(default={})
    """How to reach the repository's store; as `input.reference.options`."""
    cache: File | None = None
    """Folder for copies of versions from a store; processes of one machine share it. Default: streaminfer in $XDG_CACHE_HOME or ~/.cache."""
    cache_bytes: Positive = 10_737_418_240
    """Most bytes of all copies there; those that nobody uses make room for new ones."""
    signature: SignatureSettings | None = None
    """With repository: refuse every version without a valid signature."""
    swap_bytes: Positive | Literal["auto"] = "auto"
    """With repository: memory that a new version takes beside the one that answers; auto: what the first load took, in proportion to the sizes of the files."""
    code: CustomClass | None = None
    """Custom code in place of an ONNX model: `module:Class` with `load(path)` and `forward(items) -> list`. The path is then any file or folder, and a version in a repository is any folder."""
    poll_s: Wait = 10.0
    """How often the repository is looked at."""
    golden: File | None = None
    """Records with expected predictions, one JSON object per line: a version that answers otherwise is refused. Default: golden.jsonl in the version's folder, where it is there."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-3
    """Largest difference between a number of a prediction and the golden one."""
    name: Text | None = None
    """Name in results, and the model's folder in a repository; default: the pipeline's key under pipelines, else the top-level name, else the file's stem."""
    version: Text | None = None
    """With path: version in results; default: the first 8 hex digits of the SHA-256 over the file and its external data. With repository: latest (the default), a version, or an alias of aliases.yaml."""
    sha256: Sha256 | None = None
    """When given it must match."""
    shapes: dict[
        Text, Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)]
    ] = Field(default={})
    """Per model input the shapes of an item's tensor, its batch dimension included, that the model is tried and warmed with, such as [[1, 576]]; default: likely lengths for free dimensions."""
    providers: Providers = Field(default=["cpu"])
    """Execution providers in order; every one named must be in use, except a trailing cpu."""
    state: dict[Text, Text] = Field(default={})
    """Of a recurrent model, input: output that fills it: the items of one record run in order, from zeros on."""
    threads: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Threads of the process's one pool; 0 = everything on the main loop's thread."""
    instances: Positive | Literal["auto"] = "auto"
    """Model runs at once; auto: as many as threads on a CPU, 1 on a GPU. With devices: on each of them."""
    devices: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)] | None
    ) = None
    """Numbers of the GPUs, among the visible ones, that each run the whole model; default: the first."""

    @model_validator(mode="before")
    @classmethod
    def _from_registry(cls, data: Any) -> Any:
        """A path in a registry of MLflow is a repository: it has versions, and somebody must copy them here."""
        if (
            isinstance(data, dict)
            and str(data.get("path")).startswith("mlflow:")
            and not data.get("repository")
        ):
            return {**data, "path": None, "repository": data["path"]}
        return data

    @property
    def file(self) -> Path:
        """The .onnx file. Of a model in a repository only known once a version was found."""
        assert self.path is not None, "the version of a repository is found first"
        if self.folder is None:
            return self.path  # of custom code: a file, or a folder of any layout
        places = (self.folder / "model.onnx", self.folder / "onnx" / "model.onnx")
        return next((place for place in places if is_file(place)), self.path)

    @property
    def folder(self) -> Path | None:
        """The folder in Hugging Face's layout, if the path is one."""
        if self.path is None or self.code is not None:
            return None
        return self.path if is_dir(self.path) else None


class BatchingSettings(Section):
    """How many items run together."""

    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = 64
    """Upper bound of a batch in items; auto measures at start."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """Longest wait of a batch for company, from its first record taken while a slot is free; less where waiting saves little CPU."""


_STEP_NAME = r"^[A-Za-z_][A-Za-z0-9_-]*$"


def _step_name(name: str) -> str:
    if not re.fullmatch(_STEP_NAME, name):
        raise ValueError("expected letters, digits, _ and -, and no digit first")
    return name


def _words(value: Any) -> Any:
    """One value or a list of values as a list of texts."""
    values = value if isinstance(value, list) else [value]
    return [str(each).lower() if isinstance(each, bool) else each for each in values]


class CreateSettings(Section):
    """How topics that are missing are made."""

    partitions: Positive
    """Partitions of a topic that is created."""
    replication: Annotated[int, Field(ge=-1)] = -1
    """Copies of each partition; -1 = the broker's default."""


class CloudEventsSettings(Section):
    """Results as CloudEvents in binary mode."""

    source: Text
    """`ce_source` of every result, a URI reference such as /my/worker."""
    type: Text
    """`ce_type` of every result; with `.error` behind it where the record was refused or expired."""


class CacheSettings(Section):
    """Answers that are kept in memory for equal payloads."""

    bytes: Positive = 64 * MIB
    """Bound of what is kept, in each process; what was not used for longest goes first."""
    ttl_s: Seconds | None = None
    """Seconds after which an answer does not count any more; unset: it does not age."""


class DriftSettings(Section):
    """With what records and answers are compared."""

    profile: File
    """The file that `streaminfer profile` has written for this pipeline."""
    window_s: Annotated[float, Field(ge=1, le=7 * 86400)] = 600.0
    """Seconds of the last records that are compared; longer than what repeats by itself, such as the shifts of a day."""


_FILE_PROPERTIES = (".location", ".keytab", ".file")
"""How the names of client properties end whose values are files (or ``probe``: look in the usual places)."""


_OTHER_NAMES = {
    "metadata.broker.list": "bootstrap.servers",
    "sasl.mechanism": "sasl.mechanisms",
    "sasl.oauthbearer.client.credentials.client.id": "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.credentials.client.secret": "sasl.oauthbearer.client.secret",
    "auto.commit.enable": "enable.auto.commit",
    "fetch.message.max.bytes": "max.partition.fetch.bytes",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "queue.buffering.max.ms": "linger.ms",
    "message.send.max.retries": "retries",
    "compression.codec": "compression.type",
    "request.required.acks": "acks",
    "delivery.timeout.ms": "message.timeout.ms",
}
"""librdkafka's alias of a property -> the name used here (see "Alias for" in its CONFIGURATION.md). If both are set,
librdkafka uses the last one, so an alias could bypass every check of the other name."""


def with_own_names(properties: Mapping[str, T]) -> dict[str, T]:
    """Client properties by the names that the worker uses."""
    return {_OTHER_NAMES.get(name, name): value for name, value in properties.items()}


def aliases(name: str) -> list[str]:
    """Other names of a client property."""
    return [other for other, own in _OTHER_NAMES.items() if own == name]


def _as_properties(properties: Any, info: ValidationInfo) -> Any:
    """librdkafka takes text: true -> "true". Nothing = not set; a list or mapping is a mistake, never shown."""
    if not isinstance(properties, dict):
        return properties
    texts: dict[str, str] = {}
    for given, value in properties.items():
        name = _OTHER_NAMES.get(str(given), str(given))
        if name != str(given) and properties.get(name) is not None:
            raise ValueError(f"expected only one of {name} and {given}, which are one property")
        if isinstance(value, dict | list):
            kind = "mapping" if isinstance(value, dict) else "list"
            raise ValueError(
                f"the property {dotted([str(given)])} is a {kind}, expected one value, such as group.id: digits"
            )
        if name.endswith(_FILE_PROPERTIES) and value not in ("probe", "", None):
            texts[name] = str(from_file(Path(str(value)), info))
        elif value is not None:
            texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


class OutputSettings(Section):
    """Where results go and what they are."""

    topic: Topic
    """Topic for results."""
    format: OutputFormat = "json"
    """What a result's value is; all but json go with postprocess raw only."""
    partition: Literal["key", "input"] = "key"
    """key: as Java clients do, without a key by the input partition; input: the input partition's number."""
    headers: Literal["none", "trace", "all"] | Names = "trace"
    """Which headers of the record its result carries; trace: traceparent and tracestate."""
    errors: bool = False
    """Whether a rejected request also gets an error on the output topic."""
    copy_: Names | None = Field(default=None, alias="copy")
    """json only: fields of the record, by name or dotted path, that its result has under `fields`; null where the record lacks one."""
    body: Body | None = None
    """json only: a body of one's own instead of the result: names, each with a dotted path into the result (`prediction.label`, `source.offset`) or into the record's fields (`ticket_id`, or `record.id`), or with a mapping of such names."""
    wrap: Filters | None = None
    """What is put around a result, in this order; header `content-encoding` says so. Custom code: `f(value: bytes) -> bytes`."""
    cloudevents: CloudEventsSettings | None = None
    """Results are CloudEvents in binary mode with this source and type; off unless given."""
    offload: OffloadSettings | None = None
    """Write large results to a store, and send a small one that names the object."""
    create: CreateSettings | None = None
    """Create missing output, dead-letter and metrics topics; without it they must exist."""
    kafka: (
        Annotated[
            dict[str, str],
            BeforeValidator(_as_properties),
            WithJsonSchema(
                {
                    "type": "object",
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                    "required": ["bootstrap.servers"],
                }
            ),
        ]
        | None
    ) = None
    """Client properties of another cluster to which results go, by their librdkafka names; at least once only. Everything else stays on the cluster of `kafka`."""


def _raw() -> Chosen:
    return Chosen("raw", POSTPROCESSES.entry("raw").settings())


class ConditionSettings(Section):
    """A condition on one field of an earlier step's prediction; all that is given must hold."""

    below: float | None = None
    """The number is smaller than this, or it is null: a class that is not sure of anything has no score."""
    above: float | None = None
    """The number is larger than this."""
    equals: Annotated[list[Text], BeforeValidator(_words)] | None = None
    """The value is this one, or one of these: a text, a number, true or false."""

    @model_validator(mode="after")
    def _says_something(self) -> ConditionSettings:
        if self.below is None and self.above is None and self.equals is None:
            raise ValueError("expected below, above or equals")
        return self


class TurnSettings(Section):
    """Crops that an earlier step over the same boxes says are turned, such as lines of text on their head."""

    step: Text
    """The earlier step, whose prediction has a label."""
    label: Text = "180"
    """The label of crops that are turned."""
    degrees: Literal["90", "180", "270"] = "180"
    """By how much, clockwise."""
    above: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only crops whose label has a score above this."""


class StepBatchingSettings(Section):
    """How many items of one step run together."""

    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"]
    """Upper bound of a run in items."""


class StepSettings(Section):
    """One model of several that answer a record."""

    name: Annotated[
        str, AfterValidator(_step_name), WithJsonSchema({"type": "string", "pattern": _STEP_NAME})
    ]
    """Its name in results, metrics and dead letters."""
    from_: Text = Field(default="record", alias="from")
    """What it is given: `record`; `<step>.boxes`, a crop of the picture for each box of an earlier step; or `<step>.<field>` of an earlier step's prediction."""
    when: dict[Text, ConditionSettings] = Field(default={})
    """`<step>.<field>: {below | above | equals: ...}`: it runs only where all of these hold."""
    turn: TurnSettings | None = None
    """With `<step>.boxes`: crops that an earlier step says are turned are turned upright first."""
    preprocess: PreprocessSettings = PreprocessSettings()
    model: ModelSettings
    batching: StepBatchingSettings | None = None
    """Default: the pipeline's."""
    postprocess: Annotated[Chosen, POSTPROCESS] = Field(default_factory=_raw)

    @property
    def source(self) -> tuple[str, str] | None:
        """The earlier step that it is given something of, and what; None = the record."""
        if self.from_ == "record":
            return None
        step, _, field = self.from_.partition(".")
        return step, field

    @property
    def over_boxes(self) -> bool:
        """Whether its items are crops of an earlier step's boxes."""
        return self.source is not None and self.source[1] in ("boxes", "regions")


class PipelineSettings(Section):
    """From records of some topics through one model, or several, to an output topic."""

    input: InputSettings
    when: WhenSettings | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    """9 goes first: whose slab is closed, and for whom a free thread works. One that waits behind more important ones still has 1 of 20 turns. Pipelines that share a topic are taken in together, with the highest of their priorities."""
    preprocess: PreprocessSettings = PreprocessSettings()
    model: ModelSettings = ModelSettings()
    batching: BatchingSettings = BatchingSettings()
    postprocess: Annotated[Chosen, POSTPROCESS] = Field(default_factory=_raw)
    steps: Annotated[list[StepSettings], Field(min_length=1)] | None = None
    """Several models for one record, in place of preprocess, model and postprocess: each may be given what earlier ones found."""
    output: OutputSettings
    cache: CacheSettings | None = None
    """Answer a payload equal to an earlier one from memory, with `"cached": true` in the result; off unless given, `{}` takes the defaults."""
    rollout: RolloutSettings | None = None
    """How a new version of the model is tried; needs control."""
    drift: DriftSettings | None = None
    """Compare records and answers with those of a profile; off unless given."""

    @property
    def parts(self) -> dict[str, PipelineSettings]:
        """What has one model each, by the prefix of its settings: this pipeline, or each of its steps as one of its own."""
        if self.steps is None:
            return {"": self}
        return {f"steps.{index}.": self._as_pipeline(step) for index, step in enumerate(self.steps)}

    def _as_pipeline(self, step: StepSettings) -> PipelineSettings:
        changed: dict[str, Any] = {
            "steps": None,
            "cache": None,
            "drift": None,
            "preprocess": step.preprocess,
            "model": step.model,
            "postprocess": step.postprocess,
        }
        if step.batching is not None:
            changed["batching"] = self.batching.model_copy(update={"max_size": step.batching.max_size})
        if step.source is not None:
            texts = any(content.name == "text" for content in step.preprocess.contents)
            format_ = "image" if step.over_boxes else "text" if texts else "json"
            changed["input"] = InputSettings(
                topics=self.input.topics, format=format_, max_bytes=self.input.max_bytes
            )
        return self.model_copy(update=changed)

    @property
    def label_file(self) -> Path | None:
        """The file of the postprocess's labels, where it has one."""
        found = getattr(self.postprocess.options, "labels", None)
        return found if isinstance(found, Path) else None

    @property
    def labels(self) -> list[str] | None:
        """The labels that the postprocess is given: of its file, or the list itself; None if it is given none.

        Raises:
            ConfigError: the file cannot be read.
        """
        found = getattr(self.postprocess.options, "labels", None)
        if isinstance(found, Path):
            return labels_of(found)
        return found if isinstance(found, list) else None

    @property
    def custom_unwrap(self) -> bool:
        """Whether the user's own Python unwraps records."""
        return any(each not in PAYLOAD_FILTERS for each in self.input.unwrap or ())

    @property
    def custom_wrap(self) -> bool:
        """Whether the user's own Python wraps results."""
        return any(each not in PAYLOAD_FILTERS for each in self.output.wrap or ())

    @property
    def custom_code(self) -> bool:
        """Whether the user's own Python runs for each record."""
        custom = any(part.postprocess.code or part.model.code for part in self.parts.values())
        return custom or self.input.format not in INPUT_FORMATS or self.custom_unwrap or self.custom_wrap


class StopAfterSettings(Section):
    """When the worker stops instead of draining a topic into the dead-letter topic."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of dead letters among the records counted."""
    of_last: Positive = 1000
    """How many of the last records are counted."""


class DeadLetterSettings(Section):
    """Where records go that cannot be answered."""

    topic: Topic
    """Topic for dead letters."""
    stop_after: StopAfterSettings | Literal["off"] = StopAfterSettings()
    """When the worker stops because too many records are bad; off: never."""
    max_crashes: Positive = 3
    """The attempt at which a record becomes a dead letter, undecoded: each one before it killed the process."""


def _bearer_token(token: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("expected at least one character, all of them printable ASCII without blanks")
    return token


def _host_name(name: str) -> str:
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", name):
        raise ValueError(
            'expected a host name without a port, such as "worker.example.com" or "*.example.com"'
        )
    return name.lower()


class TlsSettings(Section):
    """The certificate of `metrics.http`; both files are read again when they change."""

    certificate: File
    """PEM file of the certificate, followed by those of its issuers."""
    key: File
    """PEM file of its private key, without a password."""


class MetricsSettings(Section):
    """What the worker says about itself."""

    topic: Topic | None = None
    """Topic for the metrics record of each interval; none unless named."""
    interval_s: Seconds = 5.0
    """Seconds between two metrics records."""
    http: HostAndPort | None = None
    """host:port for the page, Prometheus and health; off unless given, port 0 takes a free one."""
    token: Annotated[str, AfterValidator(_bearer_token)] | None = Field(default=None, repr=False)
    """Bearer token that every request but a probe must carry, as `${ENV}`; none unless given."""
    hosts: list[Annotated[Text, AfterValidator(_host_name)]] = Field(default=[], max_length=100)
    """Names under which browsers and Prometheus reach `metrics.http`, beside localhost, addresses and this machine's own name; `*.example.com` stands for every name below."""
    tls: TlsSettings | None = None
    """Makes `metrics.http` speak HTTPS."""


class PageSettings(Section):
    """What the page of `metrics.http` shows beside numbers."""

    samples: Annotated[int, Field(ge=0, le=50)] = 0
    """How many of the last results are shown, with their picture and boxes; 0 = none. Not together with `encryption`."""


class LogSettings(Section):
    """What goes into the log."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The lowest level shown; the environment variable `LOG_LEVEL` goes before it."""


class LimitsSettings(Section):
    """Bounds on memory and time."""

    in_flight_bytes: Positive = 256 * MIB
    """Payloads, batch tensors, decode scratch and finished results not yet with the producer, together."""
    prefetch_bytes: Positive = 16 * MIB
    """Records fetched from the broker ahead of their turn."""
    output_bytes: Positive = 64 * MIB
    """Encoded results until the broker acknowledged them."""
    image_pixels: Pixels = 40_000_000
    """Width times height; a larger image is a dead letter, undecoded."""
    batch_timeout_s: Seconds = 60.0
    """A batch that takes longer ends the process."""
    stall_s: Seconds = 60.0
    """No progress for this long ends the process."""
    retry_s: Wait = 20.0
    """Time for which custom code may have a record tried again (`worker.Retry`), 0 = not at all; at most three quarters of stall_s."""
    outage_s: Seconds | None = None
    """No broker, or no schema registry that records wait for, reachable for this long ends the process with exit code 5. Unset: an outage is waited out, however long."""
    drain_s: Wait = 25.0
    """Time to finish what was taken after SIGTERM."""
    revoke_s: Wait = 10.0
    """Time to finish what was taken from a partition that goes to another worker."""
    max_age_ms: Positive | None = None
    """A record older than this (by its timestamp) is expired."""
    expired: Literal["dead_letter", "drop", "publish"] = "dead_letter"
    """What becomes of an expired record."""


class TransactionSettings(Section):
    """How long a transaction of `delivery: exactly_once` grows: the first bound that is reached commits it."""

    max_ms: Positive = 100
    """Milliseconds from its first output to its commit: what a read_committed reader waits at most on top."""
    max_records: Positive = 50_000
    """Records in one transaction."""


class SecuritySettings(Section):
    """What the worker refuses unless told otherwise."""

    allow_plaintext: bool = False
    """Allow SASL PLAIN over an unencrypted connection to another host."""


class Settings(Section):
    """A worker's configuration."""

    name: Text
    """Prefix of client.id; default: the stem of the first model's file, or its name in a repository."""
    pipelines: Annotated[dict[Text, PipelineSettings], Field(min_length=1)]
    """Pipelines by name, tried in order; a single one may stand at the top of the file instead."""
    dead_letter: DeadLetterSettings
    metrics: MetricsSettings = MetricsSettings()
    page: PageSettings = PageSettings()
    labels: LabelsSettings | None = None
    """Where labels come that `streaminfer score` compares with results; the worker itself does not read them."""
    tracing: TracingSettings | None = None
    """Spans of sampled records for OpenTelemetry; none unless given, `{}` takes what the environment says."""
    control: ControlSettings | None = None
    """Where it is written which version of each repository's model answers."""
    delivery: Literal["at_least_once", "exactly_once", "queue"] = "at_least_once"
    """exactly_once: results, dead letters and offsets are one transaction; queue (preview): at least once from a share group, with more workers than partitions and without order."""
    transaction: TransactionSettings = TransactionSettings()
    order: Literal["partition", "none"] = "partition"
    """partition: results of one partition keep their order; none trades that for tail latency."""
    limits: LimitsSettings = LimitsSettings()
    log: LogSettings = LogSettings()
    kafka: Annotated[
        dict[str, str],
        BeforeValidator(_as_properties),
        WithJsonSchema(
            {
                "type": "object",
                "additionalProperties": {"type": ["string", "number", "boolean"]},
                "required": ["bootstrap.servers", "group.id"],
            }
        ),
    ]
    """Kafka client properties by their librdkafka names."""
    security: SecuritySettings = SecuritySettings()
    encryption: EncryptionSettings | None = None
    """Keys of encrypted payloads; needed where `input.unwrap` or `output.wrap` has aes-256-gcm."""
    registry: RegistrySettings | None = None
    """The schema registry of the formats avro, protobuf and json_schema."""
    tests: list[TestSettings] = Field(default=[])
    """Records with what is expected of their answers: `streaminfer test` sends them through the pipelines, `run` does not look at them."""
    _base: Path = PrivateAttr(default_factory=Path)
    _origins: Origins = PrivateAttr(default_factory=Origins)

    @model_validator(mode="after")
    def _nothing_encrypted_is_shown(self) -> Any:
        if self.page.samples and self.encryption is not None:
            raise ValueError(
                f"page.samples is {self.page.samples}, expected 0 with encryption: samples would show what is encrypted"
            )
        return self

    @property
    def base(self) -> Path:
        """The folder of the configuration file, where relative paths begin."""
        return self._base

    @property
    def origins(self) -> Origins:
        """Where each setting comes from; nothing is known of settings that were read of no file."""
        return self._origins

    def key(self, pipeline: str, name: str) -> str:
        """``output.topic`` of a pipeline as its user most likely wrote it."""
        return name if len(self.pipelines) == 1 else dotted(["pipelines", pipeline, name])

    def custom_code(self) -> Iterator[tuple[str, str]]:
        """Every setting that names custom code, with its ``module:attribute``."""
        for name, pipeline in self.pipelines.items():
            if pipeline.input.format not in INPUT_FORMATS:
                yield self.key(name, "input.format"), pipeline.input.format
            for setting, filters in (
                ("input.unwrap", pipeline.input.unwrap),
                ("output.wrap", pipeline.output.wrap),
            ):
                for each in filters or ():
                    if each not in PAYLOAD_FILTERS:
                        yield self.key(name, setting), each
            for prefix, part in pipeline.parts.items():
                if part.model.code is not None:
                    yield self.key(name, f"{prefix}model.code"), part.model.code
                if part.postprocess.code:
                    yield self.key(name, f"{prefix}postprocess"), part.postprocess.code

    def label_files(self) -> Iterator[tuple[str, Path]]:
        """Every setting that names a file of labels or characters, one per line, with its path."""
        parts = (
            (self.key(name, f"{prefix}postprocess"), part.postprocess)
            for name, pipeline in self.pipelines.items()
            for prefix, part in pipeline.parts.items()
        )
        for key, chosen in parts:
            for setting in ("labels", "alphabet"):
                path = getattr(chosen.options, setting, None)
                if isinstance(path, Path):
                    yield f"{key}.{chosen.name}.{setting}", path

    def largest_record(self) -> int:
        """Bytes of the largest record any pipeline takes."""
        return max(pipeline.input.max_bytes for pipeline in self.pipelines.values())

    def redacted(self) -> dict[str, Any]:
        """Everything as plain data, secrets replaced: fit for logs."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        plain["kafka"] = {
            name: "[redacted]" if is_secret(name) else value for name, value in plain["kafka"].items()
        }
        if self.metrics.token is not None:
            plain["metrics"]["token"] = "[redacted]"
        if self.encryption is not None:
            plain["encryption"] = self.encryption.redacted()
        for pipeline in plain["pipelines"].values():
            if pipeline["output"].get("kafka"):
                pipeline["output"]["kafka"] = {
                    name: "[redacted]" if is_secret(name) else value
                    for name, value in pipeline["output"]["kafka"].items()
                }
            for section in (pipeline["input"].get("reference"), pipeline["output"].get("offload")):
                if section is not None:
                    section["options"] = redacted(section["options"])
            for part in (pipeline, *(pipeline["steps"] or ())):
                if part["model"] is not None:
                    part["model"]["store_options"] = redacted(part["model"]["store_options"])
        if self.registry is not None:
            plain["registry"] = self.registry.redacted()
        return plain

    def secrets(self) -> list[str]:
        """The secret values themselves, longest first: what a log line must never contain.

        Names are left out: they are often everyday words, and blanking those would make every line unreadable.
        """
        values = {
            part
            for properties in (self.kafka, *(each.output.kafka or {} for each in self.pipelines.values()))
            for name, value in properties.items()
            if is_secret(name) and name not in _NAMES
            for part in (value, *value.splitlines())
            if part.strip()
        }
        if self.metrics.token is not None:
            values.add(self.metrics.token)
        if self.encryption is not None:
            values.update(self.encryption.secrets())
        for pipeline in self.pipelines.values():
            for section in (pipeline.input.reference, pipeline.output.offload):
                values.update(store_secrets(section.options) if section is not None else ())
            for part in pipeline.parts.values():
                values.update(store_secrets(part.model.store_options))
        values |= self.registry.secrets() if self.registry is not None else set()
        return sorted(values, key=len, reverse=True)


_PUBLIC_SASL = {
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.kerberos.service.name",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.oauthbearer.method",
}


_NAMES = {
    "sasl.username",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.grant.type",
}
"""Properties that configurations do not show, although what they name is no secret by itself."""


def is_secret(name: str) -> bool:
    """Whether a Kafka client property must never be shown."""
    if name.startswith("sasl."):
        return name not in _PUBLIC_SASL
    return "password" in name or "secret" in name or name in ("ssl.key.pem", "ssl_key")
