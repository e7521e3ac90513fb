"""A histogram with fixed logarithmic buckets for whole numbers: latencies in microseconds, batch sizes.

Values are counted in vectorised steps of at least ``TOGETHER`` values (about 0.03 us per value). The cost of a step is
mostly that of the call, so small batches are collected first. A bucket holds the values ``lower < value <= upper`` and
is at most 5 % wide, so a percentile taken from its middle is within 2.5 %. Every edge shown to Prometheus is also an
edge here, so the cumulative counts are exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LATENCY_EDGES_US = (
    *(50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000),
)
"""Upper edges of the latency buckets shown to Prometheus, in microseconds."""

BATCH_EDGES = tuple(2**power for power in range(13))
"""Upper edges of the batch-size buckets shown to Prometheus, in items."""


TOGETHER = 256
"""Fewest values counted in one step."""


class Histogram:
    """Counts by bucket, with the exact number, sum and maximum of the values (all >= 0).

    Only the owner's thread may use it, because reading counts the collected values too. Any thread may read a copy.
    """

    __slots__ = ("_count", "_counts", "_max", "_sum", "_waiting", "_waiting_values")

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(len(_EDGES) + 1, np.int64)
        self._count = 0
        self._sum = 0
        self._max = 0
        self._waiting: list[NDArray[np.int64]] = []
        self._waiting_values = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of values in each bucket."""
        self._count_waiting()
        return self._counts

    @property
    def count(self) -> int:
        return self._count + self._waiting_values

    @property
    def sum(self) -> int:
        self._count_waiting()
        return self._sum

    @property
    def max(self) -> int:
        self._count_waiting()
        return self._max

    def add(self, values: NDArray[np.int64] | int, count: int = 1) -> None:
        """Add an array of values, which the caller must not change afterwards, or one value ``count`` times."""
        if isinstance(values, np.ndarray):
            if not len(values):
                return
            self._waiting.append(values)
            self._waiting_values += len(values)
            if self._waiting_values >= TOGETHER:
                self._count_waiting()
        elif count:
            self._counts[bisect_left(_EDGES, values)] += count
            self._count += count
            self._sum += int(values) * count
            self._max = max(self._max, int(values))

    def _count_waiting(self) -> None:
        if self._waiting_values:
            values = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
            self._counts += np.bincount(_EDGE_ARRAY.searchsorted(values), minlength=len(self._counts))
            self._count += len(values)
            self._sum += int(values.sum())
            self._max = max(self._max, int(values.max()))
        self._waiting.clear()
        self._waiting_values = 0

    def percentiles(self, *shares: float) -> list[int]:
        """The nearest-rank percentile for each share of 0..1, within 2.5 %; zeros when there are no values."""
        if not self.count:
            return [0] * len(shares)
        ranks = np.maximum(1, np.ceil(np.array(shares) * self.count))
        buckets = self.counts.cumsum().searchsorted(ranks)
        return [self._middle(int(bucket)) for bucket in buckets]

    def cumulative(self, edges: Sequence[int]) -> list[int]:
        """How many values are <= each edge; exact for the edges declared above."""
        upto = self.counts.cumsum()
        return [int(upto[bisect_left(_EDGES, edge)]) for edge in edges]

    def copy(self) -> Histogram:
        twin = Histogram()
        twin.merge(self)
        return twin

    def merge(self, other: Histogram) -> None:
        """Add all values of the other histogram."""
        self._counts += other.counts
        self._count += other._count
        self._sum += other._sum
        self._max = max(self._max, other._max)

    def since(self, earlier: Histogram) -> Histogram:
        """The values added since ``earlier``, a copy of this histogram; ``max`` is exact if it is a new maximum."""
        added = Histogram()
        added._counts = self.counts - earlier.counts
        added._count = self.count - earlier.count
        added._sum = self.sum - earlier.sum
        if added._count:
            highest = int(added._counts.nonzero()[0][-1])
            added._max = self.max if self.max > earlier.max else self._middle(highest)
        return added

    def _middle(self, bucket: int) -> int:
        """The value that represents a bucket: its middle, or the maximum for the last bucket, which is open-ended."""
        return min(_MIDDLES[bucket], self.max) if bucket < len(_MIDDLES) else self.max


def _edges() -> list[int]:
    """0, 1, 2, ... then 5 % apart up to 10^12 (11 days in microseconds), with the edges shown to Prometheus."""
    edges = {0, *LATENCY_EDGES_US, *BATCH_EDGES}
    edge = 0
    while edge < 10**12:
        edge = max(edge + 1, int(edge * 1.05))
        edges.add(edge)
    return sorted(edges)


_EDGES = _edges()
_EDGE_ARRAY = np.array(_EDGES, np.int64)
_MIDDLES = [(lower + 1 + upper) // 2 for lower, upper in zip([-1, *_EDGES], _EDGES, strict=False)]
