"""Slabs in flight: their order, the epochs, the positions, and what may be committed. No clock, Kafka or threads.

Only this object moves a position. A slab passes four gates, each once:

    admit -> returned (all batches are back) -> released (its turn in every partition) -> acknowledged

Each partition has two lines of slabs in the order in which they were taken: those not yet released and those not yet
acknowledged. A slab is released when it is complete and first in the line of every partition it holds records of. A
partition's position moves over the slabs at the head of its second line that are acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import cast

from worker.batch import Batch, Columns, Partition, Span, total_bytes
from worker.loop.epochs import Epochs
from worker.loop.slab import Slab
from worker.sizes import held_bytes


class Window:
    """See the module. The bytes of its slabs are in their claims (:mod:`worker.loop.budget`)."""

    def __init__(self) -> None:
        self.epochs = Epochs()
        self.owned: set[Partition] = set()
        self.records = 0
        """Records admitted and not yet released."""
        self._unreleased: dict[Partition, deque[Slab]] = {}
        self._unacknowledged: dict[Partition, deque[Slab]] = {}
        self._slabs: set[Slab] = set()
        self._ready: deque[Slab] = deque()
        self._started: dict[Partition, int] = {}
        self._positions: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}

    def __repr__(self) -> str:
        where = ", ".join(
            f"{p.topic}/{p.number} at {self._positions.get(p)}, committed {self._committed.get(p)}"
            for p in sorted(self.owned)
        )
        return f"<Window {len(self._slabs)} slabs, {self.records} records unreleased; {where}>"

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
            truth: committed positions, when only the broker knows them; else our own acknowledged positions count.

        A partition from which nothing was taken yet is left out, because its reader has not moved. It is included when
        the broker knows a committed position: the partition may have become ours before our own earlier commit arrived.
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
            slab.turn.ends.pop(partition, None)
            if position > 0:
                self._unblock(slab)
        for slab in self._unacknowledged.pop(partition, ()):
            slab.turn.ends.pop(partition, None)
        for table in (self._started, self._positions, self._committed):
            table.pop(partition, None)

    # -- a slab's way ------------------------------------------------------------------------------------

    def note(self, spans: Iterable[Span], offsets: Sequence[int]) -> None:
        """Stamp freshly taken spans with the current epoch of their partition; remember where reading began."""
        for span in spans:
            span.epoch = self.epochs.of(span.partition)
            self._started.setdefault(span.partition, offsets[span.start])

    def admit(self, slab: Slab) -> None:
        """The slab's batches are on their way. Its claim holds its records already; its tensors are added here."""
        self._slabs.add(slab)
        slab.claim.adjust(sum(batch.cost_bytes for batch in slab.batches))
        self.records += len(slab.columns)
        slab.turn.waiting_for = len(slab.batches)
        for span in slab.live_spans(self.epochs):
            if span.partition not in slab.turn.ends:
                line = self._unreleased.setdefault(span.partition, deque())
                slab.turn.blocked_by += bool(line)
                line.append(slab)
            slab.turn.ends[span.partition] = span.next_offset
        self._consider(slab)

    def returned(self, batch: Batch) -> None:
        """One batch is back from the pool: its tensors are free again, the bodies made of them count from here on."""
        slab = cast("Slab", batch.slab)
        bodies = 0 if batch.outcomes is None else total_bytes(batch.outcomes.bodies)
        slab.claim.adjust(bodies - batch.cost_bytes)
        slab.turn.waiting_for -= 1
        slab.turn.finished_ns = max(slab.turn.finished_ns, batch.finished_ns)
        self._consider(slab)

    def releasable(self) -> Slab | None:
        """The next slab whose turn it is, in order; it counts as released from here on."""
        if not self._ready:
            return None
        slab = self._ready.popleft()
        self.records -= len(slab.columns)
        for partition in slab.turn.ends:
            line = self._unreleased[partition]
            line.popleft()
            if line:
                self._unblock(line[0])
            else:
                del self._unreleased[partition]
            self._unacknowledged.setdefault(partition, deque()).append(slab)
        return slab

    def sent(self, slab: Slab) -> None:
        """Every output of the slab has been handed to the producer: its records are not needed any more.

        The producer's queue bounds the values that it holds. Keys and headers stay in the slab's claim.
        """
        slab.columns = Columns()
        slab.claim.adjust(slab.receipt.kept_bytes - slab.claim.nbytes)

    def acknowledged(self, slab: Slab) -> None:
        """Every output of the slab is acknowledged (or it had none): move the positions that this frees."""
        assert slab.receipt.closed, "a slab is acknowledged only after all its outputs were handed over"
        assert not slab.receipt.unanswered, "a slab is acknowledged only after all its outputs were"
        self._slabs.discard(slab)
        slab.claim.free()
        for partition in slab.turn.ends:
            line = self._unacknowledged[partition]
            while line and line[0] not in self._slabs:
                position = line.popleft().turn.ends[partition]
                assert position > self._positions.get(partition, -1), "positions only move forward"
                self._positions[partition] = position
            if not line:
                del self._unacknowledged[partition]

    def give_up(self) -> list[Slab]:
        """The slabs that are not acknowledged, when nothing more will come of them. The next reader of their records
        answers these."""
        slabs, self._slabs = list(self._slabs), set()
        for partition in self.owned:
            self._forget(partition)
        return slabs

    def _consider(self, slab: Slab) -> None:
        if slab.turn.waiting_for == 0 and slab.turn.blocked_by == 0:
            self._ready.append(slab)

    def _unblock(self, slab: Slab) -> None:
        slab.turn.blocked_by -= 1
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
        """Where the next owner of this partition goes on reading, as of now. Something was taken from it."""
        return self._positions.get(partition, self._started[partition])

    def read_from(self, partition: Partition) -> int | None:
        """As :meth:`resume_at`; None where nothing was taken."""
        return self._positions.get(partition, self._started.get(partition))

    def committed_position(self, partition: Partition) -> int | None:
        return self._committed.get(partition)

    def behind(self, batches: Iterable[Batch]) -> set[Partition]:
        """Partitions of which no record is released before the slabs of these batches are."""
        waiting = {partition for batch in batches for partition in cast("Slab", batch.slab).turn.ends}
        grown = True
        while grown:
            reached = {
                partition
                for partition in waiting
                for slab in self._unreleased.get(partition, ())
                for partition in slab.turn.ends
            }
            grown = not reached <= waiting
            waiting |= reached
        return waiting

    def oldest(self, partition: Partition) -> Slab | None:
        """The first slab with records of this partition that is not acknowledged; None when there is none."""
        line = self._unacknowledged.get(partition) or self._unreleased.get(partition)
        return line[0] if line else None

    def busy(self, partitions: Collection[Partition] | None = None) -> bool:
        """Whether a slab, or one that holds records of these partitions, is not acknowledged yet."""
        if partitions is None:
            return bool(self._slabs)
        return any(p in self._unreleased or p in self._unacknowledged for p in partitions)

    def held_bytes(self) -> int:
        """Bytes of the records that slabs in flight still hold, added up anew: for whoever checks the budget."""
        return sum(held_bytes(slab.columns) for slab in self._slabs)

    @property
    def slabs(self) -> int:
        return len(self._slabs)
