"""Boxes -> ``{"boxes": [{"label", "class_id", "score", "xyxy"}]}``, best first, in pixels of the original image.

With masks each box has ``rle``, and the answer the picture's ``size`` beside the boxes. :mod:`worker.postprocess.layouts` has
the layouts that a model's outputs may be of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import orjson
from pydantic import Field

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.boxes import Boxes, best_first, in_picture, suppress
from worker.postprocess.frame import Frame
from worker.postprocess.instance_masks import masks
from worker.postprocess.labels import own_names
from worker.postprocess.layouts import layout_of
from worker.postprocess.thresholds import FractionByLabel, Thresholds, classes_named
from worker.settings.kinds import File, Fraction, Label, Positive, Text
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.detection"
_SCORE = 0.25


class DetectionSettings(Section):
    """Boxes in pixels of the original image."""

    labels: File | list[Label] | None = None
    """Text file with one label per line, relative to the configuration file; or a list of labels. Default: the names in the model file, else class indices."""
    layout: Literal["yolov8", "yolov8-seg", "yolov5", "yolox", "xyxy", "end2end", "detr", "tensorflow"] = (
        "yolov8"
    )
    """What the model's outputs hold: [the layouts](../guides/predictions.md#layouts)."""
    score: FractionByLabel | None = None
    """A box that scores less is left out: one number (default 0.25), or numbers by label with one for the others: `{default: 0.5, person: 0.75}`."""
    threshold: FractionByLabel | None = None
    """Another name for `score`, as classification calls it."""
    classes: Annotated[list[Text], Field(min_length=1)] | None = None
    """Only boxes of these classes, by label; by number where the classes have no labels."""
    nms: Literal["class", "all", "none"] | None = None
    """Which boxes suppress each other: those of one class, all, or none. Default: of one class; none for a layout whose model has suppressed them already."""
    iou: Fraction = 0.45
    """Of two boxes that suppress each other and overlap more than this, the better one stays."""
    max: Positive = 300
    """Most boxes per image."""


class Detection:
    """Boxes at or above ``score`` that no better box of their class overlaps by more than ``iou``; at most ``max``.

    A box of no area, also one that lies beside the picture, is left out. Without an image (another input format) the
    coordinates are the model's.
    """

    settings: ClassVar[type[Section]] = DetectionSettings
    members: ClassVar[Members] = {"boxes": "list"}

    def __init__(
        self, settings: DetectionSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        self._frame = Frame(signature)
        self._layout = layout_of(signature, settings.layout, labels, self._frame.size)
        self.takes_items = self._layout.sized
        self._labels = labels if labels is not None else own_names(signature)
        self._thresholds = _thresholds(settings, self._labels)
        self._only = _numbers(settings.classes, self._labels)
        self._nms = settings.nms or self._layout.nms
        self._iou, self._max = settings.iou, settings.max

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        read = {name: outputs[name] for name in self._layout.outputs}
        broken: dict[int, str] = {}
        for name, output in read.items():
            broken |= dict.fromkeys(rendering.non_finite_items(output), name)
        found: list[bytes | Rejection] = []
        for item in range(count):
            if item in broken:
                found.append(rendering.non_finite(broken[item], self))
                continue
            try:
                found.append(self._answer({name: read[name][item] for name in read}, contexts[item]))
            except Reject as error:
                found.append(Rejection.of(error, "postprocess", self))
        return found

    def _answer(self, item: Mapping[str, Array], context: Any) -> bytes:
        """The prediction of one item."""
        geometry, size = self._frame.of(context)
        with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be of any size
            boxes, pixels = in_picture(
                self._wanted(self._layout.read(item, self._thresholds.least, size)), geometry
            )
            if self._nms == "none":
                kept = best_first(boxes)[: self._max]
            else:
                kept = suppress(boxes, self._iou, self._max, self._nms == "all")
            boxes = boxes.take(kept)._replace(xyxy=pixels[kept])
            prototypes = self._layout.masks(item)
            if prototypes is None or boxes.extra is None:
                return b'{"boxes":%b}' % self._render(boxes)
            geometry, size = self._frame.fitted(context, prototypes.shape[1:])
            rles = masks(prototypes, boxes.extra, boxes.xyxy, geometry, size)
        return b'{"size":[%d,%d],"boxes":%b}' % (geometry.height, geometry.width, self._render(boxes, rles))

    def _wanted(self, boxes: Boxes) -> Boxes:
        """The boxes of the classes asked for that score enough for their class."""
        if self._only is not None:
            boxes = boxes.take(np.flatnonzero(np.isin(boxes.classes, self._only)))
        if self._thresholds.same_for_all:
            return boxes
        return boxes.take(np.flatnonzero(boxes.scores >= self._thresholds.of(boxes.classes)))

    def _render(self, boxes: Boxes, rles: Sequence[bytes] = ()) -> bytes:
        if not len(boxes.scores):
            return b"[]"
        classes = boxes.classes.tolist()
        columns = [
            [self._label(number) for number in classes],
            classes,
            rendering.scalars(boxes.scores),
            rendering.items(boxes.xyxy),
        ]
        template = b'{"label":%b,"class_id":%d,"score":%b,"xyxy":%b}'
        if rles:
            columns.append(rles)
            template = template[:-1] + b',"rle":%b}'
        return b"[%b]" % b",".join([template % row for row in zip(*columns, strict=True)])

    def _label(self, number: int) -> bytes:
        if self._labels is None:
            return b'"%d"' % number
        if not 0 <= number < len(self._labels):
            message = f"the model gave class {number}, {_FIELD}.labels names {len(self._labels)} classes"
            raise Reject(message, "model_error")
        return orjson.dumps(self._labels[number])


def _thresholds(settings: DetectionSettings, labels: Sequence[str] | None) -> Thresholds:
    if settings.score is not None and settings.threshold is not None:
        raise ConfigError(
            f"{_FIELD}.threshold: expected only one of score and threshold, which mean the same"
        )
    name = "score" if settings.threshold is None else "threshold"
    given = settings.score if settings.threshold is None else settings.threshold
    return Thresholds(_SCORE if given is None else given, _SCORE, labels, None, f"{_FIELD}.{name}")


def _numbers(classes: Sequence[str] | None, labels: Sequence[str] | None) -> Array | None:
    """The class numbers of ``classes``; None = every class."""
    if classes is None:
        return None
    return np.array([n for name in classes for n in classes_named(name, labels, None, f"{_FIELD}.classes")])
