"""What a picture says about itself before it is decoded: format, size, and whether its end is there.

A few kilobytes can decode to gigabytes, so width and height are read here, without a decoder, first.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from worker.errors import Reject

Kind = Literal["jpeg", "progressive_jpeg", "png", "webp", "animation"]

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
# Start-of-frame markers of the JPEG processes (C4, C8 and CC in between are something else).
_BASELINE_FRAMES = frozenset((0xC0, 0xC1))
_PROGRESSIVE_FRAMES = frozenset((0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
# Markers without a length: TEM, RST0-7 and SOI.
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))


class ImageHeader(NamedTuple):
    """Kind of file, and pixels as stored (before any orientation is applied)."""

    kind: Kind
    width: int
    height: int
    complete: bool
    """Whether the file's own end is there; decoders are lenient about the last bytes."""


def peek(value: bytes) -> ImageHeader:
    """The header of a JPEG, PNG or WebP file.

    Raises:
        Reject: ``undecodable``: another format, or the header itself is broken or cut short.
    """
    if value.startswith(b"\xff\xd8\xff"):
        return _jpeg(value)
    if value.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(value)
    if value[:4] == b"RIFF" and value[8:12] == b"WEBP":
        return _webp(value)
    raise Reject("not a JPEG, PNG or WebP image", "undecodable")


def _jpeg(value: bytes) -> ImageHeader:
    """Walk the segments to the start of frame: marker, length, precision, height, width."""
    position, end = 2, len(value) - 8
    while position < end:
        if value[position] != 0xFF:
            break
        marker = value[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _BASELINE_FRAMES or marker in _PROGRESSIVE_FRAMES:
            height = value[position + 5] << 8 | value[position + 6]
            width = value[position + 7] << 8 | value[position + 8]
            kind: Kind = "jpeg" if marker in _BASELINE_FRAMES else "progressive_jpeg"
            return ImageHeader(kind, width, height, value.rfind(_JPEG_END) > position)
        else:
            position += 2 + (value[position + 2] << 8 | value[position + 3])
    raise Reject("a JPEG image whose header is broken or ends early", "undecodable")


def _png(value: bytes) -> ImageHeader:
    if len(value) < 33 or value[12:16] != b"IHDR":
        raise Reject("a PNG image whose header is broken or ends early", "undecodable")
    width, height = int.from_bytes(value[16:20], "big"), int.from_bytes(value[20:24], "big")
    kind: Kind = "animation" if value[37:41] == b"acTL" else "png"
    return ImageHeader(kind, width, height, value.rfind(_PNG_END) > 0)


def _webp(value: bytes) -> ImageHeader:
    """The first chunk of the RIFF container: lossy, lossless, or extended with a canvas size."""
    if len(value) < 30:
        raise Reject("a WebP image whose header ends early", "undecodable")
    chunk = value[12:16]
    complete = len(value) >= 8 + int.from_bytes(value[4:8], "little")
    if chunk == b"VP8 " and value[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(value[26:28], "little"), int.from_bytes(value[28:30], "little")
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF, complete)
    if chunk == b"VP8L" and value[20] == 0x2F:
        bits = int.from_bytes(value[21:25], "little")
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, complete)
    if chunk == b"VP8X":
        width, height = int.from_bytes(value[24:27], "little"), int.from_bytes(value[27:30], "little")
        kind: Kind = "animation" if value[20] & 2 else "webp"
        return ImageHeader(kind, width + 1, height + 1, complete)
    raise Reject("a WebP image whose header is broken", "undecodable")
