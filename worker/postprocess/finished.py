"""Layouts of detectors that give finished boxes: corners, or shares of the picture, with one class each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worker.batch import Array
from worker.errors import Reject
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.boxes import Boxes, from_centres
from worker.postprocess.layout import (
    HIGHEST_SCORE,
    Layout,
    Names,
    Shape,
    Size,
    UnfitError,
    as_classes,
    as_floats,
    check_names,
    check_scores,
    item_shape,
    matrix,
    matrix_output,
    odd_classes,
    odd_scores,
    shown,
)

_XYXY, _WITH_INDEX = 6, 7
_OUTSIDE = 2.0
"""Shares of the picture are within 0 and 1, but for boxes that reach a little over its edge."""


class Xyxy(Layout):
    """``xyxy``: (candidates, 6); each row is x1, y1, x2, y2, score, class."""

    described = "[boxes, 6]"

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        output, rows, columns = matrix_output(signature, "postprocess.detection")
        self.outputs = (output.name,)
        if columns not in (None, _XYXY):
            raise UnfitError(f"{shown(rows, columns)}, not 6 columns")

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        values = matrix(item[self.outputs[0]])
        if values.shape[1] != _XYXY:
            raise Reject(
                f"expected candidates of 6 numbers, the model gave shape {list(values.shape)}", "model_error"
            )
        return _rows(values, least, "xyxy")

    def against(self, item: Mapping[str, Array]) -> str | None:
        values = matrix(item[self.outputs[0]])
        if values.shape[1] != _XYXY:
            return None
        return odd_classes(values[:, 5], "the sixth column") or odd_scores(values[:, 4])


class End2End(Layout):
    """``end2end``: the rows of ``xyxy`` after suppression inside the model; or 7 numbers: picture, corners, class, score."""

    described = "[boxes, 6] or [boxes, 7] after suppression"
    nms = "none"

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        output, rows, columns = matrix_output(signature, "postprocess.detection")
        self.outputs = (output.name,)
        if columns not in (None, _XYXY, _WITH_INDEX):
            raise UnfitError(f"{shown(rows, columns)}, neither 6 nor 7 columns")
        if columns == _WITH_INDEX and signature.batchable:
            raise UnfitError(
                "its rows have 7 columns, of which the first is the number of the picture, but it gives rows per picture"
            )

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        return _rows(self._without_index(matrix(item[self.outputs[0]])), least, "end2end")

    def against(self, item: Mapping[str, Array]) -> str | None:
        try:
            values = self._without_index(matrix(item[self.outputs[0]]))
        except Reject as odd:
            return str(odd)
        return odd_classes(values[:, 5], "the column of classes") or odd_scores(values[:, 4])

    def _without_index(self, values: Array) -> Array:
        """Rows of corners, score, class; the number of the picture is 0, as the model ran it alone."""
        if values.shape[1] == _XYXY:
            return values
        if values.shape[1] != _WITH_INDEX:
            raise Reject(
                f"expected boxes of 6 or 7 numbers, the model gave shape {list(values.shape)}", "model_error"
            )
        if values[:, 0].any():
            raise Reject(
                "the first of 7 columns is not 0, as the number of the only picture would be", "model_error"
            )
        return values[:, [1, 2, 3, 4, 6, 5]]


def _rows(values: Array, least: float, name: str) -> Boxes:
    chosen = values[values[:, 4] >= least]
    check_scores(chosen[:, 4], name)
    return Boxes(chosen[:, :4], chosen[:, 4], as_classes(chosen[:, 5]))


class Detr(Layout):
    """``detr``: logits (queries, classes + 1), the last one for no object, and boxes (queries, 4) as shares of the input."""

    described = "logits [queries, classes + 1] and boxes [queries, 4]"
    nms = "none"
    sized = True

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        shapes = {
            spec.name: item_shape(signature, spec) for spec in signature.outputs if spec.dtype.kind == "f"
        }
        boxes = _one(
            [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] in (None, 4)], "box"
        )
        logits = _one([name for name, shape in shapes.items() if len(shape) == 2 and name != boxes], "logit")
        if boxes is None or logits is None:
            raise UnfitError("expected two outputs, logits and boxes of 4 numbers, for the same queries")
        self.outputs = (logits, boxes)
        queries, classes = shapes[logits]
        if None not in (queries, shapes[boxes][0]) and queries != shapes[boxes][0]:
            raise UnfitError(f"{queries} rows of logits, {shapes[boxes][0]} boxes")
        if classes is not None:
            if classes < 2:
                raise UnfitError(f"logits of {shown(queries, classes)}, not classes + 1 columns")
            check_names(classes - 1, names)

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        logits, boxes = (matrix(item[name]) for name in self.outputs)
        if len(logits) != len(boxes) or boxes.shape[1] != 4 or logits.shape[1] < 2:
            raise Reject(
                f"expected logits and boxes of 4 numbers for the same queries, the model gave shapes "
                f"{list(logits.shape)} and {list(boxes.shape)}",
                "model_error",
            )
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities = powers[:, :-1] / powers.sum(axis=1, keepdims=True)
        best = probabilities.argmax(axis=1)
        scores = probabilities[np.arange(len(best)), best]
        rows = np.flatnonzero(scores >= least)
        return Boxes(_scaled(from_centres(boxes[rows].T), size), scores[rows], best[rows])

    def against(self, item: Mapping[str, Array]) -> str | None:
        return _odd_shares(matrix(item[self.outputs[1]]))


class Tensorflow(Layout):
    """``tensorflow``: boxes (n, 4) of y1, x1, y2, x2 as shares of the input, classes (n), scores (n) and their count."""

    described = "boxes [n, 4], classes [n], scores [n] and a count"
    nms = "none"
    sized = True

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        shapes = {spec.name: item_shape(signature, spec) for spec in signature.outputs}
        # a detector's other outputs, such as its boxes before suppression, have names that begin so
        known = [spec for spec in signature.outputs if not spec.name.lower().startswith(("raw_", "anchor"))]
        boxes = _one(
            [s.name for s in known if len(shapes[s.name]) == 2 and shapes[s.name][1] in (None, 4)],
            "detection_boxes",
        )
        counts = [s for s in known if s.name != boxes and _is_count(s, shapes[s.name])]
        vectors = [s.name for s in known if s.name != boxes and s not in counts and len(shapes[s.name]) == 1]
        classes = next((name for name in vectors if "class" in name.lower()), None)
        scores = next((name for name in vectors if "score" in name.lower()), None)
        if classes is None and scores is None and len(vectors) == 2:
            classes, scores = vectors
        if boxes is None or classes is None or scores is None or not counts:
            raise UnfitError("expected four outputs: boxes of 4 numbers, classes, scores and a count")
        self.outputs = (boxes, classes, scores, counts[0].name)

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        boxes, classes, scores = self._parts(item)
        check_scores(scores, "tensorflow")
        rows = np.flatnonzero(scores >= least)
        corners = boxes[rows][:, [1, 0, 3, 2]]
        return Boxes(_scaled(corners, size), scores[rows], as_classes(classes[rows]))

    def against(self, item: Mapping[str, Array]) -> str | None:
        try:
            boxes, classes, scores = self._parts(item)
        except Reject as odd:
            return str(odd)
        return odd_scores(scores) or odd_classes(classes, "the output of classes") or _odd_shares(boxes)

    def _parts(self, item: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """Boxes, classes and scores, as many as the model counts."""
        boxes = matrix(item[self.outputs[0]])
        classes, scores = (as_floats(item[name]).reshape(-1) for name in self.outputs[1:3])
        counted = item[self.outputs[3]].reshape(-1)
        count = float(counted[0]) if counted.size == 1 else -1.0
        if (
            boxes.shape[1] != 4
            or not len(boxes) == len(classes) == len(scores)
            or not 0 <= count <= len(boxes)
        ):
            raise Reject(
                f"expected a count and as many boxes, classes and scores, the model gave shapes "
                f"{list(boxes.shape)}, {list(classes.shape)} and {list(scores.shape)} and the count {count:.4g}",
                "model_error",
            )
        count = int(count)
        return boxes[:count], classes[:count], scores[:count]


def _is_count(spec: TensorSpec, shape: Shape) -> bool:
    name = spec.name.lower()
    return shape in ((), (1,)) or (len(shape) == 1 and ("num" in name or "count" in name))


def _one(names: list[str], word: str) -> str | None:
    """The only name, or the only one that holds the word."""
    if len(names) > 1:
        names = [name for name in names if word in name.lower()]
    return names[0] if len(names) == 1 else None


def _scaled(xyxy: Array, size: Size | None) -> Array:
    """Corners given as shares of the model's input in its pixels; where its size is not known they stay shares."""
    return xyxy if size is None else xyxy * np.array([size[1], size[0]] * 2, np.float32)


def _odd_shares(boxes: Array) -> str | None:
    if boxes.size and (boxes.max() > _OUTSIDE or boxes.min() < -_OUTSIDE):
        return f"a box would have a coordinate of {boxes.max() if boxes.max() > HIGHEST_SCORE else boxes.min():.4g}, not a share of the picture"
    return None
