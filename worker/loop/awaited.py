"""Who outside is away, since when, and which partitions wait for that: for the log and for whoever watches progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from worker.loop.line import Record
from worker.outside import Need


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Waits:
    """What one partition waits for."""

    mark: Hashable
    """Changes whenever something of it moves."""
    sentence: str
    """What it waits ``for``, for people."""
    away: bool
    """The one it waits for is away: that is not the worker's fault."""
    held: bool = False
    """It is held back on purpose, and not for too long."""


class Awaited:
    """See the module. The loop's thread alone uses it.

    Args:
        clock_ns: monotonic nanoseconds. wall_ms: Unix milliseconds.
    """

    def __init__(self, log: Log, clock_ns: Callable[[], int], wall_ms: Callable[[], float]) -> None:
        self._log = log
        self._clock_ns = clock_ns
        self._wall_ms = wall_ms
        self._away: dict[str, tuple[int, str]] = {}
        """Place -> since when: monotonic nanoseconds, and the time of day as text."""

    def away(self, need: Need, why: str) -> None:
        """A place could not be reached."""
        if need.place in self._away:
            return
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_ms() / 1000))
        self._away[need.place] = self._clock_ns(), since
        self._log.warning("away", place=need.place, error=why, first=need.what)

    def answered(self, place: str) -> None:
        """A place has answered."""
        if place in self._away:
            since_ns, _ = self._away.pop(place)
            self._log.info("back", place=place, away_s=round((self._clock_ns() - since_ns) / 1e9, 1))

    def of(self, record: Record) -> Waits:
        """What the first record of a partition waits for."""
        asked = record.asked
        if asked is None:
            return Waits((record.offset, record.ready), "to be decoded", False)
        return self.told(asked.need, (record.offset, asked.tries, asked.sized is None))

    def told(self, need: Need, mark: Hashable) -> Waits:
        """What somebody waits for who needs this."""
        if need.place in self._away:
            return Waits(mark, f"for the {need.place}, away since {self._away[need.place][1]}", True)
        return Waits(mark, f"for {need.what}", False)
