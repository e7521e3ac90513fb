"""From the cells of a model's mask to the pixels of the original picture, a band of columns at a time.

A pixel's centre is taken through the picture's geometry to the model's input, and from there to the cells of the mask.
Between the centres of four cells the values are interpolated, as ``align_corners=False`` does in PyTorch and OpenCV's
linear resize. Whole pictures are never held: a band takes at most :data:`BAND_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from worker.batch import Array
from worker.postprocess.boxes import Geometry
from worker.postprocess.layout import Size

BAND_BYTES = 2 << 20
_BYTES_PER_PIXEL = 16


class Axis(NamedTuple):
    """Pixels of one axis of the picture, and where each lies between two cells."""

    low: Array
    high: Array
    share: Array
    """Of the cell ``high``, float32; ``low`` has the rest."""
    nearest: Array
    inside: Array
    """Whether the model saw the pixel: a crop leaves pixels out."""

    def part(self, start: int, stop: int) -> Axis:
        return Axis(*(values[start:stop] for values in self))


class Grid(NamedTuple):
    """How a mask of these cells lies on the picture."""

    rows: Axis
    columns: Axis

    @classmethod
    def over(cls, geometry: Geometry, cells: Size, model: Size, box: tuple[int, int, int, int]) -> Grid:
        """For the picture's pixels ``left <= x < right``, ``top <= y < bottom`` of ``box`` (left, top, right, bottom)."""
        left, top, right, bottom = box
        return cls(
            _axis(top, bottom, geometry.scale_y, geometry.offset_y, cells[0], model[0]),
            _axis(left, right, geometry.scale_x, geometry.offset_x, cells[1], model[1]),
        )

    @property
    def band(self) -> int:
        """Columns of one band."""
        return max(1, BAND_BYTES // (_BYTES_PER_PIXEL * max(1, len(self.rows.low))))

    def bands(self) -> Iterator[tuple[int, Axis]]:
        """First column (from the box's left edge) and axis of each band."""
        for start in range(0, len(self.columns.low), self.band):
            yield start, self.columns.part(start, start + self.band)


def _axis(start: int, stop: int, scale: float, offset: float, cells: int, model: int) -> Axis:
    seen = (np.arange(start, stop) + 0.5) * scale + offset
    places = seen * (cells / model)
    nearest = np.clip(np.floor(places), 0, cells - 1).astype(np.intp)
    centred = np.clip(places - 0.5, 0, cells - 1)
    low = np.floor(centred).astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    return Axis(low, high, (centred - low).astype(np.float32), nearest, (seen >= 0) & (seen < model))


def interpolated(values: Array, rows: Axis, columns: Axis) -> Array:
    """Values (cells high, cells wide) at each pixel of these axes, (rows, columns)."""
    wide = values[:, columns.low] * (1 - columns.share) + values[:, columns.high] * columns.share
    share = rows.share[:, np.newaxis]
    found: Array = wide[rows.low] * (1 - share) + wide[rows.high] * share
    return found


def best_class(scores: Array, best: Array, rows: Axis, columns: Axis) -> Array:
    """The class that scores best at each pixel after interpolation, the lower class on a tie.

    Args:
        scores: (classes, cells high, cells wide).
        best: the best class of each cell.

    A class that is best in all four cells around a pixel is best at the pixel, too: only the others are interpolated.
    """
    near, far = best[:, columns.low], best[:, columns.high]
    found: Array = near[rows.low]
    same = found == near[rows.high]
    same &= found == far[rows.low]
    same &= found == far[rows.high]
    y, x = np.nonzero(~same)
    flat, wide = scores.reshape(len(scores), -1), scores.shape[2]
    step = max(1, BAND_BYTES // (4 * scores.itemsize * len(scores)))
    for start in range(0, len(y), step):
        v, u = y[start : start + step], x[start : start + step]
        down, right = rows.share[v], columns.share[u]
        top, bottom = rows.low[v] * wide, rows.high[v] * wide
        here, beside = columns.low[u], columns.high[u]
        at = (flat[:, top + here] * (1 - right) + flat[:, top + beside] * right) * (1 - down)
        at += (flat[:, bottom + here] * (1 - right) + flat[:, bottom + beside] * right) * down
        found[v, u] = at.argmax(axis=0)
    return found
