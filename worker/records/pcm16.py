"""Raw sound: a record is 16-bit PCM samples without any header."""

from __future__ import annotations

import struct
from typing import Annotated, ClassVar

from pydantic import Field

from worker.errors import Reject
from worker.features.sound import Rate
from worker.features.sound_header import CHANNELS_MAX
from worker.model.signature import Signature
from worker.records.audio import AudioDecoder
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.choice import Named
from worker.settings.section import Section

_PCM = 1
_HEADER_BYTES = 44


class Pcm16Settings(Section):
    """What raw samples do not say of themselves."""

    rate: Rate
    """Samples per second of each channel."""
    channels: Annotated[int, Field(ge=1, le=CHANNELS_MAX)] = 1
    """How many channels there are; their samples alternate."""


class Pcm16Decoder(AudioDecoder):
    """One sound per record: signed 16-bit little-endian samples without a header; `{pcm16: {rate: 16000, channels: 1}}`."""

    settings: ClassVar[type[Section]] = Pcm16Settings

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        chosen = settings.input.format
        assert isinstance(chosen, Named)
        assert isinstance(chosen.options, Pcm16Settings)
        self._rate, self._channels = chosen.options.rate, chosen.options.channels
        super().__init__(settings, signature, limits)

    def open(self, value: bytes) -> bytes:
        """The samples as a WAV file, which they are once a header stands before them.

        Raises:
            Reject: ``invalid``: part of a sample is missing.
        """
        block = 2 * self._channels
        if len(value) % block:
            raise Reject(
                f"got {len(value)} bytes, expected a multiple of {block}: 16-bit samples of {self._channels} channels"
            )
        form = struct.pack("<HHIIHH", _PCM, self._channels, self._rate, self._rate * block, block, 16)
        size = _HEADER_BYTES - 8 + len(value)
        return (
            struct.pack("<4sI8sI", b"RIFF", size, b"WAVEfmt ", 16)
            + form
            + struct.pack("<4sI", b"data", len(value))
            + value
        )

    def cost(self, value: bytes) -> int:
        return len(value) + super().cost(value)
