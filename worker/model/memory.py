"""Memory of large batch tensors, kept for the next batch.

The allocator keeps freed blocks of up to 16 MiB; a larger one, such as the tensor of a batch of pictures, goes back to the
system as soon as it is freed. Then the system has to find and clear its pages again for the next batch, which costs about
as much as decoding a tenth of the pictures. Freed blocks of a batch are kept here instead, within a limit.
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
"""The allocator itself keeps smaller arrays for reuse."""
KEPT_BYTES = 32 << 20
"""Most bytes that are kept for later, all blocks together."""


class KeptMemory:
    """Arrays whose memory is kept for the next array of the same size.

    An array owns its memory like any other. The block becomes free when the last reference to the array and to its
    views is gone, so no holder of an array can see its memory used again.
    """

    def __init__(self) -> None:
        self._limit = KEPT_BYTES
        self._free: list[Array] = []
        """Blocks that no array uses, the one freed last at the end. There is no lock: an array may die while this very
        thread holds it. Every step on the list is atomic."""

    @property
    def kept_bytes(self) -> int:
        """Bytes that are free for the next array."""
        return sum(block.nbytes for block in self._free)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new C-order array of undefined content."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST_BYTES or dtype.hasobject:
            return np.empty(shape, dtype)
        block = self._taken(nbytes)
        memory = (ctypes.c_byte * nbytes).from_buffer(block)  # type: ignore[arg-type]
        # numpy keeps the array's base, this object, as long as there is a view of it
        weakref.finalize(memory, self._keep, block).atexit = False
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    def close(self) -> None:
        """Give back what is free, and from now on each block as soon as its array is gone."""
        self._limit = 0
        self._free.clear()

    def _taken(self, nbytes: int) -> Array:
        """A block of this size. A free block of another size is let go: such sizes do not come back."""
        try:
            block = self._free.pop()
        except IndexError:
            return np.empty(nbytes, np.uint8)
        return block if block.nbytes == nbytes else np.empty(nbytes, np.uint8)

    def _keep(self, block: Array) -> None:
        if self.kept_bytes + block.nbytes <= self._limit:
            self._free.append(block)
            if not self._limit:  # close() came between the two lines above
                self._free.clear()
