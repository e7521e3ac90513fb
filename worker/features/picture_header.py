"""What a picture says about itself before it is decoded: format and size; and whether a decoder may have it.

A few kilobytes can decode to gigabytes, so width and height are read here, without a decoder, first. Decoders are
lenient: where data end early they fill the picture up, so the end is looked for here too, and so is what makes them
take minutes or gigabytes for a small picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from worker.errors import Reject

Kind = Literal["jpeg", "progressive_jpeg", "png", "webp", "animation"]

_JPEG_END = 0xD9
_JPEG_SCAN = 0xDA
# Encoders write about 10. One of 60 bytes costs as much time as the whole picture.
_JPEG_SCANS_MAX = 100
# What ends a scan's data: a marker other than a restart, a stuffed zero or a fill byte.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# What a decoder gets to see of a PNG is its still picture. libpng unpacks text, up to 8 MB of each of 1,000 chunks;
# OpenCV's reader of animations can end the process (opencv/opencv issue 27744).
_PNG_LEFT_OUT = frozenset((b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT"))
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
    position: int = 0
    """JPEG: where its start of frame is."""


class _Chunk(NamedTuple):
    """One chunk of a PNG file: bytes ``start..end``, its length and checksum included."""

    name: bytes
    start: int
    end: int


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


def decodable(value: bytes, header: ImageHeader) -> bytes:
    """The file as a decoder may have it: whole, and without what costs much and shows nothing.

    Raises:
        Reject: ``undecodable``: the file's own end is not there, or only after more scans than a picture needs.
    """
    if header.kind in ("jpeg", "progressive_jpeg"):
        whole = _jpeg_ends(value, header.position)
    elif value.startswith(b"RIFF"):
        whole = len(value) >= 8 + int.from_bytes(value[4:8], "little")
    else:
        chunks = list(_png_chunks(value))
        whole = any(chunk.name == b"IEND" for chunk in chunks)
        if any(chunk.name in _PNG_LEFT_OUT for chunk in chunks):
            kept = (value[c.start : c.end] for c in chunks if c.name not in _PNG_LEFT_OUT)
            value = value[:8] + b"".join(kept)
    if not whole:
        raise Reject("the image ends early", "undecodable")
    return value


def _jpeg_ends(value: bytes, position: int) -> bool:
    """Walk the segments and scans from the start of frame to the end of image.

    Two bytes that look like the end turn up in any noise: only an end that the walk arrives at counts.
    """
    end, scans = len(value) - 1, 0
    while position < end and value[position] == 0xFF:
        marker = value[position + 1]
        if marker == _JPEG_END:
            return True
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(value[position + 2 : position + 4], "big")
            if marker == _JPEG_SCAN:
                scans += 1
                if scans > _JPEG_SCANS_MAX:
                    raise Reject(f"a JPEG image of more than {_JPEG_SCANS_MAX} scans", "undecodable")
                found = _JPEG_SCAN_END.search(value, position)
                position = found.start() if found else end
    return False


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
            return ImageHeader(kind, width, height, position)
        else:
            position += 2 + (value[position + 2] << 8 | value[position + 3])
    raise Reject("a JPEG image whose header is broken or ends early", "undecodable")


def _png(value: bytes) -> ImageHeader:
    if len(value) < 33 or value[12:16] != b"IHDR":
        raise Reject("a PNG image whose header is broken or ends early", "undecodable")
    width, height = int.from_bytes(value[16:20], "big"), int.from_bytes(value[20:24], "big")
    return ImageHeader("png", width, height)


def _png_chunks(value: bytes) -> Iterator[_Chunk]:
    """The chunks up to the first one that says it is longer than the file.

    Such a chunk must never reach OpenCV: it allocates, and fills, as much as the chunk says before it looks whether
    the data are there, up to 4 GB for a file of a kilobyte.
    """
    position, size = 8, len(value)
    while (end := position + 12 + int.from_bytes(value[position : position + 4], "big")) <= size:
        yield _Chunk(value[position + 4 : position + 8], position, end)
        position = end


def _webp(value: bytes) -> ImageHeader:
    """The first chunk of the RIFF container: lossy, lossless, or extended with a canvas size."""
    if len(value) < 30:
        raise Reject("a WebP image whose header ends early", "undecodable")
    chunk = value[12:16]
    if chunk == b"VP8 " and value[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(value[26:28], "little"), int.from_bytes(value[28:30], "little")
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
    if chunk == b"VP8L" and value[20] == 0x2F:
        bits = int.from_bytes(value[21:25], "little")
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8X":
        width, height = int.from_bytes(value[24:27], "little"), int.from_bytes(value[27:30], "little")
        kind: Kind = "animation" if value[20] & 2 else "webp"
        return ImageHeader(kind, width + 1, height + 1)
    raise Reject("a WebP image whose header is broken", "undecodable")
