"""Switches of the interpreter and of the C library that the worker sets for its own process."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

SWITCH_INTERVAL_S = 0.0002
"""With the interpreter's default of 5 ms, one busy thread delays a model run of 50 us a hundredfold."""
COLLECT_EVERY = 50_000
"""New objects after which the collector looks for cycles. The default of 700 walks through all records in flight
several times per slab. That costs 8 % of the CPU for small records and finds nothing: records form no cycles."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers for the two parameters."""
M_ARENA_MAX = -8
"""As above."""
KEPT_BYTES, LARGE_BLOCK_BYTES = 64 << 20, 16 << 20
FETCHED_BLOCK_BYTES = 1 << 20


def prepare() -> None:
    """Set the switches. Call this once, before models are loaded."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _fix_allocator()
    gc.set_threshold(COLLECT_EVERY)


def loaded() -> None:
    """Exclude everything that exists now, models included, from garbage collection: it lives as long as the process."""
    gc.freeze()


def share_memory() -> None:
    """For workers that fetch payloads: all threads take memory from one pool, and large blocks go back at once.

    Call this before threads are made. glibc gives threads pools of their own, and keeps what is freed in each. Payloads
    that many I/O threads fetch would leave several times the byte budget there (measured: 445 MiB over the warm process
    for a budget of 96 MiB and objects of 8 MB; 100 MiB so).
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, FETCHED_BLOCK_BYTES)


def _fix_allocator() -> None:
    """Keep up to 64 MiB of freed memory for reuse; return blocks above 16 MiB to the system at once.

    glibc adapts both limits by itself, and where they end depends on what happens to be freed first: each freed
    mapped block raises the size from which blocks are mapped, up to 32 MB, and sets the kept memory to twice that.
    Kafka responses arrive in blocks of a few MB. When such a block goes back to the system, the kernel has to make
    the pages of the next one anew: with a limit of 1 MiB, JSON records cost 1.1 times the CPU and raw frames of
    150 KB cost 3 times. Memory held by frames of 8 MB and more stays inside the worker's bound
    (``scripts/bench memory``). Other allocators and C libraries ignore the call.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
