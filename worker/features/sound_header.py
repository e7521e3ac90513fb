"""The kind, rate and length of a sound file, read from its headers before anything is decoded.

A few kilobytes of silence decode to hours, so the length is an upper bound known beforehand. Decoders are lenient: a
file that ends early decodes to a shorter sound. So this module also looks whether the data are there that the header
announces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from worker.errors import Reject

Kind = Literal["wav", "flac", "ogg", "mp3"]
OPUS_RATE = 48_000
"""Every Opus stream counts its samples at this rate (RFC 7845, section 4)."""
RATES = range(1_000, 768_001)
CHANNELS_MAX = 256
_STREAMED = 0x7FFF_F000
"""A length of this size or above stands for "until the end": it was written before the length was known."""
_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_FRAMED = frozenset((_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE))
"""WAVE formats in which each block holds one sample per channel."""
_OTHER_FILES = (
    (b"FORM", "an AIFF file"),
    (b".snd", "an AU file"),
    (b"caff", "a CAF file"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska file"),
    (b"#!AMR", "an AMR file"),
    (b"UklGR", "base64 text of a WAV file"),
    (b"data:", "a data URI"),
    (b"\x1f\x8b", "a gzip file"),
)


class SoundHeader(NamedTuple):
    """What a file says of its sound."""

    kind: Kind
    rate: int
    """Samples per second of each channel, as ``frames`` counts them."""
    channels: int
    frames: int | None
    """At most so many samples of each channel; None = the file does not say."""
    pcm: tuple[int, int] | None = None
    """Of 16-bit PCM in a WAV file: where its samples begin and end."""

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.rate


def peek(value: bytes) -> SoundHeader | None:
    """The header of a file; None if it is of a known format, but only a decoder can tell its length.

    Args:
        value: the whole file.

    Raises:
        Reject: ``undecodable``: another format, a broken header, or fewer data than the header announces; ``invalid``:
            a rate or a number of channels that no sound has.
    """
    try:
        found = _peek(value)
    except (struct.error, IndexError):
        raise Reject("a sound file whose header is cut short", "undecodable") from None
    if found is not None:
        check(found.rate, found.channels)
    return found


def check(rate: int, channels: int) -> None:
    """Refuse figures that no sound has.

    Raises:
        Reject: ``invalid``.
    """
    if rate not in RATES:
        raise Reject(f"the sound has {rate} samples per second, expected {RATES.start} to {RATES.stop - 1}")
    if not 1 <= channels <= CHANNELS_MAX:
        raise Reject(f"the sound has {channels} channels, expected 1 to {CHANNELS_MAX}")


def _peek(value: bytes) -> SoundHeader | None:
    start = value[:4]
    if start in (b"RIFF", b"RF64", b"RIFX") and value[8:12] == b"WAVE":
        return _wav(value, ">" if start == b"RIFX" else "<")
    if start == b"fLaC":
        return _flac(value)
    if start == b"OggS":
        return _ogg(value)
    if start[:3] == b"ID3" or (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0):
        return _mp3(value)
    other = next((name for magic, name in _OTHER_FILES if value.startswith(magic)), "something else")
    raise Reject(f"got {other}, expected a WAV, FLAC, OGG or MP3 file", "undecodable")


def _wav(value: bytes, order: str) -> SoundHeader | None:
    """RIFF chunks up to the data. Chunks of other kinds may stand anywhere; an odd one has a byte of padding."""
    form: tuple[int, int, int, int, int, int] | None = None
    wide: int | None = None
    for name, start, size in _chunks(value, order):
        if name == b"fmt ":
            form = struct.unpack_from(f"{order}HHIIHH", value, start)
            if form[0] == _EXTENSIBLE and size >= 26:  # the format proper is the first part of a GUID
                form = (struct.unpack_from(f"{order}H", value, start + 24)[0], *form[1:])
        elif name == b"ds64":
            wide = struct.unpack_from(f"{order}Q", value, start + 8)[0]
        elif name == b"data":
            if form is None:
                raise Reject("a WAV file without a format chunk before its data", "undecodable")
            return _wav_data(value, form, start, wide if wide and size >= _STREAMED else size, order)
    raise Reject("a WAV file without data, or one that ends early", "undecodable")


def _chunks(value: bytes, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, its size) of each chunk."""
    place = 12
    while place + 8 <= len(value):
        size: int = struct.unpack_from(f"{order}I", value, place + 4)[0]
        yield value[place : place + 4], place + 8, size
        place += 8 + size + size % 2


