"""Ten minutes in points of a second, and the last minute as counters: what the page draws and ``/state`` tells.

A point is kept as JSON already, about 200 bytes, so ten minutes cost little memory and nothing to send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import orjson

from worker.batch import FETCH, STAGES
from worker.telemetry.histogram import Histogram
from worker.telemetry.meters import PipelineCounts, Snapshot

POINTS = 600
"""Points kept: ten minutes."""
STACKED = (*STAGES[:2], FETCH, *STAGES[2:], "hold", "publish")
"""The stages of a record from its timestamp to the acknowledged result, in order."""
COLUMNS = (
    *("time_ms", "in", "out", "dead_letter", "dropped", "lag", "in_flight_bytes", "rss_bytes", "mean_batch"),
    *("p50_us", "p99_us"),
)
"""What a point holds: Unix milliseconds; records a second; records; bytes; bytes; items. The last two are lists in
microseconds, one number for each of ``STACKED`` and then the total; they are null in a second without records."""

MINUTE_S = 60.0
_KEEP_EVERY_S = 5.0


def point(second: Snapshot) -> bytes:
    """One point as JSON.

    Args:
        second: a snapshot whose counters cover the time since the last point; all pipelines count together.
    """
    per_s = 1 / second.interval_s if second.interval_s > 0 else 0.0
    counts = second.pipelines.values()
    lags = [state.lag for state in second.partitions.values() if state.lag is not None]
    batches, items = sum(each.batches for each in counts), sum(each.items for each in counts)
    p50_us: list[int] | None = None
    p99_us: list[int] | None = None
    if batches or any(each.ok for each in counts):
        stages = [merged(second, stage).percentiles(0.5, 0.99) for stage in (*STACKED, "total")]
        p50_us, p99_us = [low for low, _ in stages], [high for _, high in stages]
    return orjson.dumps(
        [
            second.time_ms,
            round(sum(each.taken for each in counts) * per_s, 2),
            round(sum(each.ok for each in counts) * per_s, 2),
            round(sum(each.dead_letter for each in counts) * per_s, 2),
            round(sum(each.dropped for each in counts) * per_s, 2),
            sum(lags) if lags else None,
            second.bytes_in_flight,
            second.rss_bytes,
            round(items / batches, 2) if batches else None,
            p50_us,
            p99_us,
        ]
    )


def merged(second: Snapshot, stage: str) -> Histogram:
    """The latency of one stage, in microseconds, over all pipelines."""
    found = [counts.stages_us[stage] for counts in second.pipelines.values() if stage in counts.stages_us]
    if len(found) == 1:
        return found[0]
    whole = Histogram()
    for histogram in found:
        if histogram.count:
            whole.merge(histogram)
    return whole


class History:
    """The points of the last ten minutes, oldest first."""

    def __init__(self) -> None:
        self._points: deque[bytes] = deque(maxlen=POINTS)

    def add(self, made: bytes) -> None:
        self._points.append(made)

    def json(self) -> bytes:
        """``{"columns": [...], "stages": [...], "points": [...]}``."""
        head = orjson.dumps({"columns": COLUMNS, "stages": (*STACKED, "total")})
        return head[:-1] + b',"points":[' + b",".join(self._points) + b"]}"


class LastMinute:
    """Snapshots of the last minute, one every few seconds; a pipeline without records costs none of them memory."""

    def __init__(self) -> None:
        self._kept: deque[Snapshot] = deque()

    def add(self, snapshot: Snapshot) -> None:
        """Note a snapshot since the start of the process."""
        if self._kept and snapshot.clock_s - self._kept[-1].clock_s < _KEEP_EVERY_S:
            return
        before = self._kept[-1].pipelines if self._kept else {}
        shared = {name: _same(before.get(name), counts) for name, counts in snapshot.pipelines.items()}
        self._kept.append(replace(snapshot, pipelines=shared))
        while len(self._kept) > 1 and snapshot.clock_s - self._kept[1].clock_s >= MINUTE_S:
            self._kept.popleft()

    def until(self, snapshot: Snapshot) -> Snapshot:
        """The same moment, with the counters of the last minute."""
        return snapshot.since(self._kept[0]) if self._kept else snapshot


def _same(before: PipelineCounts | None, now: PipelineCounts) -> PipelineCounts:
    """The earlier copy where nothing has happened since."""
    if before is None or (before.taken, before.in_flight, before.batches) != (
        now.taken,
        now.in_flight,
        now.batches,
    ):
        return now
    return before if before.swaps == now.swaps and before.refused == now.refused else now
