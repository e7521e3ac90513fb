"""What a user may set, section by section, declared once: names, kinds, defaults and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from worker.settings.kinds import (
    FORMATS,
    MIB,
    OWN_CODE,
    OWN_CODE_SCHEMA,
    Divisors,
    File,
    Fraction,
    HostAndPort,
    InputFormat,
    Names,
    Numbers,
    OwnCode,
    Pixels,
    Positive,
    Providers,
    Seconds,
    Sha256,
    Size,
    Text,
    Topic,
    Topics,
    Wait,
    from_file,
)
from worker.settings.source import dotted


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


class InputSettings(_Section):
    """Where records come from and what they are."""

    topics: Topics
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

    @property
    def one_size(self) -> bool:
        """Whether pictures are made to fit sizes given here, whatever the model would take."""
        images = [source.image for source in self.inputs.values()] if self.inputs else [self.image]
        return all(image is not None and image.size is not None for image in images)


class ModelSettings(_Section):
    """The ONNX model and how it runs."""

    path: File
    """The .onnx file; relative to the configuration file."""
    name: Text | None = None
    """Name in results; default: the pipeline's key under pipelines, else the top-level name, else the file's stem."""
    version: Text | None = None
    """Version in results; default: the first 8 hex digits of the SHA-256 over the file and its external data."""
    sha256: Sha256 | None = None
    """When given it must match."""
    providers: Providers = ["cpu"]
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
        OWN_CODE_SCHEMA,
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
    own: OwnCode | None = None
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
            if OWN_CODE.fullmatch(data):
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
    http: HostAndPort | None = None
    """host:port for Prometheus and health; off unless given, port 0 takes a free one."""


class LimitsSettings(_Section):
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
    drain_s: Wait = 25.0
    """Time to finish what was taken after SIGTERM."""
    revoke_s: Wait = 10.0
    """Time to finish what was taken from a partition that goes to another worker."""
    max_age_ms: Positive | None = None
    """A record older than this (by its timestamp) is expired."""
    expired: Literal["dead_letter", "drop", "publish"] = "dead_letter"
    """What becomes of an expired record."""


class TransactionSettings(_Section):
    """How long a transaction of `delivery: exactly_once` grows: the first bound that is reached commits it."""

    max_ms: Positive = 100
    """Milliseconds from its first output to its commit: what a read_committed reader waits at most on top."""
    max_records: Positive = 50_000
    """Records in one transaction."""


class SecuritySettings(_Section):
    """What the worker refuses unless told otherwise."""

    allow_plaintext: bool = False
    """Allow SASL PLAIN over an unencrypted connection to another host."""


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
"""librdkafka's second name of a property -> the one used here (its CONFIGURATION.md, "Alias for"). Of two that are
given it takes the last one set, so that what one of them says could pass by every rule about the other."""


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
            if pipeline.input.format not in FORMATS:
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
