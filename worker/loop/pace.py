"""How soon a slab may follow the one before it: as soon as that costs little.

A slab costs about the same whether it holds one record or fifty. So a record that comes alone goes at once, and
when records come closer together than that is worth, slabs are kept so far apart that all of them together take
at most ``WORK_SHARE`` of a core, but never further than ``batching.max_wait_ms``. What a slab costs is what the
process's CPU clock says, which counts the client's threads and the pool's too and does not run while others do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WORK_SHARE = 0.1
"""Of one core: what answering sooner may cost while there is nothing to be gained from waiting but batches."""
MEMORY = 8
"""About over how many slabs the cost is averaged."""


class Pace:
    """See the module.

    Args:
        longest_s: the furthest apart that two slabs are kept.
        clock_ns: monotonic nanoseconds. cpu_ns: CPU time of the process.
    """

    def __init__(
        self,
        longest_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._longest_ns = int(longest_s * 1e9)
        self._clock_ns = clock_ns
        self._cpu_ns = cpu_ns
        self._cost_ns = 0.0
        self._used_ns: int | None = None
        self.next_ns = 0
        """When the next slab may go, by ``clock_ns``."""

    def closed(self, full: bool) -> None:
        """A slab goes now; ``full``: records wait behind it, and the next one need not."""
        used_ns = self._cpu_ns()
        if self._used_ns is not None:  # what came before the first one was the start of the process
            self._cost_ns += (used_ns - self._used_ns - self._cost_ns) / MEMORY
        self._used_ns = used_ns
        apart_ns = 0 if full else min(self._longest_ns, int(self._cost_ns / WORK_SHARE))
        self.next_ns = self._clock_ns() + apart_ns
