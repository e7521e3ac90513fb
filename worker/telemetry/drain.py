"""Seconds until a partition has no lag, at the rate of the last minute: what to alert on and to scale by.

A lag alone says little: 100,000 records are nothing at 400,000 records a second and a night at 3.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from worker.batch import Partition

WINDOW_S = 60.0
"""The rate is that of this long, or of as long as the partition has been known."""
KEEP_EVERY_S = 5.0
"""Distance of the positions that are kept, so that a partition costs a dozen numbers."""
KNOWN_S = 1.0
"""Shortest time from which a rate is made."""


class DrainRates:
    """The positions of partitions during the last minute."""

    def __init__(self) -> None:
        self._seen: dict[Partition, deque[tuple[float, int]]] = {}
        """For each partition (seconds, next offset that is not done), oldest first; the last one is the newest look."""

    def look(self, now_s: float, done: Iterable[tuple[Partition, int | None]]) -> None:
        """Note how far each partition is.

        Args:
            now_s: seconds of any clock that only grows.
            done: for each partition the next offset that is not done; None where that is not known. A partition that
                is missing here is forgotten, and one that goes back begins again.
        """
        seen = {}
        for partition, offset in done:
            if offset is None:
                continue
            kept = self._seen.get(partition)
            if kept is None or offset < kept[-1][1]:
                kept = deque([(now_s, offset)])
            elif len(kept) > 1 and kept[-1][0] - kept[-2][0] < KEEP_EVERY_S:
                kept[-1] = (now_s, offset)
            else:
                kept.append((now_s, offset))
            while len(kept) > 2 and now_s - kept[1][0] >= WINDOW_S:
                kept.popleft()
            seen[partition] = kept
        self._seen = seen

    def rate(self, partition: Partition) -> float | None:
        """Records a second of the last minute; None while that is not known."""
        kept = self._seen.get(partition)
        if kept is None or kept[-1][0] - kept[0][0] < KNOWN_S:
            return None
        return (kept[-1][1] - kept[0][1]) / (kept[-1][0] - kept[0][0])

    def seconds(self, partition: Partition, lag: int | None) -> float | None:
        """Lag divided by rate: 0 without lag, infinity where nothing moved, None while one of the two is not known."""
        if lag is None:
            return None
        if lag <= 0:
            return 0.0
        rate = self.rate(partition)
        if rate is None:
            return None
        return lag / rate if rate > 0 else math.inf


def drain_fields(seconds: float | None) -> dict[str, float | bool | None]:
    """The same for JSON, which has no infinity.

    Returns:
        ``seconds_to_drain``, null where it is infinite or not known, and ``moving``: null where it is not known, false
        where records wait and none was answered in the last minute.
    """
    if seconds is None:
        return {"seconds_to_drain": None, "moving": None}
    finite = math.isfinite(seconds)
    return {"seconds_to_drain": round(seconds, 3) if finite else None, "moving": finite}
