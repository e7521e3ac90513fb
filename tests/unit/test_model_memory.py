"""Memory of batch tensors: used again, never too early, and not without end."""

from __future__ import annotations

import gc

import numpy as np

from worker.model.memory import KEPT_BYTES, SMALLEST_BYTES, KeptMemory

FLOATS = np.dtype(np.float32)
LARGE = (SMALLEST_BYTES // 4, 2)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_the_memory_of_a_dead_array_is_used_again() -> None:
    memory = KeptMemory()
    first = memory.empty(LARGE, FLOATS)
    first[:] = 1
    place = address(first)
    del first
    assert address(memory.empty(LARGE, FLOATS)) == place


def test_an_array_or_any_view_of_it_keeps_its_memory() -> None:
    memory = KeptMemory()
    first = memory.empty(LARGE, FLOATS)
    first[:] = 1
    view = first[3:5, 1]
    del first
    gc.collect()
    other = memory.empty(LARGE, FLOATS)
    other[:] = 2
    assert view.tolist() == [1, 1]


def test_small_arrays_and_strings_are_ordinary_ones() -> None:
    memory = KeptMemory()
    assert memory.empty((3,), FLOATS).base is None
    assert memory.empty(LARGE, np.dtype(object)).base is None


def test_no_more_is_kept_than_stated() -> None:
    """A block too large to be kept, more blocks than may be, and blocks of a size that is not asked for any more."""
    memory = KeptMemory()
    memory.empty((KEPT_BYTES + 1,), np.dtype(np.uint8))
    assert memory.kept_bytes == 0
    size = KEPT_BYTES // 3
    many = [memory.empty((size,), np.dtype(np.uint8)) for _ in range(5)]
    many.clear()
    assert memory.kept_bytes == 3 * size
    others = [memory.empty(LARGE, FLOATS) for _ in range(3)]
    assert memory.kept_bytes == 0
    del others
    assert memory.kept_bytes == 3 * SMALLEST_BYTES * 2
