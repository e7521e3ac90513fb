"""What a user may set: declared once, checked before anything starts, emitted as a JSON Schema.

:func:`load` reads a file, :func:`validate` checks a document; both give a frozen :class:`Settings` in which the keys
of a single pipeline at the top of the file have become the one entry of ``pipelines``. What can be known without
the model is checked here; what needs the model's signature asks back through :func:`check_budget`.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from worker.errors import ConfigError, StartError
from worker.settings_source import Key, describe, dotted, read, sentence

MIB = 1 << 20
WORKING_BYTES = 16 * MIB
"""What ``limits.in_flight_bytes`` must hold beside the largest record and one item's tensors."""


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Settings:
    """The settings in the YAML file ``path`` with ``--set`` overrides (``a.b=yaml``) laid over them.

    Raises:
        ConfigError: one sentence that names the file, the key, what was there and what was expected.
    """
    path = Path(path)
    try:
        return validate(read(path, overrides), path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def validate(document: dict[str, Any], base: Path) -> Settings:
    """The settings a parsed document stands for; relative paths start at the directory ``base``.

    Raises:
        ConfigError: one sentence that names the key, what was there and what was expected.
    """
    folded, hidden = _fold(document)
    try:
        settings = Settings.model_validate(folded, context={"base": base.absolute()})
    except ValidationError as error:
        raise ConfigError(sentence(error, folded, _known_keys(at_top=bool(hidden)), hidden)) from None
    _check(settings)
    if any(settings.own_code()):
        for folder in (str(base.absolute()), os.getcwd()):
            if folder not in sys.path:
                sys.path.append(folder)
    return settings


# --- the settings themselves ---------------------------------------------------------------------------------------


class _Section(BaseModel):
    """A mapping of settings: no other keys, nothing there = all defaults, read-only once made."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_all_defaults(cls, data: Any) -> Any:
        return {} if data is None else data


def _topic_name(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) or name in (".", ".."):
        raise ValueError("expected a topic name: 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    return name


def _from_file(path: Path, info: ValidationInfo) -> Path:
    """Relative to the configuration file, whatever the working directory is."""
    return Path(os.path.abspath(info.context["base"] / path)) if info.context else path


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _non_zero(values: list[float]) -> list[float]:
    if 0 in values:
        raise ValueError("expected numbers other than 0, because they are divided by")
    return values


def _size(value: Any) -> Any:
    try:
        height, width = map(int, value)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1 or isinstance(value, str):
        raise ValueError("expected [height, width] in pixels, both at least 1")
    return height, width


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('expected "host:port" with a port from 0 to 65535, such as "127.0.0.1:9464"')
    return address


def _built_in_or_own(*names: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names and not _OWN_CODE.fullmatch(name):
            raise ValueError("expected " + ", ".join([*names, 'or own code as "module:attribute"']))
        return name

    return check


def _sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError("expected 64 hexadecimal digits")
    return digest.lower()


def _distinct(values: list[str]) -> list[str]:
    if not values or len(set(values)) != len(values):
        raise ValueError("expected at least one entry and none of them twice")
    return values


_OWN_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OWN_CODE_SCHEMA = {
    "type": "string",
    "pattern": r"^[\w.]+:[\w.]+$",
    "description": "Own code: module:attribute.",
}
_FORMATS = ("image", "json", "tensor", "npy", "oip")

Text = Annotated[str, Field(min_length=1)]
Topic = Annotated[str, AfterValidator(_topic_name)]
File = Annotated[Path, AfterValidator(_from_file)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[Text], AfterValidator(_distinct)]
Numbers = Annotated[
    list[float],
    BeforeValidator(_one_or_more),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
    ),
    Field(min_length=1),
]
Divisors = Annotated[Numbers, AfterValidator(_non_zero)]
InputFormat = Annotated[
    str,
    AfterValidator(_built_in_or_own(*_FORMATS)),
    WithJsonSchema({"anyOf": [{"enum": list(_FORMATS)}, _OWN_CODE_SCHEMA]}),
]
Size = Annotated[
    tuple[int, int],
    BeforeValidator(_size),
    WithJsonSchema(
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
    ),
]


class InputSettings(_Section):
    """Where records come from and what they are."""

    topics: Annotated[list[Topic], AfterValidator(_distinct)]
    """Topics to read."""
    format: InputFormat
    """What a record's value is, or own code `f(value: bytes, headers) -> {tensor name: array of one item}`."""
    max_bytes: Positive = 8 * MIB
    """A larger record is a dead letter, undecoded."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a new consumer group begins."""
    tombstone: Literal["pass", "drop", "reject"] = "pass"
    """A record without a value: pass it on under the same key, drop it, or make it a dead letter."""
    fields: Names | None = None
    """json only: these fields in this order, instead of "features"."""


class WhenSettings(_Section):
    """Which records of a shared topic a pipeline takes."""

    header: Text
    """Name of the record header to look at; the last one of that name counts."""
    equals: str
    """The header's value, compared as UTF-8 bytes."""


class ImageSettings(_Section):
    """From an encoded picture to a tensor: x = (pixel * scale - mean) / std in the model's own dtype."""

    size: Size | None = None
    """[height, width] in pixels; default: from the model's signature."""
    resize: Literal["stretch", "letterbox", "crop", "none"] = "stretch"
    """How a picture of another size is made to fit."""
    interpolation: Literal["linear", "nearest", "area", "cubic"] = "linear"
    """How pixels are computed when resizing."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channels and their order."""
    layout: Literal["nchw", "nhwc"] | None = None
    """Order of the dimensions; default: from the model's signature."""
    scale: float = 1.0
    """Every pixel is multiplied by this first."""
    mean: Numbers = [0.0]
    """Subtracted after scaling; one number or one per channel."""
    std: Divisors = [1.0]
    """Divided by at last; one number or one per channel."""
    pad_value: Annotated[int, Field(ge=0, le=255)] = 114
    """Pixel value of a letterbox's border."""
    orientation: Literal["exif", "ignore"] = "exif"
    """Whether the camera's orientation tag turns the picture."""


class NumericSettings(_Section):
    """x = (feature - mean) / std in the model's own dtype."""

    mean: Numbers = [0.0]
    """Subtracted; one number or one per feature."""
    std: Divisors = [1.0]
    """Divided by; one number or one per feature."""


class TensorInput(_Section):
    """Where one model input comes from."""

    from_: Text = Field(alias="from")
    """`value` for the record's value, or the name of a field of its JSON."""
    image: ImageSettings | None = None
    """The source is a picture (in JSON: base64 text)."""
    numeric: NumericSettings | None = None
    """The source is numbers."""


class PreprocessSettings(_Section):
    """From a decoded record to the model's inputs."""

    inputs: dict[Text, TensorInput] = {}
    """Per model input where it comes from; `image` or `numeric` alone is enough for a model with one input."""
    image: ImageSettings | None = None
    """For the only input: it is a picture."""
    numeric: NumericSettings | None = None
    """For the only input: it is numbers."""


class ModelSettings(_Section):
    """The ONNX model and how it runs."""

    path: File
    """The .onnx file; relative to the configuration file."""
    name: Text | None = None
    """Name in results; default: the pipeline's key under pipelines, else the top-level name, else the file's stem."""
    version: Text | None = None
    """Version in results; default: the first 8 hex digits of the SHA-256 over the file and its external data."""
    sha256: Annotated[str, AfterValidator(_sha256)] | None = None
    """When given it must match."""
    providers: Annotated[list[Literal["cpu", "cuda", "tensorrt"]], AfterValidator(_distinct)] = ["cpu"]
    """Execution providers in order; every one named must be in use, except a trailing cpu."""
    threads: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Threads of the process's one pool; 0 = everything on the main loop's thread."""
    instances: Positive | Literal["auto"] = "auto"
    """Model runs at once; auto: as many as threads on a CPU, 1 on a GPU."""


class BatchingSettings(_Section):
    """How many items run together."""

    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = 64
    """Upper bound of a batch in items; auto measures at start."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """Longest wait of a batch for company, from its first record taken while a slot is free; less where waiting saves little CPU."""


class ClassificationSettings(_Section):
    """The best classes with their scores."""

    labels: File | None = None
    """Text file with one label per line; relative to the configuration file. Default: class indices."""
    top_k: Positive = 1
    """How many classes to give."""
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    """Applied to the scores first."""
    threshold: float = 0.0
    """A class that scores less is left out."""


class DetectionSettings(_Section):
    """Boxes in pixels of the original image."""

    labels: File | None = None
    """Text file with one label per line; relative to the configuration file. Default: class indices."""
    layout: Literal["yolov8", "xyxy"] = "yolov8"
    """yolov8: [4 + classes, boxes] of centre, size and scores; xyxy: [boxes, 6] of corners, score and class."""
    score: Fraction = 0.25
    """A box that scores less is left out."""
    iou: Fraction = 0.45
    """Of two boxes of one class that overlap more than this, the better one stays."""
    max: Positive = 300
    """Most boxes per image."""


class RegressionSettings(_Section):
    """One number or several."""


class EmbeddingSettings(_Section):
    """A vector."""

    normalize: bool = False
    """Scale it to length 1."""


class RawSettings(_Section):
    """The model's outputs as nested lists."""


_POSTPROCESSORS = ("classification", "detection", "regression", "embedding", "raw")


def _postprocess_schema(schema: dict[str, Any]) -> None:
    """A word for defaults, own code, or a mapping with exactly one entry."""
    mapping = {key: schema.pop(key) for key in ("properties", "type", "additionalProperties")}
    schema["anyOf"] = [
        {"enum": list(_POSTPROCESSORS)},
        _OWN_CODE_SCHEMA,
        {**mapping, "minProperties": 1, "maxProperties": 1},
    ]


class PostprocessSettings(_Section):
    """From the model's outputs to a prediction: exactly one of these; nothing is `raw`."""

    model_config = ConfigDict(json_schema_extra=_postprocess_schema)

    classification: ClassificationSettings | None = None
    detection: DetectionSettings | None = None
    regression: RegressionSettings | None = None
    embedding: EmbeddingSettings | None = None
    raw: RawSettings | None = None
    own: Annotated[str, AfterValidator(_built_in_or_own()), WithJsonSchema(_OWN_CODE_SCHEMA)] | None = None
    """Own code `module:attribute` `f({output name: array of one item}) -> JSON-able`; plain text means the same."""

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_its_defaults(cls, data: Any) -> Any:
        expected = f'expected one of {", ".join(_POSTPROCESSORS)} or own code as "module:attribute"'
        if data is None or data == {}:
            return {"raw": {}}
        if isinstance(data, str):
            if data in _POSTPROCESSORS:
                return {data: {}}
            if _OWN_CODE.fullmatch(data):
                return {"own": data}
            raise ValueError(expected)
        if isinstance(data, dict):
            if len(data) != 1 and set(data) <= set(cls.model_fields):
                raise ValueError(f"got {' and '.join(data)}, expected exactly one of them")
            return {name: {} if options is None else options for name, options in data.items()}
        return data


class CreateSettings(_Section):
    """How topics that are missing are made."""

    partitions: Positive
    """Partitions of a topic that is created."""
    replication: Annotated[int, Field(ge=-1)] = -1
    """Copies of each partition; -1 = the broker's default."""


class OutputSettings(_Section):
    """Where results go and what they are."""

    topic: Topic
    """Topic for results."""
    format: Literal["json", "oip", "tensor", "npy"] = "json"
    """What a result's value is; all but json go with postprocess raw only."""
    partition: Literal["key", "input"] = "key"
    """key: as Java clients do, without a key by the input partition; input: the input partition's number."""
    headers: Literal["none", "trace", "all"] | Names = "trace"
    """Which headers of the record its result carries; trace: traceparent and tracestate."""
    errors: bool = False
    """Whether a rejected request also gets an error on the output topic."""
    create: CreateSettings | None = None
    """Create missing output, dead-letter and metrics topics; without it they must exist."""


class PipelineSettings(_Section):
    """From records of some topics through one model to an output topic."""

    input: InputSettings
    when: WhenSettings | None = None
    preprocess: PreprocessSettings = PreprocessSettings()
    model: ModelSettings
    batching: BatchingSettings = BatchingSettings()
    postprocess: PostprocessSettings = PostprocessSettings(raw=RawSettings())
    output: OutputSettings


class StopAfterSettings(_Section):
    """When the worker stops instead of draining a topic into the dead-letter topic."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of dead letters among the records counted."""
    of_last: Positive = 1000
    """How many of the last records are counted."""


class DeadLetterSettings(_Section):
    """Where records go that cannot be answered."""

    topic: Topic
    """Topic for dead letters."""
    stop_after: StopAfterSettings = StopAfterSettings()
    max_crashes: Positive = 3
    """The attempt at which a record becomes a dead letter, undecoded: each one before it killed the process."""


class MetricsSettings(_Section):
    """What the worker says about itself."""

    topic: Topic | None = None
    """Topic for the metrics record of each interval; none unless named."""
    interval_s: Seconds = 5.0
    """Seconds between two metrics records."""
    http: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """host:port for Prometheus and health; off unless given, port 0 takes a free one."""


class LimitsSettings(_Section):
    """Bounds on memory and time."""

    in_flight_bytes: Positive = 256 * MIB
    """Payloads, batch tensors, decode scratch and finished results not yet with the producer, together."""
    prefetch_bytes: Positive = 16 * MIB
    """Records fetched from the broker ahead of their turn."""
    output_bytes: Positive = 64 * MIB
    """Encoded results until the broker acknowledged them."""
    image_pixels: Positive = 40_000_000
    """Width times height; a larger image is a dead letter, undecoded."""
    batch_timeout_s: Seconds = 60.0
    """A batch that takes longer ends the process."""
    stall_s: Seconds = 60.0
    """No progress for this long ends the process."""
    drain_s: Seconds = 25.0
    """Time to finish what was taken after SIGTERM."""
    revoke_s: Seconds = 10.0
    """Time to finish what was taken from a partition that goes to another worker."""
    max_age_ms: Positive | None = None
    """A record older than this (by its timestamp) is expired."""
    expired: Literal["dead_letter", "drop", "publish"] = "dead_letter"
    """What becomes of an expired record."""


class TransactionSettings(_Section):
    """How long a transaction of `delivery: exactly_once` grows: the first bound that is reached commits it."""

    max_ms: Positive = 100
    """Milliseconds from its first output to its commit: what a read_committed reader waits at most on top."""
    max_records: Positive = 10_000
    """Records in one transaction."""


class SecuritySettings(_Section):
    """What the worker refuses unless told otherwise."""

    allow_plaintext: bool = False
    """Allow SASL PLAIN over an unencrypted connection to another host."""


_FILE_PROPERTIES = (".location", ".keytab", ".file")
"""How the names of client properties end whose values are files (or ``probe``: look in the usual places)."""


def _as_properties(properties: Any, info: ValidationInfo) -> Any:
    """librdkafka takes text: true -> "true". Nothing = not set; a list or mapping is a mistake, never shown."""
    if not isinstance(properties, dict):
        return properties
    texts = {}
    for name, value in properties.items():
        if isinstance(value, dict | list):
            kind = "mapping" if isinstance(value, dict) else "list"
            raise ValueError(
                f"the property {dotted([str(name)])} is a {kind}, expected one value, such as group.id: digits"
            )
        if str(name).endswith(_FILE_PROPERTIES) and value not in ("probe", "", None):
            texts[str(name)] = str(_from_file(Path(str(value)), info))
        elif value is not None:
            texts[str(name)] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


class Settings(_Section):
    """A worker's configuration."""

    name: Text
    """Prefix of client.id; default: the stem of the first model's file."""
    pipelines: Annotated[dict[Text, PipelineSettings], Field(min_length=1)]
    """Pipelines by name, tried in order; a single one may stand at the top of the file instead."""
    dead_letter: DeadLetterSettings
    metrics: MetricsSettings = MetricsSettings()
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """exactly_once: results, dead letters and offsets are one transaction."""
    transaction: TransactionSettings = TransactionSettings()
    order: Literal["partition", "none"] = "partition"
    """partition: results of one partition keep their order; none trades that for tail latency."""
    limits: LimitsSettings = LimitsSettings()
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

    def key(self, pipeline: str, name: str) -> str:
        """``output.topic`` of a pipeline as its user most likely wrote it."""
        return name if len(self.pipelines) == 1 else dotted(["pipelines", pipeline, name])

    def own_code(self) -> Iterator[tuple[str, str]]:
        """Every setting that names own code, with its ``module:attribute``."""
        for name, pipeline in self.pipelines.items():
            if pipeline.input.format not in _FORMATS:
                yield self.key(name, "input.format"), pipeline.input.format
            if pipeline.postprocess.own:
                yield self.key(name, "postprocess"), pipeline.postprocess.own

    def label_files(self) -> Iterator[tuple[str, Path]]:
        """Every setting that names a labels file, with its path."""
        for name, pipeline in self.pipelines.items():
            for kind in ("classification", "detection"):
                options = getattr(pipeline.postprocess, kind)
                if options and options.labels:
                    yield self.key(name, f"postprocess.{kind}.labels"), options.labels

    def largest_record(self) -> int:
        """Bytes of the largest record any pipeline takes."""
        return max(pipeline.input.max_bytes for pipeline in self.pipelines.values())

    def redacted(self) -> dict[str, Any]:
        """Everything as plain data, secrets replaced: fit for logs."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        plain["kafka"] = {
            name: "[redacted]" if is_secret(name) else value for name, value in plain["kafka"].items()
        }
        return plain

    def secrets(self) -> list[str]:
        """The secret values themselves, longest first: what a log line must never contain.

        A user name is left out: it is often an everyday word, and blanking that would make every line unreadable.
        """
        values = {
            part
            for name, value in self.kafka.items()
            if is_secret(name) and name != "sasl.username"
            for part in (value, *value.splitlines())
            if part.strip()
        }
        return sorted(values, key=len, reverse=True)


# --- what goes together --------------------------------------------------------------------------------------------

_REFUSED = {
    "transactional.id": "it is made per process",
    "plugin.library.paths": "it loads code into the worker",
    "sasl.kerberos.kinit.cmd": "it runs a shell command",
    "enable.auto.commit": "offsets are committed when results are acknowledged",
    "enable.auto.offset.store": "offsets are committed when results are acknowledged",
    "partitioner": "output.partition decides the partition",
    "auto.offset.reset": "input.start decides where a new group begins",
}
_PUBLIC_SASL = {
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.kerberos.service.name",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.oauthbearer.method",
}


def is_secret(name: str) -> bool:
    """Whether a Kafka client property must never be shown."""
    if name.startswith("sasl."):
        return name not in _PUBLIC_SASL
    return "password" in name or "secret" in name or name in ("ssl.key.pem", "ssl_key")


def check_budget(settings: Settings, pipeline: str, item_nbytes: int = 0) -> None:
    """Refuse a pipeline whose largest record cannot be worked on within ``limits.in_flight_bytes``.

    Args:
        settings: the worker's settings.
        pipeline: the pipeline's name.
        item_nbytes: bytes of one item's tensors, inputs and outputs, once the model's signature is known.
    """
    max_bytes = settings.pipelines[pipeline].input.max_bytes
    needed = max_bytes + item_nbytes + WORKING_BYTES
    if needed > settings.limits.in_flight_bytes:
        raise ConfigError(
            f"limits.in_flight_bytes: got {settings.limits.in_flight_bytes}, expected at least {needed}: "
            f"{settings.key(pipeline, 'input.max_bytes')} {max_bytes} + one item's tensors {item_nbytes} "
            f"+ {WORKING_BYTES}"
        )


def check_replicas(settings: Settings, replicas: int) -> None:
    """Refuse what several processes cannot share."""
    if replicas > 1 and "group.instance.id" in settings.kafka:
        raise ConfigError(
            f"kafka.group.instance.id: expected none with --replicas {replicas}, "
            "because every process needs one of its own"
        )


def check_model_file(settings: Settings, pipeline: str) -> None:
    """Refuse a model path that is no file.

    Raises:
        StartError: missing, or a directory.
    """
    path = settings.pipelines[pipeline].model.path
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "does not exist"
        raise StartError(f"{settings.key(pipeline, 'model.path')}: {path} {found}; expected an ONNX file")


def labels_of(path: Path, key: str = "labels") -> list[str]:
    """The labels in a text file, one per line; the line number is the class index.

    Args:
        path: the file.
        key: the setting that names it, for the error's sentence.

    Raises:
        ConfigError: missing, a directory, not UTF-8 or empty.
    """
    try:
        labels = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        found = (
            "does not exist"
            if isinstance(error, FileNotFoundError)
            else "is a directory"
            if isinstance(error, IsADirectoryError)
            else "is not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else f"cannot be read ({error})"
        )
        raise ConfigError(f"{key}: {path} {found}; expected a text file with one label per line") from None
    while labels and not labels[-1].strip():
        labels.pop()
    if not labels:
        raise ConfigError(f"{key}: {path} is empty; expected a text file with one label per line")
    return [label.strip() for label in labels]


def import_attribute(name: str) -> Any:
    """What ``module:attribute`` names; modules beside the configuration file are found too.

    Raises:
        ConfigError: the text has another form, the module cannot be imported or has no such attribute.
    """
    if not _OWN_CODE.fullmatch(name):
        raise ConfigError(f'own code: got {describe(name)}, expected "module:attribute"')
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's own code: whatever it raises is the user's to read
        raise ConfigError(
            f"own code {name}: the module cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(f"own code {name}: {module_name} has no attribute {path}")
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError(f"own code {name}: expected something to call, got {type(found).__name__}")
    return found


def plaintext_hosts(settings: Settings) -> list[str]:
    """Bootstrap servers on other hosts that are reached without encryption."""
    if settings.kafka.get("security.protocol", "plaintext").lower() not in ("plaintext", "sasl_plaintext"):
        return []
    servers = settings.kafka["bootstrap.servers"].split(",")
    return [server.strip() for server in servers if not _is_loopback(server.strip())]


def _is_loopback(server: str) -> bool:
    host = server.rpartition("://")[2]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") <= 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check(settings: Settings) -> None:
    """Everything that is about more than one setting and needs no model."""
    _check_kafka(settings)
    _check_topics(settings)
    for name in settings.pipelines:
        _check_pipeline(settings, name)
        check_budget(settings, name)


def _check_kafka(settings: Settings) -> None:
    properties = settings.kafka
    for required in ("bootstrap.servers", "group.id"):
        if not properties.get(required, "").strip():
            raise ConfigError(f"kafka.{required} is required")
    for name in properties:
        reason = "it loads code into the worker" if name.startswith("ssl.engine.") else _REFUSED.get(name)
        if reason:
            raise ConfigError(f"kafka.{name}: expected not to be set, because {reason}")
    mechanism = properties.get("sasl.mechanisms", properties.get("sasl.mechanism", ""))
    over_sasl = properties.get("security.protocol", "").lower() == "sasl_plaintext"
    if over_sasl and mechanism.upper() == "PLAIN" and not settings.security.allow_plaintext:
        for server in plaintext_hosts(settings):
            raise ConfigError(
                f"kafka.security.protocol: SASL PLAIN would send the password to {server} unencrypted; "
                "expected sasl_ssl, or security.allow_plaintext: true"
            )


def _check_topics(settings: Settings) -> None:
    """Nothing the worker writes may be read by it again; pipelines that share a topic start at one place."""
    read_by: dict[str, str] = {}
    for name, pipeline in settings.pipelines.items():
        for topic in pipeline.input.topics:
            first = read_by.setdefault(topic, name)
            if settings.pipelines[first].input.start != pipeline.input.start:
                raise ConfigError(
                    f"pipelines.{name}.input.start: got '{pipeline.input.start}', expected the same as "
                    f"pipelines.{first}.input.start, which reads the topic {topic} too"
                )
    written = {
        settings.key(name, "output.topic"): pipeline.output.topic
        for name, pipeline in settings.pipelines.items()
    }
    written |= {
        "dead_letter.topic": settings.dead_letter.topic,
        "metrics.topic": settings.metrics.topic or "",
    }
    for key, topic in written.items():
        if topic in read_by:
            raise ConfigError(
                f"{key}: got '{topic}', expected a topic that is not in "
                f"{settings.key(read_by[topic], 'input.topics')}"
            )


def _check_pipeline(settings: Settings, name: str) -> None:
    """What one pipeline's formats, preprocessing and postprocessing ask of each other."""
    pipeline = settings.pipelines[name]
    taken, pre, post = pipeline.input.format, pipeline.preprocess, pipeline.postprocess
    if pipeline.input.fields is not None and taken != "json":
        raise ConfigError(
            f"{settings.key(name, 'input.fields')}: goes with input.format json only, got '{taken}'"
        )
    if sum([bool(pre.inputs), pre.image is not None, pre.numeric is not None]) > 1:
        raise ConfigError(
            f"{settings.key(name, 'preprocess')}: expected only one of inputs, image and numeric"
        )
    for tensor, source in pre.inputs.items():
        if source.image is not None and source.numeric is not None:
            key = settings.key(name, f"preprocess.inputs.{tensor}")
            raise ConfigError(f"{key}: expected only one of image and numeric")
    for kind in ("inputs", "image", "numeric"):
        given = getattr(pre, kind) not in (None, {})
        if given and (taken not in ("image", "json") or (taken == "image" and kind == "numeric")):
            raise ConfigError(
                f"{settings.key(name, f'preprocess.{kind}')}: does not go with input.format '{taken}'"
            )
    if pipeline.output.format != "json" and post.raw is None:
        raise ConfigError(
            f"{settings.key(name, 'output.format')}: '{pipeline.output.format}' goes with postprocess raw only; "
            "expected json, or no postprocess"
        )


# --- the document's shape ------------------------------------------------------------------------------------------


def _fold(document: dict[str, Any]) -> tuple[dict[str, Any], Key]:
    """The document with a pipeline at its top moved under ``pipelines``, names filled in.

    Returns it with the leading keys that the user did not write: ``("pipelines", name)`` or nothing.
    """
    folded = dict(document)
    at_top = {key: folded.pop(key) for key in PipelineSettings.model_fields if key in folded}
    if at_top and folded.get("pipelines") is not None:
        raise ConfigError(
            f"{next(iter(at_top))}: expected under pipelines.<name>, because pipelines is there: "
            "a pipeline stands at the top of the file or under pipelines, not both"
        )
    for key in ("dead_letter", "kafka"):
        folded[key] = {} if folded.get(key) is None else folded[key]
    if folded.get("pipelines") is None:
        if folded.get("name") is None:
            folded["name"] = _stem(at_top)
        name = str(folded["name"])
        folded["pipelines"] = {name: at_top}
        hidden: Key = ("pipelines", name)
    else:
        hidden = ()
    if isinstance(folded["pipelines"], dict):
        folded["pipelines"] = {
            str(name): _with_sections(pipeline, str(name)) for name, pipeline in folded["pipelines"].items()
        }
        if folded.get("name") is None:
            folded["name"] = next(map(_stem, folded["pipelines"].values()), "worker")
    return folded, hidden


def _with_sections(pipeline: Any, name: str) -> Any:
    """A pipeline with its required sections there, so that an error names the setting that is missing."""
    if pipeline is None:
        pipeline = {}
    if not isinstance(pipeline, dict):
        return pipeline
    sections = {
        key: {} if pipeline.get(key) is None else pipeline[key] for key in ("input", "model", "output")
    }
    if isinstance(sections["model"], dict) and sections["model"].get("name") is None:
        sections["model"] = {**sections["model"], "name": name}
    return pipeline | sections


def _stem(pipeline: Any) -> str:
    model = pipeline.get("model") if isinstance(pipeline, dict) else None
    path = model.get("path") if isinstance(model, dict) else None
    return Path(str(path or "")).stem or "worker"


def _known_keys(at_top: bool) -> set[Key]:
    """Every setting of one form of the file, with ``*`` for a name of the user's choice."""
    keys = set(_keys_of(Settings))
    if not at_top:
        return keys
    return {key for key in keys if key[0] != "pipelines"} | set(_keys_of(PipelineSettings))


def _keys_of(section: type[BaseModel], parent: Key = ()) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        key = (*parent, field.alias or name)
        yield key
        inner, mapping = _section_in(field.annotation)
        if inner:
            yield from _keys_of(inner, (*key, "*") if mapping else key)


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section inside ``Section``, ``Section | None`` or ``dict[str, Section]``, and whether it is the last."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    arguments = getattr(annotation, "__args__", ())
    found = next((inner for inner in (_section_in(argument)[0] for argument in arguments) if inner), None)
    return found, found is not None and getattr(annotation, "__origin__", None) is dict


def json_schema() -> dict[str, Any]:
    """JSON Schema of the configuration file: pipelines under ``pipelines``, or a single one at the top."""
    schema = Settings.model_json_schema(by_alias=True)
    pipeline = schema["$defs"]["PipelineSettings"]
    at_top = pipeline["properties"]
    shared = [key for key in schema["required"] if key not in ("name", "pipelines")]
    _allow_variables(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streaminfer configuration",
        **{key: schema[key] for key in ("description", "type", "additionalProperties")},
        "properties": schema["properties"] | at_top,
        "required": shared,
        "oneOf": [
            {"required": ["pipelines"], "not": {"anyOf": [{"required": [key]} for key in at_top]}},
            {"required": pipeline["required"], "not": {"required": ["pipelines"]}},
        ],
        "$defs": schema["$defs"]
        | {"Variable": {"type": "string", "pattern": r"\$\{[A-Za-z_]\w*(:-[^}]*)?\}"}},
    }


def _allow_variables(schema: Any) -> None:
    """Let ``${ENV}`` stand wherever a number, a truth value, a list or one of some words is expected."""
    for inner in (
        list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    ):
        _allow_variables(inner)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("title"), str):
        del schema["title"]  # pydantic's: the key again with capitals
    if "anyOf" in schema:
        choices = [choice for outer in schema["anyOf"] for choice in outer.get("anyOf", [outer])]
        schema["anyOf"] = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
    elif schema.get("type") in ("integer", "number", "boolean", "array") or {"enum", "const"} & schema.keys():
        typed = {key: schema.pop(key) for key in list(schema) if key not in ("description", "default")}
        schema["anyOf"] = [typed, {"$ref": "#/$defs/Variable"}]
