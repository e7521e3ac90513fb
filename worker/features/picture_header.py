"""The format and size of a picture, read from its header before it is decoded, and whether it may be decoded.

A few kilobytes can decode to gigabytes, so width and height are read first, without a decoder. Decoders are lenient:
if the data end early, they fill the rest of the picture. So this module also looks for the end of the file, and for
whatever makes a decoder take minutes or gigabytes for a small picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from worker.errors import Reject

Kind = Literal["jpeg", "progressive_jpeg", "png", "webp", "animation"]

_JPEG_END = 0xD9
_JPEG_SCAN = 0xDA
_JPEG_EXIF = 0xE1
# Encoders write about 10. A scan of 60 bytes can take as long to decode as the whole picture.
_JPEG_SCANS_MAX = 100
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
# What ends a scan's data: a marker other than a restart.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# The decoder gets only the still picture of a PNG. libpng unpacks text, up to 8 MB for each of 1,000 chunks; OpenCV's
# reader of animations can crash the process (opencv/opencv issue 27744).
_PNG_LEFT_OUT = frozenset((b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT"))
# Start-of-frame markers of the JPEG processes (C4, C8 and CC in between are something else).
_BASELINE_FRAMES = frozenset((0xC0, 0xC1))
_PROGRESSIVE_FRAMES = frozenset((0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_FRAMES = _BASELINE_FRAMES | _PROGRESSIVE_FRAMES
_LOSSLESS_FRAMES = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
# Markers without a length: TEM, RST0-7 and SOI.
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))

_OTHER_FILES = (
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"\x1f\x8b", "a gzip file"),
    (b"data:image/", "a data URI"),
    (b"iVBORw0KGgo", "base64 text of a PNG image"),
    (b"/9j/", "base64 text of a JPEG image"),
)
_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"hevc": "a HEIC image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
}


class ImageHeader(NamedTuple):
    """Kind of file, and pixels as stored (before any orientation is applied)."""

    kind: Kind
    width: int
    height: int
    position: int = 0
    """JPEG: the position of its start of frame."""
    unusual: str = ""
    """A property, in words, that a decoder may not support."""


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
    other = _name_of(value)
    found = f"{other}; expected a JPEG, PNG or WebP image" if other else "not a JPEG, PNG or WebP image"
    raise Reject(found, "undecodable")


def _name_of(value: bytes) -> str | None:
    """The kind of a file that is no JPEG, PNG or WebP image, if its first bytes show it."""
    if value[4:8] == b"ftyp":
        return _BRANDS.get(value[8:12], "an MP4 or QuickTime file")
    return next((name for start, name in _OTHER_FILES if value.startswith(start)), None)


def decodable(value: bytes, header: ImageHeader) -> bytes:
    """The file as the decoder gets it: complete, without chunks that are expensive to unpack and not visible.

    Raises:
        Reject: ``undecodable``: the file's end is missing, or a JPEG has more scans than a picture needs.
    """
    if header.kind in ("jpeg", "progressive_jpeg"):
        whole = _jpeg_ends(value, header.position)
    elif value.startswith(b"RIFF"):
        whole = len(value) >= 8 + int.from_bytes(value[4:8], "little")
    else:
        chunks = list(png_chunks(value))
        whole = any(chunk.name == b"IEND" for chunk in chunks)
        if any(chunk.name in _PNG_LEFT_OUT for chunk in chunks):
            kept = (value[c.start : c.end] for c in chunks if c.name not in _PNG_LEFT_OUT)
            value = value[:8] + b"".join(kept)
    if not whole:
        raise Reject("the image ends early", "undecodable")
    return value


def _next_marker(value: bytes, position: int, marker: re.Pattern[bytes] = _JPEG_MARKER) -> int:
    """Position of the next marker at or after ``position``; the file's end if there is none.

    As in libjpeg, bytes between segments and fill bytes are skipped, and ``FF 00`` is not a marker.
    """
    found = marker.search(value, position)
    return found.start() if found else len(value)


def _jpeg_ends(value: bytes, position: int) -> bool:
    """Walk the segments and scans from the start of frame to the end of image.

    Two bytes that look like the end also occur by chance inside the data: only an end that the walk reaches counts.
    """
    end, scans = len(value) - 1, 0
    while position < end:
        marker = value[position + 1]
        if value[position] != 0xFF or marker in (0, 0xFF):
            position = _next_marker(value, position)
            continue
        if marker == _JPEG_END:
            return True
        if marker in _BARE_MARKERS:
            position += 2
            continue
        # a length below its own two bytes counts as two
        position += 2 + max(2, int.from_bytes(value[position + 2 : position + 4], "big"))
        if marker == _JPEG_SCAN:
            scans += 1
            if scans > _JPEG_SCANS_MAX:
                raise Reject(f"a JPEG image of more than {_JPEG_SCANS_MAX} scans", "undecodable")
            position = _next_marker(value, position, _JPEG_SCAN_END)
    return False


def _jpeg(value: bytes) -> ImageHeader:
    """Walk the segments to the start of frame: marker, length, precision, height, width."""
    position, end = 2, len(value) - 8
    while position < end:
        marker = value[position + 1]
        if value[position] != 0xFF or marker in (0, 0xFF):
            position = _next_marker(value, position)
            continue
        if marker in _FRAMES:
            bits = value[position + 4]
            height = value[position + 5] << 8 | value[position + 6]
            width = value[position + 7] << 8 | value[position + 8]
            kind: Kind = "jpeg" if marker in _BASELINE_FRAMES else "progressive_jpeg"
            lossless = "lossless" if marker in _LOSSLESS_FRAMES else ""
            return ImageHeader(
                kind, width, height, position, f"{bits} bits per sample" if bits != 8 else lossless
            )
        if marker in _BARE_MARKERS:
            position += 2
        elif marker in (_JPEG_END, _JPEG_SCAN):
            break
        else:
            position += 2 + max(2, value[position + 2] << 8 | value[position + 3])
    raise Reject("a JPEG image whose header is broken or ends early", "undecodable")


def jpeg_exif(value: bytes) -> Iterator[bytes]:
    """The EXIF data in the segments before a JPEG file's first scan."""
    position, end = 2, len(value) - 4
    while position < end:
        marker = value[position + 1]
        if value[position] != 0xFF or marker in (0, 0xFF):
            position = _next_marker(value, position)
            continue
        if marker in _BARE_MARKERS:
            position += 2
            continue
        if marker in (_JPEG_END, _JPEG_SCAN):
            return
        length = max(2, value[position + 2] << 8 | value[position + 3])
        if marker == _JPEG_EXIF and value.startswith(b"Exif\0\0", position + 4):
            yield value[position + 4 : position + 2 + length]
        position += 2 + length


def _png(value: bytes) -> ImageHeader:
    if len(value) < 33 or value[12:16] != b"IHDR":
        raise Reject("a PNG image whose header is broken or ends early", "undecodable")
    width, height = int.from_bytes(value[16:20], "big"), int.from_bytes(value[20:24], "big")
    return ImageHeader("png", width, height)


def png_chunks(value: bytes) -> Iterator[_Chunk]:
    """The chunks before the first one whose stated length exceeds the file.

    Such a chunk must never reach OpenCV, which allocates and fills the stated length before it checks the data: up to
    4 GB for a file of a kilobyte.
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
