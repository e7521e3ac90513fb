"""Text: a record is UTF-8."""

from __future__ import annotations

from worker.errors import ConfigError, Reject
from worker.features import Place
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHARACTER_BYTES = 4
"""A character of a Python string takes at most this, and a record has at most as many characters as bytes."""


class TextDecoder(FieldsDecoder):
    """One text per record, in UTF-8 with or without a byte order mark."""

    contents = ("text", "image", "audio")
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        super().__init__(features_of(settings, signature, limits, "text", _place), signature)

    def open(self, value: bytes) -> str:
        """The record's text.

        Raises:
            Reject: ``undecodable``: not UTF-8.
        """
        try:
            return value.removeprefix(_BYTE_ORDER_MARK).decode()
        except UnicodeDecodeError as error:
            raise Reject(
                f"not UTF-8 text: byte {error.start} is {value[error.start]:#04x}", "undecodable"
            ) from None

    def cost(self, value: bytes) -> int:
        """Bytes that the text and its tokens take; it is read only if it may be a picture in base64."""
        files = super().cost(value) if self.files else self.sized_room(len(value))
        return files + _CHARACTER_BYTES * len(value)


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    if source is not None and source.from_ != "value":
        raise ConfigError(
            f"preprocess: input.format text has no fields, got {source.from_!r}; expected from: value"
        )
    return Place()
