"""Layouts of the YOLO family: candidates with a centre, a size and a score for each class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worker.batch import Array
from worker.errors import Reject
from worker.model.signature import Signature
from worker.postprocess.boxes import Boxes, from_centres
from worker.postprocess.layout import (
    Layout,
    Names,
    Size,
    UnfitError,
    check_names,
    check_scores,
    item_shape,
    matrix,
    matrix_output,
    odd_scores,
    shown,
)

_BOX = 4
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Pixels between the candidates of each grid of a YOLOX model, of three grids or of four."""


class YoloV8(Layout):
    """``yolov8``: (4 + classes, candidates); each column is centre x, centre y, width, height and a score per class."""

    described = "[4 + classes, boxes]"
    _name = "yolov8"

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        output, rows, columns = matrix_output(signature, "postprocess.detection")
        self.outputs = (output.name,)
        if any(len(spec.shape) == 4 for spec in signature.outputs):
            raise UnfitError("another output has 4 dimensions, as masks do: a segmentation model")
        if rows is None:
            return
        if rows <= _BOX:
            raise UnfitError(f"{shown(rows, columns)}, not 4 + classes rows")
        check_names(rows - _BOX, names)
        # how many boxes the answer to a small made-up picture has says nothing
        if names is None and output.shape[-1] is not None and rows > output.shape[-1]:
            raise UnfitError(f"{shown(rows, columns)}, more rows than boxes")

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        return columns_of(matrix(item[self.outputs[0]]), least, self._name)

    def against(self, item: Mapping[str, Array]) -> str | None:
        return odd_scores(matrix(item[self.outputs[0]])[_BOX:])


def columns_of(values: Array, least: float, name: str, extra: int = 0) -> Boxes:
    """Candidates of a (4 + classes + extra, n) item whose best class scores at least ``least``."""
    classes = len(values) - _BOX - extra
    if classes < 1:
        rows = f"4 + classes{f' + {extra}' if extra else ''}"
        raise Reject(
            f"expected {rows} rows of candidates, the model gave shape {list(values.shape)}", "model_error"
        )
    by_class = values[_BOX : _BOX + classes]
    scores = by_class.max(axis=0) if classes > 1 else by_class[0]
    check_scores(scores, name)
    columns = np.flatnonzero(scores >= least)
    best = by_class[:, columns].argmax(axis=0)
    more = values[_BOX + classes :, columns].T if extra else None
    return Boxes(from_centres(values[:_BOX, columns]), scores[columns], best, more)


class YoloV8Seg(Layout):
    """``yolov8-seg``: as ``yolov8`` with k mask coefficients behind the scores, and an output of k prototypes."""

    described = "[4 + classes + k, boxes] and [k, height, width]"
    sized = True

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        shapes = {spec.name: item_shape(signature, spec) for spec in signature.outputs}
        prototypes = next((name for name, shape in shapes.items() if len(shape) == 3), None)
        boxes = next((name for name, shape in shapes.items() if len(shape) == 2), None)
        if prototypes is None or boxes is None:
            raise UnfitError("expected two outputs, candidates and the prototypes of their masks")
        self.outputs = (boxes, prototypes)
        self._masks = shapes[prototypes][0]
        rows, columns = shapes[boxes]
        if rows is None or self._masks is None:
            return
        classes = rows - _BOX - self._masks
        if classes < 1:
            raise UnfitError(
                f"{shown(rows, columns)}, not 4 + classes + {self._masks} rows, as {self._masks} prototypes need"
            )
        check_names(classes, names)

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        return columns_of(matrix(item[self.outputs[0]]), least, "yolov8-seg", extra=len(self.masks(item)))

    def masks(self, item: Mapping[str, Array]) -> Array:
        prototypes = item[self.outputs[1]]
        while prototypes.ndim > 3 and len(prototypes) == 1:
            prototypes = prototypes[0]
        if prototypes.ndim != 3 or not prototypes.size:
            raise Reject(
                f"expected prototypes of masks, the model gave shape {list(prototypes.shape)}", "model_error"
            )
        return prototypes

    def against(self, item: Mapping[str, Array]) -> str | None:
        return odd_scores(matrix(item[self.outputs[0]])[_BOX : -len(self.masks(item))])


