"""What the log says of lag: that more records come than are answered, how fast, and when the worker has caught up.

A long backlog alone is no news: a worker that starts has one and works it off.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from worker.batch import Partition
from worker.telemetry.story import Log, Pace, Scene

WINDOW_S = 10.0
"""Rates are those of this long."""
LEAST_S = 8.0
"""Shortest time from which a rate is made."""
LEAST_LAG = 10
"""Fewer records than this are no backlog."""
BEHIND_S = 5.0
"""A worker falls behind when its lag takes longer than this to answer, and grows."""
LOOKS = 3
"""So many looks in a row must say so: a batch or a commit brings records in lumps."""
CAUGHT_UP_S = 2.0
"""It has caught up when its lag takes less than this."""


class _Moment(NamedTuple):
    now_s: float
    places: dict[Partition, tuple[int, int]]
    """End and next offset that is not done."""


class _Rates(NamedTuple):
    lag: int
    in_per_s: float
    out_per_s: float
    grew: bool

    @property
    def wait_s(self) -> float:
        """How long the newest record waits at this rate."""
        return self.lag / self.out_per_s if self.out_per_s > 0 else float("inf") if self.lag else 0.0

    @property
    def drains(self) -> str:
        """When there is no lag any more, if nothing changes."""
        net = self.out_per_s - self.in_per_s
        return f"in {self.lag / net:.0f} s" if net > 0 else "never at this rate"


def _between(first: _Moment, last: _Moment) -> tuple[int, int]:
    """Records that arrived, and that were answered."""
    arrived = sum(end - first.places[place][0] for place, (end, _) in last.places.items())
    answered = sum(done - first.places[place][1] for place, (_, done) in last.places.items())
    return arrived, max(0, answered)


class Backlog:
    """Follows the lag of all partitions of this process together."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._moments: deque[_Moment] = deque()
        self._looks = 0
        self._since_s: float | None = None
        self._pace = Pace(30.0, 300.0)

    def look(self, scene: Scene) -> None:
        if scene.draining or not scene.brokers:
            self._moments.clear()  # ends are not known now
            return
        places = {
            partition: (state.end, state.done)
            for partition, state in scene.partitions.items()
            if state.end is not None and state.done is not None
        }
        if self._moments and self._moments[-1].places.keys() != places.keys():
            self._moments.clear()
            self._looks = 0
            if not places:
                self._since_s = None  # whoever has the partitions now tells
        self._moments.append(_Moment(scene.now_s, places))
        while len(self._moments) > 2 and scene.now_s - self._moments[1].now_s >= WINDOW_S:
            self._moments.popleft()
        if scene.now_s - self._moments[0].now_s >= LEAST_S and places:
            self._judge(self._rates(), scene.now_s)

    def _rates(self) -> _Rates:
        first, middle, last = self._moments[0], self._moments[len(self._moments) // 2], self._moments[-1]
        seconds = last.now_s - first.now_s
        arrived, answered = _between(first, last)
        lag = sum(max(0, end - done) for end, done in last.places.values())
        # in both halves: many records at once, which are being answered, are no trouble
        halves = _between(first, middle), _between(middle, last)
        grew = all(came > 1.1 * went for came, went in halves)
        return _Rates(lag, arrived / seconds, answered / seconds, grew)

    def _judge(self, rates: _Rates, now_s: float) -> None:
        figures = {
            "lag": rates.lag,
            "in_per_s": round(rates.in_per_s, 1),
            "out_per_s": round(rates.out_per_s, 1),
        }
        if self._since_s is not None:
            if rates.lag < LEAST_LAG or rates.wait_s < CAUGHT_UP_S:
                self._log.info("caught up", after_s=round(now_s - self._since_s), **figures)
                self._since_s, self._looks = None, 0
            elif self._pace.due(now_s):
                self._pace.told(now_s)
                self._log.warning(
                    "still behind", **figures, drains=rates.drains, for_s=round(now_s - self._since_s)
                )
            return
        behind = rates.grew and rates.lag >= LEAST_LAG and rates.wait_s > BEHIND_S
        self._looks = self._looks + 1 if behind else 0
        if self._looks >= LOOKS:
            self._since_s = now_s
            self._pace = Pace(30.0, 300.0)
            self._pace.told(now_s)
            self._log.warning("falling behind", **figures, drains=rates.drains)
