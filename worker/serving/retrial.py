"""Rows that are tried again: as a batch of their own, later, until an answer or the end of the time for it.

Custom code asks for it, or a decoder whose schema is not known yet; for the latter there is no end of the time.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from worker.batch import Again, Batch, Origin, pick

LONGEST_PAUSE_S = 10.0
"""A wait that custom code did not ask for itself grows up to this."""

LONGEST_WAIT_S = 0.25
"""Between two tries of rows that wait for what somebody else asks for: looking whether it is there costs next to nothing."""

log = structlog.get_logger()


def postpone(batch: Batch, retry_s: float, now_ns: int) -> None:
    """Put the postponed rows of a finished batch into ``batch.again``; where their time is over, reject them.

    Args:
        retry_s: how long after their first try rows may be tried again.
        now_ns: monotonic clock.
    """
    assert batch.feed is not None
    assert batch.outcomes is not None
    postponed = batch.feed.postponed
    origin = batch.origin or Origin(batch, range(len(batch)), 0, now_ns)
    tries = origin.tries + 1
    asked_s = max(row.after_s for row in postponed.values())
    limited = any(row.limited for row in postponed.values())
    longest_s = LONGEST_PAUSE_S if limited else LONGEST_WAIT_S
    pause_s = max(asked_s, min(asked_s * 2.0 ** min(origin.tries, 30), longest_s))
    waited_s = (now_ns - origin.since_ns) / 1e9
    rows = sorted(postponed)
    if limited and waited_s + pause_s > retry_s:
        told = f" (tried {tries} times in {waited_s:.1f} s)" if tries > 1 else ""
        for row, why in postponed.items():
            if why.limited:
                rejection = why.rejection
                batch.outcomes.rejected[row] = replace(
                    rejection, message=rejection.message + told, attempts=tries
                )
        rows = [row for row in rows if not postponed[row].limited]
        if not rows:
            return
    if tries == 1 and limited:
        log.warning(
            "records wait to be tried again",
            pipeline=batch.route.name,
            records=len(rows),
            first=str(next(iter(postponed.values())).rejection.message),
            after_s=pause_s,
        )
    again = _some(batch, rows, Origin(origin.batch, pick([*origin.rows], rows), tries, origin.since_ns))
    batch.again = Again(again, now_ns + round(pause_s * 1e9))


def part_of(batch: Batch, rows: list[int], now_ns: int) -> Batch:
    """Some rows of a batch as a batch of their own, whose outcomes :func:`merge` gives back.

    Args:
        now_ns: monotonic clock.
    """
    return _some(batch, rows, Origin(batch, rows, 0, now_ns))


def _some(batch: Batch, rows: list[int], origin: Origin) -> Batch:
    opened, renamed = batch.payloads is not batch.columns.values, batch.headers is not batch.columns.headers
    return Batch(
        batch.slab,
        pick([*batch.rows], rows),
        batch.columns.select(rows),
        batch.route,
        batch.servable,
        batch.taken_ns,
        batch.taken_ms,
        batch.late_us[rows] if batch.late_us is not None else None,
        pick(batch.payloads, rows) if opened else [],
        pick(batch.headers, rows) if renamed else [],
        {index for index, row in enumerate(rows) if row in batch.to_open} if batch.to_open else set(),
        fetch_us=batch.fetch_us[rows] if batch.fetch_us is not None else None,
        deadlines=batch.deadlines.part(rows) if batch.deadlines is not None else None,
        origin=origin,
        trial=batch.trial,
    )


def merge(batch: Batch) -> None:
    """Give the outcomes of a further try, or of a part, to the batch that its rows belong to."""
    origin, found = batch.origin, batch.outcomes
    assert origin is not None
    assert found is not None
    whole = origin.batch
    assert whole.outcomes is not None
    bodies = whole.outcomes.bodies
    for body, its in zip(found.bodies, origin.rows, strict=True):
        bodies[its] = body
    if not found.rejected and not found.dropped and found.headers is None:
        _add(whole, batch)
        return
    for row, its in enumerate(origin.rows):
        if row in found.rejected:
            whole.outcomes.rejected[its] = found.rejected[row]
        if row in found.dropped:
            whole.outcomes.dropped.add(its)
        if found.headers is not None:
            whole.outcomes.headers = whole.outcomes.headers or [None] * len(whole)
            whole.outcomes.headers[its] = found.headers[row]
    _add(whole, batch)


def _add(whole: Batch, batch: Batch) -> None:
    """What counts for all rows together."""
    for run in batch.runs:
        run.places = batch.origin.rows if batch.origin is not None else None
    whole.runs += batch.runs
    whole.aside += batch.aside
    whole.items += batch.items
    whole.sick = whole.sick or batch.sick
    whole.finished_ns = batch.finished_ns
