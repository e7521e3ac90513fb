"""How soon a slab may follow the one before it.

A slab costs about the same whether it holds one record or fifty. A record that comes alone goes at once. When records
come closer together, slabs are kept so far apart that all of them together take at most ``WORK_SHARE`` of a core, but
never further apart than ``batching.max_wait_ms``. The cost of a slab is read from the process's CPU clock: it includes
the client's threads and the pool's, and it does not run while other processes do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WORK_SHARE = 0.1
"""Share of one core that quick answers may cost, as long as the only gain from waiting would be larger batches."""
MEMORY = 8
"""Over about so many slabs the cost is averaged."""


class Pace:
    """See the module.

    Args:
        longest_s: the longest time by which two slabs are kept apart.
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

    def keep_apart(self, longest_s: float) -> None:
        """Keep slabs apart by at most so long from the next one on."""
        self._longest_ns = int(longest_s * 1e9)

    def closed(self, full: bool) -> None:
        """A slab goes now. ``full``: records wait behind it, so the next slab need not wait."""
        used_ns = self._cpu_ns()
        if self._used_ns is not None:  # the time before the first slab was the start of the process
            self._cost_ns += (used_ns - self._used_ns - self._cost_ns) / MEMORY
        self._used_ns = used_ns
        apart_ns = 0 if full else min(self._longest_ns, int(self._cost_ns / WORK_SHARE))
        self.next_ns = self._clock_ns() + apart_ns
