"""Runs the largest padded batch once at start, so that its memory is part of what the process takes when it is warm."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from worker.batch import Array
from worker.model.made_up import FIRST, batch_of, made_up
from worker.serving.ragged import Ragged
from worker.serving.servable import Model

WARM_S = 2.0
"""A run that would take longer is left out: the process would be ready too late."""
_FIRST_LENGTH = 64
"""Positions of the item that is timed first."""


def warm_longest(
    model: Model, ragged: Ragged | None, max_size: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, int] | None:
    """Run as many of the longest items together as one run may have; returns how many of which length, None if it did not.

    Without this a language model's first long texts would take memory that nobody has counted.
    """
    if ragged is None:
        return None
    longest = min((p.longest for p in ragged.padding.values() if p.longest is not None), default=None)
    most = ragged.positions_limit()
    if longest is None or most is None:
        return None
    try:
        short_s = _run_s(model, ragged, min(_FIRST_LENGTH, longest), 1, clock)
        times = longest / min(_FIRST_LENGTH, longest)
        if short_s * times**1.5 > WARM_S:  # attention grows with the square, the rest with the length
            return None
        long_s = _run_s(model, ragged, longest, 1, clock)
        count = max(1, min(max_size, most // longest, int(WARM_S / max(long_s, 1e-6))))
        if count > 1:
            _run_s(model, ragged, longest, count, clock)
    except Exception:  # a record that fails alike says why
        return None
    return count, longest


def _run_s(model: Model, ragged: Ragged, length: int, count: int, clock: Callable[[], float]) -> float:
    """Seconds of one run over made-up items of a length."""
    item = made_up(model.signature.inputs, length, FIRST[2])
    for name, padding in ragged.padding.items():
        item[name] = _of_length(item[name], padding.axis + 1, length)
    began = clock()
    model.run(batch_of(item, count))
    return clock() - began


def _of_length(array: Array, axis: int, length: int) -> Array:
    whole: Array = np.repeat(array.take([0], axis), length, axis) if array.shape[axis] != length else array
    return whole
