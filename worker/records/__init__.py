"""Input formats: a record's bytes -> a batch's arrays; one module per format, imported when a pipeline uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from worker.batch import Columns, Feed, Headers
from worker.errors import ConfigError
from worker.model.signature import Signature
from worker.registry import INPUT_FORMATS
from worker.settings import LimitsSettings, PipelineSettings

if TYPE_CHECKING:
    from worker.schema_registry.book import Schemas

ReadId = Callable[[bytes, Headers | None], str | None]
"""Reads the id inside the value of a record, given its headers; None if it has none or cannot be read."""


class Decoder(Protocol):
    """Bytes -> arrays, for one pipeline. Several pool threads call it at once, on different rows."""

    fixed: bool
    """True: fills ``feed.arrays[name][row]``; False: fills ``feed.items[row]``."""
    shard_rows: int
    """Rows per decode task; 0 = never split a batch, because decoding holds the interpreter lock."""

    free_bytes: int
    """Records up to this many bytes cost nothing; ``cost`` is called for longer ones only."""

    def cost(self, value: bytes) -> int:
        """Bytes of memory that reading a record needs, besides the record itself and the tensors of one item.

        The loop's thread calls it before the record is decoded, so it only reads a file's header or counts characters.

        Raises:
            Reject: the header shows that the record cannot be decoded, or it needs more than the whole budget.
        """
        ...

    # A decoder may also have ``cost_of_length(nbytes)``, for records that are wrapped; else it is taken for parsing JSON.

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        """Decode rows ``start..stop``; the rejection of a refused row goes to ``feed.rejected[row]``.

        Args:
            payloads: the bytes to decode, by row: ``columns.values``, or bytes made from them.
            columns: the records as they were read; decoders read their headers.
        """
        ...


class InputFormat(Protocol):
    """An entry of ``worker.registry.INPUT_FORMATS``: a class of :class:`Decoder`."""

    contents: tuple[str, ...]
    """The contents that it can hold; a format without any carries the model's tensors themselves."""
    has_fields: bool
    """Whether a record has named fields, which ``input.fields`` and ``from`` name. A format whose records may have an id
    inside also has a static method ``request_id``, a :data:`ReadId`."""

    takes_missing: bool
    """Whether ``input.missing`` applies to it, because it reads numbers from text. A format whose records are read with the
    help of headers has their names (lower case) in ``reads_headers``."""

    def __call__(
        self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings
    ) -> Decoder: ...


class FramedFormat(Protocol):
    """An entry whose records name their schema, which has ``needs_schemas = True``."""

    def __call__(
        self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings, schemas: Schemas
    ) -> Decoder: ...


def decoder(
    settings: PipelineSettings, signature: Signature, limits: LimitsSettings, schemas: Schemas | None = None
) -> Decoder:
    """The decoder of a pipeline's input format.

    Args:
        schemas: of the schema registry; None where there is none.

    Raises:
        ConfigError: format, preprocessing and the model's inputs cannot go together.
    """
    from worker.records.fields import check_inputs  # that module needs the contents, which need this package

    check_inputs(settings, signature)
    if settings.input.window is not None:
        return _windowed(settings, signature, limits)
    entry = INPUT_FORMATS.entry(settings.input.format)
    if not getattr(entry, "needs_schemas", False):
        return entry(settings, signature, limits)
    if schemas is None:
        raise ConfigError(f"input.format: {settings.input.format} needs registry: {{url: ...}}")
    return cast("FramedFormat", entry)(settings, signature, limits, schemas)


def _windowed(settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> Decoder:
    """The decoder of windows over records."""
    from worker.records.windowed import WindowedDecoder, sample_signature

    window = settings.input.window
    assert window is not None
    if getattr(INPUT_FORMATS.entry(settings.input.format), "needs_schemas", False):
        raise ConfigError(f"input.window: does not go with input.format {settings.input.format}")
    inner = sample_signature(signature, window.size)
    samples = INPUT_FORMATS.entry(settings.input.format)(settings, inner, limits)
    if not samples.fixed or samples.shard_rows:
        raise ConfigError(
            "input.window: each record is one sample of numbers, decoded on the loop's thread; pictures and other files "
            "are too slow for that"
        )
    return WindowedDecoder(samples, signature, inner.inputs[0], window.size)


def id_reader(input_format: str) -> ReadId | None:
    """The function that reads the id inside an undecoded record; None if the input format has no such id."""
    reader: ReadId | None = getattr(INPUT_FORMATS.entry(input_format), "request_id", None)
    return reader
