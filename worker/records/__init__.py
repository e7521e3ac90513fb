"""Input formats: a record's bytes -> a batch's arrays; one module per format, imported when a pipeline asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from worker.batch import Columns, Feed, Headers
from worker.errors import ConfigError
from worker.model.signature import Signature
from worker.registry import INPUT_FORMATS
from worker.settings import LimitsSettings, PipelineSettings

ReadId = Callable[[bytes, Headers | None], str | None]
"""The id inside the value of a record, given its headers; None where it has none or cannot be read."""


class Decoder(Protocol):
    """Bytes -> arrays, for one pipeline. Called from pool threads, on different rows side by side."""

    fixed: bool
    """True: fills ``feed.arrays[name][row]``; False: fills ``feed.items[row]``."""
    shard_rows: int
    """Rows per decode task; 0 = never split a batch, because decoding holds the GIL anyway."""

    free_bytes: int
    """Records up to this length cost nothing; ``cost`` is asked for longer ones only."""

    def cost(self, value: bytes) -> int:
        """Bytes of memory that reading a record takes on top of its own and of one item's tensors.

        Asked on the loop's thread, before the record is decoded: it looks at the header of a file, or counts.

        Raises:
            Reject: the header already says that the record cannot be decoded, or it takes more than there is.
        """
        ...

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        """Decode rows ``start..stop``; what is wrong with a row goes to ``feed.rejected[row]``.

        Args:
            payloads: the bytes to decode, by row: ``columns.values``, or what was made of them.
            columns: the records as they came; decoders read their headers.
        """
        ...


class InputFormat(Protocol):
    """An entry of ``worker.registry.INPUT_FORMATS``: a class of :class:`Decoder`."""

    contents: tuple[str, ...]
    """Which contents it can hold; a format without any carries the model's tensors themselves."""
    has_fields: bool
    """Whether a record has named fields, which ``input.fields`` and ``from`` name. A format whose records may have an id
    inside also has a static method ``request_id``, a :data:`ReadId`."""

    takes_missing: bool
    """Whether ``input.missing`` has a meaning for it: it reads numbers from text."""

    def __call__(
        self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings
    ) -> Decoder: ...


def decoder(settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> Decoder:
    """The decoder of a pipeline's input format.

    Raises:
        ConfigError: format, preprocessing and the model's inputs cannot go together.
    """
    _check_inputs(settings, signature)
    return INPUT_FORMATS.entry(settings.input.format)(settings, signature, limits)


def id_reader(input_format: str) -> ReadId | None:
    """Reads the id inside a record that was not decoded; None where the input format has no such thing."""
    reader: ReadId | None = getattr(INPUT_FORMATS.entry(input_format), "request_id", None)
    return reader


def _check_inputs(settings: PipelineSettings, signature: Signature) -> None:
    """``preprocess.inputs``, where given, names every model input and nothing else."""
    given, names = settings.preprocess.inputs, [spec.name for spec in signature.inputs]
    if given and set(given) != set(names):
        odd = next((name for name in given if name not in names), None)
        missing = next((name for name in names if name not in given), None)
        problem = f"{odd} is no input of the model" if odd else f"{missing} is missing"
        raise ConfigError(f"preprocess.inputs: {problem}; expected exactly {', '.join(names)}")
