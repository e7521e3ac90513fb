"""Memory for batch tensors that is used again.

A large block goes back to the system when it is freed, so that what is resident stays bounded
(:func:`worker.app._give_back_large_blocks`). A batch of pictures is such a block, and to have the system find and
clear its pages anew for every batch costs about as much as decoding a tenth of it.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SMALLEST_BYTES = 1 << 20
"""Smaller arrays stay with the allocator anyway."""
KEPT_BYTES = 32 << 20
"""Most that is kept for later, all blocks together."""


class KeptMemory:
    """Arrays whose memory is kept for the next array of the same size.

    An array owns its memory like any other: it is kept when the last reference to it and its views is gone, so it
    cannot be used again too early, whoever holds the array.
    """

    def __init__(self) -> None:
        self._free: list[Array] = []
        """Blocks that no array uses, the one freed last at the end. No lock: a block is given back wherever its array
        dies, also inside whatever a lock would guard; each step on the list is whole by itself."""

    @property
    def kept_bytes(self) -> int:
        """What lies ready now."""
        return sum(block.nbytes for block in self._free)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new C-order array, its content undefined."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST_BYTES or dtype.hasobject:
            return np.empty(shape, dtype)
        block = self._taken(nbytes)
        memory = (ctypes.c_byte * nbytes).from_buffer(block)  # type: ignore[arg-type]
        # the array's base is this object: numpy keeps it for as long as there is a view
        weakref.finalize(memory, self._keep, block).atexit = False
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    def _taken(self, nbytes: int) -> Array:
        """A block of this size; one of another size makes way, it would only lie there."""
        try:
            block = self._free.pop()
        except IndexError:
            return np.empty(nbytes, np.uint8)
        return block if block.nbytes == nbytes else np.empty(nbytes, np.uint8)

    def _keep(self, block: Array) -> None:
        if self.kept_bytes + block.nbytes <= KEPT_BYTES:
            self._free.append(block)
