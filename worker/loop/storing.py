"""Results that are written to a store before they are sent: the pool's protocol, around the pool.

A batch that has such results comes back only when all of them are written. Writing runs on I/O threads. A store that is
away is waited for: the batch's slab then keeps its place, and the bytes of its results stay in the byte budget.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

from worker.batch import Aside, Batch, Lane, Partition
from worker.loop.awaited import Awaited, Log, Waits
from worker.loop.io_threads import Calls
from worker.loop.pool import InlinePool, Returned, ThreadPool
from worker.loop.slab import Slab
from worker.outside import Away, Need

BATCHES_MAX = 8
"""Batches whose results are being written; beyond, no new batch is begun."""
PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(slots=True, eq=False)
class _Job:
    aside: Aside
    batch: Batch
    tries: int = 0

    def __lt__(self, other: _Job) -> bool:
        return id(self) < id(other)


class Storing:
    """See the module. The loop's thread alone uses it, except where the pool says otherwise.

    Args:
        concurrency: most results written at once.
        clock_ns: monotonic nanoseconds. wall_ms: Unix milliseconds.
    """

    def __init__(
        self,
        pool: ThreadPool | InlinePool,
        calls: Calls,
        concurrency: int,
        log: Log,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._pool = pool
        self._calls = calls
        self._concurrency = concurrency
        self._clock_ns = clock_ns
        self._awaited = Awaited(log, clock_ns, wall_ms)
        self._left: dict[int, tuple[Returned, int]] = {}
        """By the identity of the batch: what goes back when the last of so many results is written."""
        self._todo: list[_Job] = []
        self._parked: list[tuple[int, _Job]] = []
        self._active = 0

    @property
    def outstanding(self) -> int:
        """Batches submitted and not collected."""
        return self._pool.outstanding + len(self._left)

    @property
    def serial(self) -> bool:
        """Whether batches run one after the other, in the order in which they are submitted."""
        return self._pool.serial

    def free(self, lanes: Collection[Lane]) -> bool:
        """Whether a batch submitted now to any of these lanes would not just queue up."""
        return len(self._left) < BATCHES_MAX and self._pool.free(lanes)

    def submit(self, batch: Batch) -> None:
        self._pool.submit(batch)

    def trying_again(self) -> list[Batch]:
        """See the pool."""
        return self._pool.trying_again()

    def oldest(self) -> Batch | None:
        """The batch that has been worked on for longest; for any thread to ask."""
        return self._pool.oldest()

    def nudge(self) -> None:
        """Let whoever waits in :meth:`collect` go on; for any thread."""
        self._pool.nudge()

    def close(self, timeout_s: float) -> bool:
        self._calls.close()
        return self._pool.close(timeout_s)

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        """Batches that are back, with everything written; waits up to ``timeout_s`` for the first."""
        found = []
        for back in self._pool.collect(timeout_s):
            if back.error is not None or back.batch.sick is not None or not back.batch.aside:
                found.append(back)
            else:
                self._begin(back)
        for ended in self._calls.back():
            self._active -= 1
            job: _Job = ended.job
            if isinstance(ended.error, Away):
                self._again(job, str(ended.error))
            elif ended.error is not None:
                raise ended.error
            elif (done := self._written(job)) is not None:
                found.append(done)
        self._start()
        return found

    def waits(self) -> dict[Partition, Waits]:
        """What the partitions wait for whose results are not written."""
        found: dict[Partition, Waits] = {}
        for back, left in self._left.values():
            aside = back.batch.aside[0]
            waits = self._awaited.told(Need(aside.what, aside.place), (id(back), left))
            found |= dict.fromkeys(cast("Slab", back.batch.slab).turn.ends, waits)
        return found

    def _begin(self, back: Returned) -> None:
        batch = back.batch
        cast("Slab", batch.slab).claim.adjust(_bytes(batch))
        self._left[id(batch)] = back, len(batch.aside)
        self._todo += [_Job(aside, batch) for aside in batch.aside]

    def _start(self) -> None:
        now_ns = self._clock_ns()
        while self._parked and self._parked[0][0] <= now_ns:
            self._todo.insert(0, heapq.heappop(self._parked)[1])
        while self._todo and self._active < self._concurrency:
            job = self._todo.pop(0)
            self._active += 1
            self._calls.start(job, job.aside.put)

    def _again(self, job: _Job, why: str) -> None:
        self._awaited.away(Need(job.aside.what, job.aside.place), why)
        job.tries += 1
        pause_s = min(PAUSE_S * 2 ** min(job.tries - 1, 10), LONGEST_PAUSE_S)
        heapq.heappush(self._parked, (self._clock_ns() + int(pause_s * 1e9), job))

    def _written(self, job: _Job) -> Returned | None:
        """A result is written; the batch that goes back with it, where it was the last one."""
        self._awaited.answered(job.aside.place)
        back, left = self._left[id(job.batch)]
        if left > 1:
            self._left[id(job.batch)] = back, left - 1
            return None
        del self._left[id(job.batch)]
        cast("Slab", job.batch.slab).claim.adjust(-_bytes(job.batch))
        job.batch.aside = []
        return back


def _bytes(batch: Batch) -> int:
    return sum(aside.nbytes for aside in batch.aside)
