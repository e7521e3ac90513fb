"""Boxes -> ``{"boxes": [{"label", "class_id", "score", "xyxy"}]}``, best first, in pixels of the original image.

Two layouts of one item, both in pixels of the model's input:

* ``yolov8``: (4 + classes, candidates); each column is centre x, centre y, width, height and a score per class.
* ``xyxy``: (candidates, 6); each row is x1, y1, x2, y2, score, class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import orjson

from worker.batch import Array
from worker.errors import Reject, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.labels import own_names
from worker.postprocess.layouts import HIGHEST_SCORE, check_layout
from worker.postprocess.selection import numeric_output
from worker.settings.kinds import File, Fraction, Label, Positive
from worker.settings.section import Section

_FIELD = "postprocess.detection"
CLASSES_MAX = 1 << 31
"""Largest class number accepted: a larger one in a floating output is an error, and may not be exact."""
BLOCK = 128
"""Candidates compared with each other at once."""


class Geometry(Protocol):
    """How the image decoder fitted the picture: model pixel = image pixel * scale + offset."""

    height: int
    width: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


class Boxes(NamedTuple):
    """Candidates of one item, aligned: ``xyxy`` (n, 4), ``scores`` (n,) and ``classes`` (n,) integers."""

    xyxy: Array
    scores: Array
    classes: Array

    def take(self, rows: Array) -> Boxes:
        return Boxes(self.xyxy[rows], self.scores[rows], self.classes[rows])


class DetectionSettings(Section):
    """Boxes in pixels of the original image."""

    labels: File | list[Label] | None = None
    """Text file with one label per line, relative to the configuration file; or a list of labels. Default: the names in the model file, else class indices."""
    layout: Literal["yolov8", "xyxy"] = "yolov8"
    """yolov8: [4 + classes, boxes] of centre, size and scores; xyxy: [boxes, 6] of corners, score and class."""
    score: Fraction = 0.25
    """A box that scores less is left out."""
    iou: Fraction = 0.45
    """Of two boxes of one class that overlap more than this, the better one stays."""
    max: Positive = 300
    """Most boxes per image."""


class Detection:
    """Boxes at or above ``score`` that no better box of their class overlaps by more than ``iou``; at most ``max``.

    A box of no area, also one that lies beside the picture, is left out. Reads the first floating output. Without an
    image (another input format) the coordinates stay the model's.
    """

    settings: ClassVar[type[Section]] = DetectionSettings

    def __init__(
        self, settings: DetectionSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        output = numeric_output(signature, _FIELD)
        check_layout(signature, output, settings.layout, labels)
        self._output = output.name
        self._read = yolov8_boxes if settings.layout == "yolov8" else xyxy_boxes
        self._score, self._iou, self._max = settings.score, settings.iou, settings.max
        self._labels = labels if labels is not None else own_names(signature)

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        output = outputs[self._output]
        found: list[bytes | Rejection] = []
        broken = set(rendering.non_finite_items(output))
        for item in range(count):
            if item in broken:
                found.append(rendering.non_finite(self._output, self))
                continue
            try:
                found.append(self._render(self._boxes(output[item], contexts[item])))
            except Reject as error:
                found.append(Rejection.of(error, "postprocess", self))
        return found

    def _boxes(self, item: Array, geometry: Geometry | None) -> Boxes:
        """The boxes of one item that remain, in the picture's own pixels."""
        with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be of any size
            boxes = self._read(_matrix(item), self._score)
            pixels = boxes.xyxy if geometry is None else to_image(boxes.xyxy, geometry)
            if not np.isfinite(pixels).all():
                raise Reject("a box is too large for its numbers", "non_finite")
            # A box outside the picture must not suppress one inside it, or use up one of the ``max`` places.
            seen = np.flatnonzero((pixels[:, 2] > pixels[:, 0]) & (pixels[:, 3] > pixels[:, 1]))
            boxes, pixels = boxes.take(seen), pixels[seen]
            kept = suppress(boxes, self._iou, self._max)
        return boxes.take(kept)._replace(xyxy=pixels[kept])

    def _render(self, boxes: Boxes) -> bytes:
        if not len(boxes.scores):
            return b'{"boxes":[]}'
        classes = boxes.classes.tolist()
        columns = (
            [self._label(number) for number in classes],
            classes,
            rendering.scalars(boxes.scores),
            rendering.items(boxes.xyxy),
        )
        rows = zip(*columns, strict=True)
        texts = [b'{"label":%b,"class_id":%d,"score":%b,"xyxy":%b}' % row for row in rows]
        return b'{"boxes":[%b]}' % b",".join(texts)

    def _label(self, number: int) -> bytes:
        if self._labels is None:
            return b'"%d"' % number
        if not 0 <= number < len(self._labels):
            message = f"the model gave class {number}, {_FIELD}.labels names {len(self._labels)} classes"
            raise Reject(message, "model_error")
        return orjson.dumps(self._labels[number])


