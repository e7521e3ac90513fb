"""Slabs in flight: order, bytes, epochs, positions, what may be committed. Pure: no clock, no Kafka, no threads.

Only this object moves a position. A slab passes four gates, each once:

    admit -> returned (all batches back) -> released (its turn in every partition) -> settled (outputs acknowledged)

Per partition there are two lines of slabs in the order they were taken: those not yet released and those not
yet settled. A slab is released when it is complete and first in the line of every partition it holds records
of; a partition's position moves over the slabs at the head of its second line that are settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from worker.batch import Batch, Columns, Outcomes, Partition, Route, Servable, Span, total_bytes
from worker.errors import Rejection
from worker.loop.receipt import Receipt


@dataclass(slots=True, eq=False)
class Slab:
    """Records taken together, the batches made of them, and how far they have come."""

    columns: Columns
    """The records themselves; let go once every output is with the producer."""
    spans: list[Span]
    taken_ns: int
    taken_ms: float
    late_us: list[int] = field(default_factory=list)
    """Per row how many microseconds after the first it was taken; empty when all came with one take."""
    payload_bytes: int = 0
    """Keys, values, headers and finished bodies, held against the budget until the outputs are handed to the producer."""
    routes: Sequence[Route | None] = ()
    """The route of every row; None where no route takes the record."""
    servables: Mapping[Route, Servable] = field(default_factory=dict)
    """Who answers the rows of each route; pinned when the slab was closed."""
    one_route: bool = False
    """Every row goes the same way: nothing needs to be looked at row by row."""
    settled: Outcomes | None = None
    """Outcomes of rows that need no model: tombstones, too large, expired, unroutable."""
    batches: list[Batch] = field(default_factory=list)
    early: set[int] = field(default_factory=set)
    """Rows published before the slab's turn (``order: none``)."""
    rejected: dict[int, Rejection] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    """Rows that gave no result, for the counters; known once it is released."""
    ends: dict[Partition, int] = field(default_factory=dict)
    """Next offset per partition this slab still speaks for; a bumped epoch takes its partition out."""
    waiting_for: int = 0
    """Batches not yet back."""
    blocked_by: int = 0
    """Partitions in whose line an earlier slab stands before this one."""
    finished_ns: int = 0
    released_ns: int = 0
    """Monotonic clock at which its turn came; 0 before that."""
    receipt: Receipt = field(default_factory=Receipt)
    """How far its outputs have come."""

    def live_spans(self, epochs: Epochs) -> list[Span]:
        """The spans whose records are still ours."""
        return [span for span in self.spans if epochs.current(span)]

    @property
    def batch_bytes(self) -> int:
        return sum(batch.cost_bytes for batch in self.batches)


class Epochs:
    """One number per partition, bumped by assign, revoke, lost and rewind: a late result reaches a dead number."""

    def __init__(self) -> None:
        self._numbers: dict[Partition, int] = {}

    def of(self, partition: Partition) -> int:
        return self._numbers.get(partition, 0)

    def bump(self, partition: Partition) -> None:
        self._numbers[partition] = self._numbers.get(partition, 0) + 1

    def current(self, span: Span) -> bool:
        return span.epoch == self._numbers.get(span.partition, 0)


