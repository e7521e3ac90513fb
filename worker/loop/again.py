"""The records of a batch as a batch for another servable: because the first one is sick, or beside it."""

from __future__ import annotations

from typing import cast

from worker.batch import Batch, Servable
from worker.loop.openslab import lay_in_fetched
from worker.loop.slab import Slab


def answered_by(servable: Servable, batch: Batch) -> Batch:
    """The same records for another servable, in the place that the batch has in its slab.

    A record whose deadline has passed meanwhile stays expired. The byte budget holds the batch already.
    """
    slab = cast("Slab", batch.slab)
    fresh = twin_of(servable, batch)
    fresh.slab, fresh.deadlines = slab, batch.deadlines
    for row in batch.rows:
        slab.others.pop(row, None)
    slab.batches = [fresh if other is batch else other for other in slab.batches]
    return fresh


def twin_of(servable: Servable, batch: Batch) -> Batch:
    """The same records for another servable, as they were before the pool saw them, in no slab.

    Wrapped records are to be opened again; what was fetched is not fetched again.
    """
    fresh = Batch(
        None,
        batch.rows,
        batch.columns,
        batch.route,
        servable,
        batch.taken_ns,
        batch.taken_ms,
        batch.late_us,
        cost_bytes=batch.cost_bytes,
    )
    opening, headers = batch.route.opening, batch.columns.headers
    if opening is not None and (opening.always or any(headers)):
        fresh.to_open = {row for row in range(len(batch)) if opening.always or opening.applies(headers[row])}
    if batch.columns.fetched is not None:
        lay_in_fetched(fresh, batch.columns.fetched)
    return fresh