def yolov8_boxes(item: Array, least: float) -> Boxes:
    """Candidates of a (4 + classes, n) item whose best class scores at least ``least``."""
    if len(item) < 5:
        raise Reject(
            f"expected 4 + classes rows of candidates, the model gave shape {list(item.shape)}", "model_error"
        )
    scores = item[4:].max(axis=0)
    if scores.max(initial=0.0) > HIGHEST_SCORE:
        raise Reject(f"a score of {scores.max():.4g}: the output is not of layout yolov8", "model_error")
    columns = np.flatnonzero(scores >= least)
    x, y, width, height = item[:4, columns]
    xyxy = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    return Boxes(xyxy, scores[columns], item[4:, columns].argmax(axis=0))


def xyxy_boxes(item: Array, least: float) -> Boxes:
    """Candidates of an (n, 6) item that score at least ``least``."""
    if item.shape[1] != 6:
        raise Reject(
            f"expected candidates of 6 numbers, the model gave shape {list(item.shape)}", "model_error"
        )
    chosen = item[item[:, 4] >= least]
    if chosen[:, 4].max(initial=0.0) > HIGHEST_SCORE:
        raise Reject(f"a score of {chosen[:, 4].max():.4g}: the output is not of layout xyxy", "model_error")
    classes = np.rint(chosen[:, 5])
    if (np.abs(classes) > CLASSES_MAX).any():
        raise Reject("the model gave a class number beyond any number of classes", "model_error")
    return Boxes(chosen[:, :4], chosen[:, 4], classes.astype(np.int64))


def suppress(boxes: Boxes, iou: float, at_most: int) -> Array:
    """Rows of the boxes to keep, best first: greedy non-maximum suppression within each class.

    A box is dropped if a kept box of its class overlaps it by more than ``iou``. Of equal scores the earlier candidate
    wins. All pairs of a block are compared at once: comparing box by box would cost 30 us per kept box.
    """
    order = np.argsort(-boxes.scores, kind="stable")
    kept = order[:0]
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if len(kept):
            block = block[~_covers(boxes, kept, block, iou).any(axis=0)]
        covers = _covers(boxes, block, block, iou)
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


def _covers(boxes: Boxes, better: Array, others: Array, iou: float) -> Array:
    """Whether each of ``better`` (rows) overlaps each of ``others`` (columns) of its class by more than ``iou``."""
    same = boxes.classes[better, None] == boxes.classes[others]
    covers: Array = same & (overlap(boxes.xyxy[better], boxes.xyxy[others]) > iou)
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


def to_image(xyxy: Array, geometry: Geometry) -> Array:
    """Boxes (n, 4) in model pixels as float32 pixels of the picture, cut at its edges."""
    offset = np.array([geometry.offset_x, geometry.offset_y] * 2)
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    size = np.array([geometry.width, geometry.height] * 2)
    pixels: Array = np.clip((xyxy - offset) / scale, 0, size)
    return pixels.astype(np.float32)


def _matrix(item: Array) -> Array:
    """One item without leading dimensions of 1."""
    while item.ndim > 2 and len(item) == 1:
        item = item[0]
    if item.ndim != 2:
        raise Reject(
            f"expected a matrix of candidates, the model gave shape {list(item.shape)}", "model_error"
        )
    # Areas would overflow in half precision.
    return item if item.dtype.kind == "f" and item.dtype.itemsize >= 4 else item.astype(np.float32)