def _wav_data(
    value: bytes, form: tuple[int, int, int, int, int, int], start: int, size: int, order: str
) -> SoundHeader | None:
    tag, channels, rate, _, block, bits = form
    there = len(value) - start
    if size >= _STREAMED or (size == 0 and there):
        size = there
    if size > there:
        raise Reject(
            f"a WAV file that ends early: its header announces {size} bytes of sound, {there} are there",
            "undecodable",
        )
    if tag not in _FRAMED:
        return None
    if not block:
        raise Reject("a WAV file whose samples have no size", "undecodable")
    plain = tag == _PCM and bits == 16 and order == "<" and block == 2 * channels
    frames = size // block
    return SoundHeader("wav", rate, channels, frames, (start, start + frames * block) if plain else None)


def _flac(value: bytes) -> SoundHeader:
    """The STREAMINFO block, which is always the first (RFC 9639, section 8.2)."""
    if len(value) < 42:
        raise Reject("a FLAC file that ends early", "undecodable")
    packed = int.from_bytes(value[18:26], "big")
    frames = packed & 0xF_FFFF_FFFF
    return SoundHeader("flac", packed >> 44, (packed >> 41 & 7) + 1, frames or None)


def _ogg(value: bytes) -> SoundHeader | None:
    """The first page says what it is, the last one how many samples were before its end (RFC 3533, section 6)."""
    head = value[27 + value[26] :][:64]
    last = value.rfind(b"OggS")
    segments = value[last + 26]
    table = value[last + 27 : last + 27 + segments]
    if len(table) < segments or len(value) < last + 27 + segments + sum(table):
        raise Reject("an OGG file that ends early", "undecodable")
    frames = int.from_bytes(value[last + 6 : last + 14], "little", signed=True)
    if frames < 0:
        return None
    if head.startswith(b"\x01vorbis"):
        return SoundHeader("ogg", int.from_bytes(head[12:16], "little"), head[11], frames)
    if head.startswith(b"OpusHead"):
        return SoundHeader("ogg", OPUS_RATE, head[9], frames)
    if head.startswith(b"\x7fFLAC"):
        packed = int.from_bytes(head[27:35], "big")
        return SoundHeader("ogg", packed >> 44, (packed >> 41 & 7) + 1, frames)
    raise Reject("an OGG file with neither Vorbis, Opus nor FLAC inside", "undecodable")


_MP3_RATES = (44_100, 48_000, 32_000)


def _mp3(value: bytes) -> SoundHeader | None:
    """The first frame, which often says how many follow ("Xing" or "Info"); else only a decoder knows."""
    place = 0
    while value[place : place + 3] == b"ID3":
        size = value[place + 6 : place + 10]
        place += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    head = value[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate_index = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 3
    if version == 1 or layer != 1 or rate_index == 3:
        return None  # not the third layer, or no frame at all
    rate = _MP3_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    about = place + 4 + side
    if value[about : about + 4] not in (b"Xing", b"Info") or not value[about + 7] & 1:
        return None
    count = int.from_bytes(value[about + 8 : about + 12], "big")
    nbytes = int.from_bytes(value[about + 12 : about + 16], "big") if value[about + 7] & 2 else 0
    if len(value) - place < nbytes:
        raise Reject(
            f"an MP3 file that ends early: its header announces {nbytes} bytes, {len(value) - place} are there",
            "undecodable",
        )
    return SoundHeader("mp3", rate, 1 if mono else 2, (count + 1) * (1152 if version == 3 else 576))
