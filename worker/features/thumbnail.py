"""A small picture of a record's picture, for people: JPEG, or PNG where the picture is small itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worker.batch import Array
from worker.errors import Reject
from worker.features.opencv import cv2
from worker.features.orientation import UPRIGHT, orientation, turned
from worker.features.picture_header import ImageHeader, decodable, peek

SIDE = 360
"""The longer side of a small picture has at most so many pixels."""
SHARP_SIDE = 96
"""A picture up to this size keeps every pixel."""
PIXELS = 16_000_000
"""A larger picture is left out, unless its format can be decoded at a fraction of its size."""
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
_SWAPPED = 5
"""From this orientation on, height and width change places."""


class Thumbnail(NamedTuple):
    """A small picture."""

    file: bytes
    mime: str
    width: int
    height: int
    """Of the picture it was made from, upright, in pixels."""


def thumbnail(file: bytes, upright: bool = True) -> Thumbnail | None:
    """The small form of a JPEG, PNG or WebP file; None where it is none of these, broken, or above ``PIXELS``.

    Args:
        upright: follow the camera's orientation, as ``orientation: exif`` does.
    """
    try:
        header = peek(file)
        pixels = _decoded(decodable(file, header), header)
    except (Reject, cv2.error):
        return None
    if pixels is None:
        return None
    held = orientation(file) if upright else UPRIGHT
    if held != UPRIGHT:
        pixels = turned(pixels, held)
    width, height = header.width, header.height
    if held >= _SWAPPED:
        width, height = height, width
    return _made(pixels, width, height, SIDE)


def thumbnail_of(pixels: Array, flags: int, side: int = SIDE) -> Thumbnail | None:
    """The small form of a picture that is decoded.

    Args:
        pixels: uint8, (height, width) or (height, width, 3), upright.
        flags: those of OpenCV that it was decoded with: they say in which order its channels are.
        side: the longer side of the small picture has at most so many pixels.
    """
    if flags & cv2.IMREAD_COLOR_RGB and pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    height, width = pixels.shape[:2]
    return _made(np.ascontiguousarray(pixels), width, height, side)


def _made(pixels: Array, width: int, height: int, side: int) -> Thumbnail | None:
    """Pixels as OpenCV writes them, of a picture of that many pixels, as a small file."""
    share = side / max(pixels.shape[:2])
    if share < 1:
        size = max(1, round(pixels.shape[1] * share)), max(1, round(pixels.shape[0] * share))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    sharp = max(width, height) <= SHARP_SIDE
    made, small = (
        cv2.imencode(".png", pixels)
        if sharp
        else cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
    )
    return Thumbnail(small.tobytes(), "image/png" if sharp else "image/jpeg", width, height) if made else None


def _decoded(file: bytes, header: ImageHeader) -> Array | None:
    """The pixels as stored, of a JPEG at the smallest fraction of its size that is enough."""
    flags = cv2.IMREAD_COLOR
    if header.kind in ("jpeg", "progressive_jpeg"):
        longer = max(header.width, header.height)
        part = next((part for part in _REDUCED if longer // part >= SIDE), 1)
        flags = _REDUCED.get(part, flags)
        if header.kind == "progressive_jpeg" and header.width * header.height > PIXELS:
            return None  # all of its coefficients are kept until the last scan
    elif header.width * header.height > PIXELS:
        return None
    return cv2.imdecode(np.frombuffer(file, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
