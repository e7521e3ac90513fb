"""Whether two runs gave the same, and by how much they differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worker.batch import Array
from worker.model.backend import Tensors

RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-5


class Difference(NamedTuple):
    """What two runs differ by."""

    largest: float
    """The largest difference of two finite floats, absolute."""
    reason: str | None
    """A clause on the first output that differs by more than is allowed; None if none does."""


def same(first: Tensors, second: Tensors, of_largest: float = 0.0) -> bool:
    """Whether two runs gave the same, as :func:`difference` has it."""
    return difference(first, second, of_largest).reason is None


def difference(
    first: Tensors, second: Tensors, of_largest: float = 0.0, absolute: float = ABSOLUTE_TOLERANCE
) -> Difference:
    """Compare two runs: floats agree to 1e-3 relative and ``absolute``, NaN equals NaN, all else must be equal.

    Args:
        first, second: the answers by output name.
        of_largest: what floats may differ by besides, as a share of the output's largest finite value in ``second``.
    """
    if first.keys() != second.keys():
        return Difference(0.0, f"the outputs are {', '.join(first)}, expected {', '.join(second)}")
    largest = 0.0
    for name, ours in first.items():
        apart, reason = _difference(ours, second[name], of_largest, absolute)
        largest = max(largest, apart)
        if reason is not None:
            return Difference(largest, f"output {name} {reason}")
    return Difference(largest, None)


def _difference(first: Array, second: Array, of_largest: float, absolute: float) -> Difference:
    if first.shape != second.shape:
        return Difference(0.0, f"has shape {list(first.shape)}, expected {list(second.shape)}")
    if first.dtype != second.dtype:
        return Difference(0.0, f"is {first.dtype}, expected {second.dtype}")
    if first.dtype.kind != "f":
        return Difference(0.0, None if np.array_equal(first, second) else "differs")
    with np.errstate(invalid="ignore", over="ignore"):
        first, second = first.astype(np.float64), second.astype(np.float64)  # float16 sums would overflow
        apart = np.abs(first - second)
        largest = float(apart[np.isfinite(apart)].max(initial=0.0))
        finite = np.abs(second[np.isfinite(second)])
        absolute += of_largest * float(finite.max(initial=0.0))
        agree = np.allclose(first, second, RELATIVE_TOLERANCE, absolute, equal_nan=True)
    return Difference(largest, None if agree else f"differs by {largest:.3g}" if largest else "differs")
