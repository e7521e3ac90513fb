"""A slab: the records of one take, or of a few, with everything that is known of them on their way.

Three parts have one owner each: the records and what admission decided never change once the slab is closed,
:class:`Turn` belongs to the window, :class:`worker.loop.receipt.Receipt` to the outbox and the delivery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.batch import Batch, Columns, Outcomes, Partition, Route, Servable, Span
from worker.errors import Rejection
from worker.loop.budget import Claim
from worker.loop.epochs import Epochs
from worker.loop.receipt import Receipt


@dataclass(slots=True)
class Turn:
    """A slab's place in the order. Only the window writes it."""

    ends: dict[Partition, int] = field(default_factory=dict)
    """Next offset of each partition that the slab still speaks for; a new epoch takes its partition out."""
    waiting_for: int = 0
    """Batches that are not back from the pool."""
    blocked_by: int = 0
    """Partitions in which an earlier slab is not released yet."""
    finished_ns: int = 0
    """Monotonic clock when the last batch came back."""


@dataclass(slots=True, eq=False)
class Slab:
    """Records that are taken, released and acknowledged together."""

    columns: Columns
    """The records. The window lets go of them when the producer has every output."""
    spans: list[Span]
    taken_ns: int
    """Monotonic clock when the first record was taken."""
    taken_ms: float
    """Unix milliseconds of the same moment."""
    claim: Claim
    """Its bytes: keys, values, headers, tensors, finished bodies."""
    late_us: list[int] = field(default_factory=list)
    """Per row the microseconds between the first take and its own; empty when all rows came with one take."""
    routes: Sequence[Route | None] = ()
    """The route of every row; None where no route takes the record."""
    servables: Mapping[Route, Servable] = field(default_factory=dict)
    """Who answers the rows of each route; pinned when the slab was closed."""
    others: dict[int, Servable] = field(default_factory=dict)
    """Who answers the rows that a candidate answers; a batch that is answered again takes its rows out."""
    one_route: bool = False
    """Every row has the same route: nothing needs to be looked at row by row."""
    decided: Outcomes | None = None
    """Outcomes of rows that need no model (tombstone, too large, expired, unroutable); None when there are none."""
    batches: list[Batch] = field(default_factory=list)
    turn: Turn = field(default_factory=Turn)
    receipt: Receipt = field(default_factory=Receipt)
    released_ns: int = 0
    """Monotonic clock when it was released; 0 before."""
    early: set[int] = field(default_factory=set)
    """Rows published before the slab's turn (``order: none``)."""
    rejected: dict[int, Rejection] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    """Rows without a result, for the counters; known once the slab is released."""
    traced: list[Any] = field(default_factory=list)
    """What the tracer knows of its traced rows; nobody else looks into it."""

    def live_spans(self, epochs: Epochs) -> list[Span]:
        """The spans whose records are still ours."""
        return [span for span in self.spans if epochs.current(span)]

    def __repr__(self) -> str:
        spans = ", ".join(
            f"{span.partition.topic}/{span.partition.number} to {span.next_offset}" for span in self.spans
        )
        turn = self.turn
        state = (
            f"waits for {turn.waiting_for} batches"
            if turn.waiting_for
            else f"blocked in {turn.blocked_by} partitions"
            if turn.blocked_by
            else f"{self.receipt}"
        )
        return f"<Slab {len(self.routes)} records, {spans}; {state}>"
