"""Outcomes beside the records they answer, in the order of the slab."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast

from worker.batch import Batch, Columns, Outcomes, Route, Servable, Span
from worker.loop.epochs import Epochs
from worker.loop.slab import Slab


@dataclass(slots=True)
class Sheet:
    """Rows to be published: the records, the route of each and what became of each. Every part counts rows alike."""

    columns: Columns
    routes: Sequence[Route | None]
    """None where no pipeline takes the record."""
    servables: Mapping[Route, Servable]
    """Who answered the rows of each route."""
    one_route: bool
    """Every row has the route of the first one."""
    others: Mapping[int, Servable]
    """Who answered the rows that a candidate answered."""
    outcomes: Outcomes
    spans: list[Span]
    """The rows whose partition is still ours; no other row is published."""

    def servable_of(self, row: int, route: Route) -> Servable:
        """Who answered a row of this route."""
        return self.others.get(row) or self.servables[route]


def sheet_of_slab(slab: Slab, epochs: Epochs) -> Sheet:
    """What is left to publish of a slab: all of it, or the rows that :func:`sheet_of_batch` did not have."""
    spans = slab.live_spans(epochs)
    if slab.early:
        spans = list(_outside(spans, slab.early))
    return Sheet(slab.columns, slab.routes, slab.servables, slab.one_route, slab.others, lay_out(slab), spans)


def sheet_of_batch(batch: Batch, epochs: Epochs) -> Sheet:
    """The rows of one batch of a slab. The work grows with the batch, not with the slab."""
    slab = cast("Slab", batch.slab)
    assert batch.outcomes is not None
    spans = []
    for span in slab.live_spans(epochs):
        start, stop = bisect_left(batch.rows, span.start), bisect_left(batch.rows, span.stop)
        if start < stop:
            spans.append(replace(span, start=start, stop=stop))
    return Sheet(
        batch.columns,
        [batch.route] * len(batch),
        {batch.route: batch.servable},
        True,
        {},
        batch.outcomes,
        spans,
    )


def lay_out(slab: Slab) -> Outcomes:
    """The outcomes of all rows in slab order; the batch's own where one batch is the whole slab."""
    rows = len(slab.columns)
    if slab.decided is None and len(slab.batches) == 1 and len(slab.batches[0]) == rows:
        outcomes = slab.batches[0].outcomes
        assert outcomes is not None
        return outcomes
    whole = Outcomes.empty(rows)
    if slab.decided is not None:
        # Admission may have decided about more rows than fitted into the slab.
        whole.bodies = slab.decided.bodies[:rows]
        whole.headers = slab.decided.headers[:rows] if slab.decided.headers is not None else None
        whole.rejected = {row: why for row, why in slab.decided.rejected.items() if row < rows}
        whole.dropped = {row for row in slab.decided.dropped if row < rows}
    for batch in slab.batches:
        lay_in(whole, batch)
    return whole


def lay_in(whole: Outcomes, batch: Batch) -> None:
    """Put a batch's outcomes into the rows that the batch has in its slab."""
    part = batch.outcomes
    assert part is not None
    if isinstance(batch.rows, range):
        whole.bodies[batch.rows.start : batch.rows.stop] = part.bodies
    else:
        for row, body in zip(batch.rows, part.bodies, strict=True):
            whole.bodies[row] = body
    if part.headers is not None:
        if whole.headers is None:
            whole.headers = [None] * len(whole.bodies)
        for row, headers in zip(batch.rows, part.headers, strict=True):
            whole.headers[row] = headers
    for index, rejection in part.rejected.items():
        whole.rejected[batch.rows[index]] = rejection
    for index in part.dropped:
        whole.dropped.add(batch.rows[index])


def _outside(spans: list[Span], rows: Set[int]) -> Iterator[Span]:
    """The parts of spans that have none of these rows."""
    for span in spans:
        start = None
        for row in range(span.start, span.stop + 1):
            outside = row < span.stop and row not in rows
            if outside and start is None:
                start = row
            elif not outside and start is not None:
                yield replace(span, start=start, stop=row)
                start = None
