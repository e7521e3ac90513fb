"""Boxes of one picture: overlap, suppression, and the way from the model's pixels to the picture's."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from worker.batch import Array
from worker.errors import Reject

BLOCK = 128
"""Candidates compared with each other at once."""


class Geometry(Protocol):
    """How the image decoder fitted the picture: model pixel = image pixel * scale + offset."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def scale_x(self) -> float: ...
    @property
    def scale_y(self) -> float: ...
    @property
    def offset_x(self) -> float: ...
    @property
    def offset_y(self) -> float: ...


class Unfitted(NamedTuple):
    """The geometry of a model's input that no picture was fitted to: its pixels are the picture's."""

    height: int
    width: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0


class Boxes(NamedTuple):
    """Candidates of one item, aligned: ``xyxy`` (n, 4), ``scores`` (n,) and ``classes`` (n,) integers."""

    xyxy: Array
    scores: Array
    classes: Array
    extra: Array | None = None
    """What else the model says of each box, (n, k): mask coefficients, or the numbers of its keypoints."""

    def take(self, rows: Array) -> Boxes:
        extra = None if self.extra is None else self.extra[rows]
        return Boxes(self.xyxy[rows], self.scores[rows], self.classes[rows], extra)


def suppress(boxes: Boxes, iou: float, at_most: int, across_classes: bool = False) -> Array:
    """Rows of the boxes to keep, best first: greedy non-maximum suppression within each class, or across all of them.

    A box is dropped if a kept box overlaps it by more than ``iou``. Of equal scores the earlier candidate wins. All
    pairs of a block are compared at once: comparing box by box would cost 30 us per kept box.
    """
    order = best_first(boxes)
    kept = order[:0]
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if len(kept):
            block = block[~_covers(boxes, kept, block, iou, across_classes).any(axis=0)]
        covers = _covers(boxes, block, block, iou, across_classes)
        alive = np.ones(len(block), bool)
        chosen = []
        for row in range(len(block)):
            if alive[row]:
                chosen.append(row)
                alive &= ~covers[row]
        kept = np.concatenate([kept, block[chosen]])
        if len(kept) >= at_most:
            break
    return kept[:at_most]


def best_first(boxes: Boxes) -> Array:
    """Rows by score, the earlier candidate first on a tie."""
    return np.argsort(-boxes.scores, kind="stable")


def _covers(boxes: Boxes, better: Array, others: Array, iou: float, across_classes: bool) -> Array:
    """Whether each of ``better`` (rows) overlaps each of ``others`` (columns), of its class, by more than ``iou``."""
    covers: Array = overlap(boxes.xyxy[better], boxes.xyxy[others]) > iou
    if not across_classes:
        covers &= boxes.classes[better, None] == boxes.classes[others]
    return covers


def overlap(boxes: Array, others: Array) -> Array:
    """Intersection over union of boxes (m, 4) with others (n, 4) -> (m, n); 0 if both boxes are empty."""
    left, top, right, bottom = (boxes[:, [column]] for column in range(4))
    x1, y1, x2, y2 = others.T
    shared = _area(np.maximum(left, x1), np.maximum(top, y1), np.minimum(right, x2), np.minimum(bottom, y2))
    union = _area(left, top, right, bottom) + _area(x1, y1, x2, y2) - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def _area(left: Array, top: Array, right: Array, bottom: Array) -> Array:
    """Areas of boxes; 0 if the corners of a box are swapped."""
    area: Array = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    return area


def to_image(points: Array, geometry: Geometry) -> Array:
    """Points in model pixels as float32 pixels of the picture, cut at its edges.

    Args:
        points: (n, 2 k): x and y of k points in turn, such as the two corners of a box.
    """
    pairs = points.shape[-1] // 2
    offset = np.array([geometry.offset_x, geometry.offset_y] * pairs)
    scale = np.array([geometry.scale_x, geometry.scale_y] * pairs)
    size = np.array([geometry.width, geometry.height] * pairs)
    pixels: Array = np.clip((points - offset) / scale, 0, size)
    return pixels.astype(np.float32)


def from_centres(sides: Any) -> Array:
    """Corners (n, 4) from four rows: centre x, centre y, width, height."""
    x, y, width, height = sides
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)


def in_picture(boxes: Boxes, geometry: Geometry | None) -> tuple[Boxes, Array]:
    """The boxes that have an area inside the picture, and their corners in its pixels.

    A box outside the picture must not suppress one inside it, or use up one of the ``max`` places.

    Raises:
        Reject: a coordinate is beyond any number.
    """
    pixels = boxes.xyxy if geometry is None else to_image(boxes.xyxy, geometry)
    if not np.isfinite(pixels).all():
        raise Reject("a box is too large for its numbers", "non_finite")
    seen = np.flatnonzero((pixels[:, 2] > pixels[:, 0]) & (pixels[:, 3] > pixels[:, 1]))
    return boxes.take(seen), pixels[seen]
