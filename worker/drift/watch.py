"""Watches one pipeline: how the figures of some of its records in the last window compare with the profile.

Threads of the pool add figures; the main loop asks now and then what became of them. Which records are measured follows from
what that costs: at most :data:`CPU_SHARE` of the processor time of this process, and at most :data:`RATE` a second. They are taken
evenly out of a batch.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.batch import Array
from worker.drift.bins import Compared, NumberBins, TextBins, compared
from worker.drift.measured import Gathered, Measured
from worker.drift.profile import Profile

THRESHOLD = 0.2
"""From this index on a feature has drifted: the usual convention for a shift that matters."""
CLEARED = 0.15
"""Below this it is back: one that wavers around the threshold must not be told each time."""
LEAST_RECORDS = 100
"""With fewer in the window nothing is said: what chance adds would be as large as the threshold."""
SLICES = 6
"""The window moves on in steps of one of so many parts."""
CPU_SHARE = 0.01
"""Of the processor time of the process, for all its pipelines together."""
RATE = 256
"""Most records that are measured in a second, on average."""
GATHER = 512
"""Records whose figures are sorted into bins together."""
_MOST_NS = 80_000_000
"""Processor time that may be spent at the beginning, and that is saved up at most: some hundred records, about."""
_LATER_NS = 20_000_000
"""When nothing may be spent now, that is asked again after so long."""
_ROW_NS = 500_000
"""What a record costs, as long as that is not known."""


@dataclass(frozen=True, slots=True)
class News:
    """What a look has found."""

    psi: dict[str, float]
    """By feature, corrected for chance; empty while too few records were measured."""
    drifted: dict[str, float]
    """Features that have drifted since the look before, the worst one first."""
    back: list[str]
    """Features that are back since the look before."""


class Watch:
    """See the module.

    Args:
        window_s: seconds that the figures cover.
        clock_ns: monotonic. cpu_ns: processor time of the process.
    """

    def __init__(
        self,
        profile: Profile,
        window_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self.profile = profile
        self.share = CPU_SHARE
        """Of the processor time, for this pipeline."""
        self.measured = 0
        """Records that were measured since the start."""
        self._names = [*profile.features]
        self._features = [*profile.features.values()]
        self._sizes = np.array([len(feature.counts) for feature in self._features])
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._places = {name: place for place, name in enumerate(self._names)}
        self._expected = np.concatenate([feature.counts for feature in self._features])
        self._slice_ns = int(window_s * 1e9 / SLICES)
        self._clock_ns, self._cpu_ns = clock_ns, cpu_ns
        self._lock = threading.Lock()
        self._gathered = Gathered()
        self._now = _Slice.empty(len(self._expected))
        self._closed: deque[_Slice] = deque(maxlen=SLICES - 1)
        self._slice_due_ns = clock_ns() + self._slice_ns
        self._due_ns = 0
        self._row_ns = float(_ROW_NS)
        self._credit_ns = float(_MOST_NS)
        self._credited_ns = cpu_ns()
        self._drifted: set[str] = set()

    def chosen(self, rows: int, most: int) -> Sequence[int]:
        """Which rows of a batch of so many are to be measured, at most so many of them; for any thread."""
        now_ns = self._clock_ns()
        if now_ns < self._due_ns:
            return ()
        with self._lock:
            if now_ns < self._due_ns:
                return ()
            used_ns = self._cpu_ns()
            earned = self.share * (used_ns - self._credited_ns)
            self._credited_ns = used_ns
            self._credit_ns = min(self._credit_ns + earned, max(_MOST_NS, self._row_ns))
            wanted = min(most, rows, int(self._credit_ns / self._row_ns))
            self._due_ns = now_ns + (wanted * 1_000_000_000 // RATE or _LATER_NS)
            if wanted < 1:
                return ()
            self._credit_ns -= wanted * self._row_ns
        first = random.random()
        return [int((first + number) * rows / wanted) for number in range(wanted)]

    def add(self, measured: Measured, cost_ns: int) -> None:
        """Count the figures of records; for any thread.

        Args:
            cost_ns: processor time that measuring them took.
        """
        started_ns = time.thread_time_ns()
        with self._lock:
            self.measured += measured.records
            self._gathered.add(measured)
            if self._gathered.records >= GATHER:
                self._sort()
            cost_ns += time.thread_time_ns() - started_ns
            self._credit_ns += measured.records * self._row_ns - cost_ns
            self._row_ns += 0.2 * (cost_ns / measured.records - self._row_ns)

    def look(self) -> News:
        """Compare the last window with the profile; for the main loop."""
        with self._lock:
            self._sort()
            now_ns = self._clock_ns()
            while now_ns >= self._slice_due_ns:
                self._closed.append(self._now)
                self._now = _Slice.empty(len(self._expected))
                self._slice_due_ns += self._slice_ns
                if now_ns - self._slice_due_ns > SLICES * self._slice_ns:  # the process stood still
                    self._slice_due_ns = now_ns
            slices = [*self._closed, self._now]
        counts = np.sum([each.counts for each in slices], axis=0)
        records = sum(each.records for each in slices)
        if records < LEAST_RECORDS:
            return self._news({}, None)
        counts[self._starts + self._sizes - 1] = records - np.add.reduceat(counts, self._starts)
        found = compared(self._expected, counts, self._starts)
        psi = dict(zip(self._names, found.corrected.tolist(), strict=True))
        return self._news(psi, found if self._closed else None)

    def _news(self, psi: dict[str, float], found: Compared | None) -> News:
        """What has changed since the look before; nothing is said before a first part of the window is over."""
        if found is None:
            return News(psi, {}, [])
        real = dict(zip(self._names, found.real.tolist(), strict=True))
        over = {name: value for name, value in psi.items() if value > THRESHOLD and real[name]}
        new = sorted(over.keys() - self._drifted, key=lambda name: -over[name])
        back = sorted(name for name in self._drifted if psi[name] < CLEARED)
        self._drifted = (self._drifted | over.keys()) - {*back}
        return News(psi, {name: over[name] for name in new}, back)

    @property
    def drifted(self) -> bool:
        """Whether any feature has drifted and is not back."""
        return bool(self._drifted)

    def _sort(self) -> None:
        """Sort what was gathered into bins; with the lock held."""
        gathered, self._gathered = self._gathered, Gathered()
        if not gathered.records:
            return
        places: list[Array] = []
        for name, numbers in gathered.columns():
            if (at := self._places.get(name)) is not None:
                bins = self._features[at].bins
                if isinstance(bins, NumberBins):
                    places.append(self._starts[at] + bins.places(numbers))
        for name, texts in gathered.texts.items():
            if (at := self._places.get(name)) is not None:
                kinds = self._features[at].bins
                if isinstance(kinds, TextBins):
                    places.append(self._starts[at] + kinds.places(texts))
        if places:
            self._now.counts += np.bincount(np.concatenate(places), minlength=len(self._expected))
        self._now.records += gathered.records


@dataclass(slots=True)
class _Slice:
    """A part of the window."""

    counts: Array
    """int64, per bin of all features; those of missing values stay 0."""
    records: int

    @classmethod
    def empty(cls, bins: int) -> _Slice:
        return cls(np.zeros(bins, np.int64), 0)
