"""The mask of each box, from the prototypes and the box's coefficients, in the picture's pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worker.batch import Array
from worker.errors import Reject
from worker.postprocess import rendering
from worker.postprocess.boxes import Geometry
from worker.postprocess.layout import Size, as_floats
from worker.postprocess.resampling import Grid, interpolated
from worker.postprocess.rle import RunCount, mask_runs

PIXELS_MAX = 1 << 28
"""Most pixels of all boxes of a picture together: what is computed for each of them takes about 10 ns."""


def masks(prototypes: Array, coefficients: Array, xyxy: Array, geometry: Geometry, size: Size) -> list[bytes]:
    """The JSON text of each box's run lengths.

    A pixel inside its box is in the mask where the prototypes, weighted by the box's coefficients and interpolated, are
    above 0: where their logistic function is above one half.

    Args:
        prototypes: (k, cells high, cells wide).
        coefficients: (boxes, k).
        xyxy: corners (boxes, 4) in pixels of the picture.
        size: of the model's input.

    Raises:
        Reject: the masks have too many runs or pixels, or a value is beyond any number.
    """
    corners = np.ceil(xyxy).astype(np.int64)  # a pixel belongs to the box if left <= x < right
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    if areas.sum() > PIXELS_MAX:
        raise Reject(f"the masks of {len(areas)} boxes have {areas.sum()} pixels in all", "too_large_output")
    count, prototypes = RunCount(), as_floats(prototypes)
    found = []
    for box, weights in zip(corners.tolist(), as_floats(coefficients), strict=True):
        bands = _bands(prototypes, weights, geometry, size, box)
        found.append(rendering.dumps(mask_runs(bands, box[1], geometry.height, geometry.width, count)))
    return found


def _bands(
    prototypes: Array, weights: Array, geometry: Geometry, size: Size, box: list[int]
) -> Iterator[tuple[int, Array]]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        return
    grid = Grid.over(geometry, prototypes.shape[1:], size, (left, top, right, bottom))
    # only the cells that the box lies on
    first, last = grid.rows.low[0], grid.rows.high[-1] + 1
    values = np.tensordot(weights, prototypes[:, first:last], 1)
    if not np.isfinite(values).all():
        raise Reject("a mask is too large for its numbers", "non_finite")
    rows = grid.rows._replace(low=grid.rows.low - first, high=grid.rows.high - first)
    for start, columns in grid.bands():
        inside = interpolated(values, rows, columns) > 0
        inside &= rows.inside[:, np.newaxis] & columns.inside
        yield left + start, inside