class Window:
    """See the module. ``limit_bytes`` bounds payloads, batch tensors and decode scratch together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.epochs = Epochs()
        self.bytes = 0
        self.owned: set[Partition] = set()
        self.records = 0
        """Records admitted and not yet released."""
        self._unreleased: dict[Partition, deque[Slab]] = {}
        self._unsettled: dict[Partition, deque[Slab]] = {}
        self._slabs: set[Slab] = set()
        self._ready: deque[Slab] = deque()
        self._started: dict[Partition, int] = {}
        self._positions: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}

    # -- ownership ---------------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[Partition]) -> None:
        """These are ours from now on; nothing of an earlier ownership counts any more."""
        for partition in partitions:
            self._forget(partition)
            self.owned.add(partition)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """These are not ours any more (revoked or lost): their results are dropped, their positions forgotten."""
        for partition in partitions:
            self._forget(partition)
            self.owned.discard(partition)

    def rewind(self, truth: Mapping[Partition, int | None] | None = None) -> dict[Partition, int]:
        """Give up everything in flight; where to read each owned partition from again.

        Args:
            truth: committed positions where only the broker knows them; else our own settled positions count.

        A partition nothing was taken from yet is left out: its reader has not moved. Unless the broker knows of a
        position: it may have become ours while our own commit of it was still on its way.
        """
        targets: dict[Partition, int] = {}
        for partition in list(self.owned):
            position = self._positions.get(partition) if truth is None else truth.get(partition)
            committed = self._committed.get(partition) if truth is None else position
            started = self._started.get(partition)
            self._forget(partition)
            if started is None:
                if truth is not None and position is not None:
                    targets[partition] = position
                continue
            targets[partition] = self._started[partition] = started if position is None else position
            if position is not None:
                self._positions[partition] = position
            if committed is not None:
                self._committed[partition] = committed
        return targets

    def _forget(self, partition: Partition) -> None:
        self.epochs.bump(partition)
        for position, slab in enumerate(self._unreleased.pop(partition, ())):
            slab.ends.pop(partition, None)
            if position > 0:
                self._unblock(slab)
        for slab in self._unsettled.pop(partition, ()):
            slab.ends.pop(partition, None)
        for table in (self._started, self._positions, self._committed):
            table.pop(partition, None)

    # -- a slab's way ------------------------------------------------------------------------------------

    def note(self, spans: Iterable[Span], offsets: Sequence[int]) -> None:
        """Stamp freshly taken spans with the epoch they were taken under and remember where reading began."""
        for span in spans:
            span.epoch = self.epochs.of(span.partition)
            self._started.setdefault(span.partition, offsets[span.start])

    def admit(self, slab: Slab) -> None:
        """The slab's batches are on their way; its payload is in ``bytes`` already, its tensors are added here."""
        self._slabs.add(slab)
        self.bytes += slab.batch_bytes
        self.records += len(slab.columns)
        slab.waiting_for = len(slab.batches)
        for span in slab.live_spans(self.epochs):
            if span.partition not in slab.ends:
                line = self._unreleased.setdefault(span.partition, deque())
                slab.blocked_by += bool(line)
                line.append(slab)
            slab.ends[span.partition] = span.next_offset
        self._consider(slab)

    def returned(self, batch: Batch) -> None:
        """One batch is back from the pool; its tensors are free again, the bodies made of them count until handed over."""
        slab = cast("Slab", batch.slab)
        bodies = 0 if batch.outcomes is None else total_bytes(batch.outcomes.bodies)
        slab.payload_bytes += bodies
        self.bytes += bodies - batch.cost_bytes
        slab.waiting_for -= 1
        slab.finished_ns = max(slab.finished_ns, batch.finished_ns)
        self._consider(slab)

    def releasable(self) -> Slab | None:
        """The next slab whose turn it is, in order; it counts as released from here on."""
        if not self._ready:
            return None
        slab = self._ready.popleft()
        self.records -= len(slab.columns)
        for partition in slab.ends:
            line = self._unreleased[partition]
            line.popleft()
            if line:
                self._unblock(line[0])
            else:
                del self._unreleased[partition]
            self._unsettled.setdefault(partition, deque()).append(slab)
        return slab

    def sent(self, slab: Slab) -> None:
        """Every output of the slab has been handed to the producer: its payloads are needed no more."""
        slab.columns = Columns()
        self.bytes -= slab.payload_bytes
        slab.payload_bytes = 0

    def settle(self, slab: Slab) -> None:
        """Every output of the slab is acknowledged (or it had none): move the positions that this frees."""
        assert slab.receipt.acknowledged, "a slab is settled only after all its outputs were acknowledged"
        self._slabs.discard(slab)
        for partition in slab.ends:
            line = self._unsettled[partition]
            while line and line[0] not in self._slabs:
                position = line.popleft().ends[partition]
                assert position > self._positions.get(partition, -1), "positions only move forward"
                self._positions[partition] = position
            if not line:
                del self._unsettled[partition]

    def give_up(self) -> list[Slab]:
        """The slabs not settled, when nothing more will come of them: whoever reads their records next answers them."""
        slabs, self._slabs = list(self._slabs), set()
        for partition in self.owned:
            self._forget(partition)
        return slabs

    def _consider(self, slab: Slab) -> None:
        if slab.waiting_for == 0 and slab.blocked_by == 0:
            self._ready.append(slab)

    def _unblock(self, slab: Slab) -> None:
        slab.blocked_by -= 1
        self._consider(slab)

    # -- positions ---------------------------------------------------------------------------------------

    def committable(self) -> dict[Partition, int]:
        """Owned partitions whose position moved since the last commit: next offset to read."""
        return {p: n for p, n in self._positions.items() if self._committed.get(p) != n}

    def committed(self, positions: dict[Partition, int]) -> None:
        """The broker took these positions (as of partitions still owned)."""
        for partition, position in positions.items():
            if partition in self.owned:
                self._committed[partition] = position

    def position(self, partition: Partition) -> int | None:
        return self._positions.get(partition)

    def resume_at(self, partition: Partition) -> int:
        """Where whoever has this partition next goes on reading, as of now; something was taken from it."""
        return self._positions.get(partition, self._started[partition])

    def committed_position(self, partition: Partition) -> int | None:
        return self._committed.get(partition)

    def unsettled(self, partitions: Collection[Partition] | None = None) -> bool:
        """Whether any slab, or any that holds records of these partitions, is not settled yet."""
        if partitions is None:
            return bool(self._slabs)
        return any(p in self._unreleased or p in self._unsettled for p in partitions)

    @property
    def slabs(self) -> int:
        return len(self._slabs)
