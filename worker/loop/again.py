"""A batch whose servable turned out to be sick, answered again by another one."""

from __future__ import annotations

from typing import cast

from worker.batch import Batch, Servable
from worker.loop.openslab import lay_in_fetched
from worker.loop.slab import Slab


def answered_by(servable: Servable, batch: Batch) -> Batch:
    """The same records as a batch for another servable; it takes the other's place in the slab.

    It is as it was before the pool saw it: wrapped records are opened again, and what was fetched is not fetched again. A
    record whose deadline has passed meanwhile stays expired. The byte budget holds the batch already.
    """
    slab = cast("Slab", batch.slab)
    fresh = Batch(
        slab,
        batch.rows,
        batch.columns,
        batch.route,
        servable,
        batch.taken_ns,
        batch.taken_ms,
        batch.late_us,
        deadlines=batch.deadlines,
        cost_bytes=batch.cost_bytes,
    )
    opening = batch.route.opening
    if opening is not None:
        headers = batch.columns.headers
        fresh.to_open = {row for row in range(len(batch)) if opening.always or opening.applies(headers[row])}
    if batch.columns.fetched is not None:
        lay_in_fetched(fresh, batch.columns.fetched)
    slab.batches = [fresh if other is batch else other for other in slab.batches]
    return fresh