class YoloV5(Layout):
    """``yolov5``: (candidates, 5 + classes); each row is centre x, centre y, width, height, objectness, a score per class."""

    described = "[boxes, 5 + classes]"
    _name = "yolov5"

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        output, rows, columns = matrix_output(signature, "postprocess.detection")
        self.outputs = (output.name,)
        if columns is None:
            return
        if columns <= _BOX + 1:
            raise UnfitError(f"{shown(rows, columns)}, not 5 + classes columns")
        check_names(columns - _BOX - 1, names)
        if names is None and output.shape[-2] is not None and columns > output.shape[-2]:
            raise UnfitError(f"{shown(rows, columns)}, more columns than boxes")

    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        values = matrix(item[self.outputs[0]])
        if values.shape[1] <= _BOX + 1:
            raise Reject(
                f"expected 5 + classes columns, the model gave shape {list(values.shape)}", "model_error"
            )
        # A score is at most the objectness: most candidates need no look at their classes.
        rows = np.flatnonzero(values[:, _BOX] >= least)
        chosen = values[rows]
        by_class = chosen[:, _BOX + 1 :]
        check_scores(chosen[:, _BOX:], self._name)
        best = by_class.argmax(axis=1)
        scores = chosen[:, _BOX] * by_class[np.arange(len(rows)), best]
        kept = np.flatnonzero(scores >= least)
        sides = self._sides(values, rows[kept], size)
        return Boxes(from_centres(sides.T), scores[kept], best[kept])

    def _sides(self, values: Array, rows: Array, size: Size | None) -> Array:
        """Centre and size (k, 4) of these candidates in pixels."""
        return values[rows, :_BOX]

    def against(self, item: Mapping[str, Array]) -> str | None:
        values = matrix(item[self.outputs[0]])
        if values.size and values[:, 2:_BOX].min() < -0.01:
            return "a box would have a width or height below 0"
        return odd_scores(values[:, _BOX:])


class Yolox(YoloV5):
    """``yolox``: rows as ``yolov5``, with centre and size still relative to the cells of three or four grids."""

    described = "[cells, 5 + classes]"
    sized = True
    _name = "yolox"

    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None:
        super().__init__(signature, names, size)
        _, rows, columns = matrix_output(signature, "postprocess.detection")
        self._size = size
        if size is not None and rows is not None and rows not in cell_counts(size):
            raise UnfitError(
                f"{shown(rows, columns)}, but the grids of an input of {size[0]} x {size[1]} pixels have "
                f"{' or '.join(map(str, cell_counts(size)))} cells"
            )

    def _sides(self, values: Array, rows: Array, size: Size | None) -> Array:
        cells = grid(size or self._size, len(values))[rows]
        chosen = values[rows, :_BOX]
        places, strides = cells[:, :2], cells[:, 2:]
        return np.hstack([(chosen[:, :2] + places) * strides, np.exp(chosen[:, 2:]) * strides])

    def against(self, item: Mapping[str, Array]) -> str | None:
        values = matrix(item[self.outputs[0]])
        # The size is the logarithm of so many strides: 12 would be a box of over a million pixels.
        if values.size and values[:, 2:_BOX].max() > 12:
            return "its boxes are in pixels already, as those of yolov5 are"
        return odd_scores(values[:, _BOX:])


def cell_counts(size: Size) -> list[int]:
    """How many cells the three grids, or the four grids, of a YOLOX model have together."""
    return [sum((size[0] // s) * (size[1] // s) for s in strides) for strides in _STRIDES]


def grid(size: Size | None, count: int) -> Array:
    """Column, row and stride of each cell, (count, 3), as YOLOX counts them: the finest grid first, row by row.

    Raises:
        Reject: the grids of an input of this size have another number of cells.
    """
    for strides in _STRIDES if size is not None else ():
        assert size is not None
        parts = []
        for stride in strides:
            height, width = size[0] // stride, size[1] // stride
            y, x = np.divmod(np.arange(height * width, dtype=np.float32), max(width, 1))
            parts.append(np.stack([x, y, np.full_like(x, stride)], axis=1))
        cells = np.concatenate(parts)
        if len(cells) == count:
            return cells
    of = f"an input of {size[0]} x {size[1]} pixels" if size is not None else "an input of unknown size"
    raise Reject(f"the model gave {count} cells, which do not fit the grids of {of}", "model_error")
