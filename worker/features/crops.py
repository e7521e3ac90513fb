"""Parts of a picture: an upright box cut out, a rotated one made upright, a part turned by a quarter or more. Pixels are uint8.

A rotated box becomes a picture as PaddleOCR and RapidOCR make it (``get_rotate_crop_image``): its sides are as long as the
longer one of two opposite sides, in whole pixels, the perspective is undone with cubic interpolation, and a part at least 1.5
times as high as wide is turned by a quarter against the clock, because a line of text is wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from worker.batch import Array
from worker.errors import Reject
from worker.features.opencv import cv2

UPRIGHT_RATIO = 1.5
"""A rotated box at least so many times as high as wide is turned by a quarter."""
_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}

_FARTHEST = 1e6
"""Corners of rotated boxes are nearer than this, in pixels: the part of a picture gets their size."""

Box = Mapping[str, Any]
"""A box of a prediction: ``points``, four corners clockwise from the upper left one, or ``xyxy``; in pixels of the picture."""


def size_of(box: Box, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of a box's part of a picture of this size; 0 where the box has no area in it.

    Raises:
        Reject: it is no box.
    """
    if "points" in box:
        down, across = _sides(_corners(box))
        return (across, down) if down >= UPRIGHT_RATIO * across else (down, across)
    left, top, right, bottom = _edges(box, height, width)
    return max(0, bottom - top), max(0, right - left)


def cut(picture: Array, box: Box) -> Array:
    """A box's part of a picture; a view of it where the box is upright.

    Args:
        picture: (height, width) or (height, width, 3).
        box: its part has an area, see :func:`size_of`.
    """
    if "points" not in box:
        left, top, right, bottom = _edges(box, *picture.shape[:2])
        return picture[top:bottom, left:right]
    corners = _corners(box)
    down, across = _sides(corners)
    upright = np.array([[0, 0], [across, 0], [across, down], [0, down]], np.float32)
    part: Array = cv2.warpPerspective(
        picture,
        cv2.getPerspectiveTransform(corners, upright),
        (across, down),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.rot90(part) if down >= UPRIGHT_RATIO * across else part


def turned(picture: Array, degrees: int) -> Array:
    """A picture turned clockwise by 90, 180 or 270 degrees."""
    found: Array = cv2.rotate(picture, _TURNS[degrees])
    return found


def recoloured(picture: Array, color: str, wanted: str) -> Array:
    """A picture in other channels: ``rgb``, ``bgr`` or ``gray``; it must not be gray where colours are wanted."""
    if color == wanted:
        return picture
    found: Array = cv2.cvtColor(np.ascontiguousarray(picture), _RECOLOURED[color, wanted])
    return found


_RECOLOURED = {
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("rgb", "gray"): cv2.COLOR_RGB2GRAY,
    ("bgr", "gray"): cv2.COLOR_BGR2GRAY,
}


def _edges(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels: every pixel that the box touches, as far as the picture goes."""
    given = box.get("xyxy")
    try:
        x1, y1, x2, y2 = given  # type: ignore[misc]
        left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
        return left, top, min(width, math.ceil(x2)), min(height, math.ceil(y2))
    except (TypeError, ValueError, OverflowError):
        raise Reject("a box without xyxy: [x1, y1, x2, y2]", "model_error") from None


def _corners(box: Box) -> Array:
    """(4, 2) float32; whole pixels, as the reference has them."""
    try:
        found = np.array(box["points"], np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (4, 2) or not (np.abs(found) < _FARTHEST).all():
        raise Reject("a box without points: four corners [x, y]", "model_error")
    return np.round(found).astype(np.float32)


def _sides(corners: Array) -> tuple[int, int]:
    """Height and width of a rotated box in whole pixels."""
    first, second, third, fourth = corners
    across = max(np.linalg.norm(first - second), np.linalg.norm(third - fourth))
    down = max(np.linalg.norm(first - fourth), np.linalg.norm(second - third))
    return int(down), int(across)
