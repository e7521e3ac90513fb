"""Reads the camera's orientation from a picture's file; while OpenCV decodes, it reads that of JPEG files only.

In a PNG or WebP file the EXIF data are in a chunk for EXIF, or (PNG) in a text chunk as a "raw profile"; else XMP may hold the number.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np

from worker.batch import Array
from worker.features.picture_header import jpeg_exif, png_chunks

UPRIGHT = 1
_TAG = 0x0112
_SHORT = 3
_TEXT_BYTES_MAX = 1 << 20
"""A text chunk is unpacked up to this length."""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b")
_RAW_PROFILE = re.compile(rb"Raw profile type (?:exif|APP1)\0", re.IGNORECASE)


def orientation(value: bytes) -> int:
    """1 to 8 as in EXIF: 1 is upright, and the default for a file without an orientation.

    Args:
        value: a JPEG, PNG or WebP file, or the beginning of one.
    """
    profiles: Iterator[tuple[bool, bytes]]
    if value.startswith(b"\xff\xd8"):
        profiles = ((True, data) for data in jpeg_exif(value))
    else:
        profiles = _png_profiles(value) if value.startswith(b"\x89PNG") else _webp_profiles(value)
    for is_exif, data in profiles:
        found = _in_exif(data) if is_exif else _in_xmp(data)
        if found:
            return found
    return UPRIGHT


def turned(pixels: Array, orientation: int) -> Array:
    """Pixels (height, width) or (height, width, channels) turned upright; C order."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _png_profiles(value: bytes) -> Iterator[tuple[bool, bytes]]:
    """(whether it is EXIF, the data) of every place that may hold the orientation, the most reliable first."""
    chunks = [
        (chunk.name, value[chunk.start + 8 : chunk.end - 4])
        for chunk in png_chunks(value)
        if chunk.name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
    ]
    yield from ((True, data) for name, data in chunks if name == b"eXIf")
    for name, data in chunks:
        profile = _RAW_PROFILE.match(data)
        if profile and name in (b"tEXt", b"zTXt"):
            text = data[profile.end() :] if name == b"tEXt" else _unpacked(data[profile.end() + 1 :])
            yield True, _from_hexadecimal(text)
    for name, data in chunks:
        keyword, _, rest = data.partition(b"\0")
        if name == b"iTXt" and keyword == b"XML:com.adobe.xmp" and len(rest) > 2:
            text = rest[2:].split(b"\0", 2)[-1]
            yield False, _unpacked(text) if rest[0] else text


def _webp_profiles(value: bytes) -> Iterator[tuple[bool, bytes]]:
    position = 12
    while position + 8 <= len(value):
        name, size = (
            value[position : position + 4],
            int.from_bytes(value[position + 4 : position + 8], "little"),
        )
        if name in (b"EXIF", b"XMP "):
            yield name == b"EXIF", value[position + 8 : position + 8 + size]
        position += 8 + size + size % 2


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _TEXT_BYTES_MAX)
    except zlib.error:
        return b""


def _from_hexadecimal(text: bytes) -> bytes:
    """The data of a raw profile: a line break, its name, its length, then lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return b""


def _in_exif(data: bytes) -> int | None:
    """The orientation in EXIF data: a TIFF header, then a directory of 12-byte entries."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(data[:4])
    if order is None:
        return None

    def number(position: int, size: int) -> int:
        return int.from_bytes(data[position : position + size], "little" if order == "little" else "big")

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        position = directory + 2 + 12 * entry
        if position + 12 > len(data):
            return None
        if number(position, 2) == _TAG and number(position + 2, 2) == _SHORT:
            found = number(position + 8, 2)
            return found if 1 <= found <= 8 else None
    return None


def _in_xmp(data: bytes) -> int | None:
    found = _XMP_ORIENTATION.search(data)
    return int(found[1]) if found else None
