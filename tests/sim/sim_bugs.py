"""Planted bugs: one method of the loop replaced by one that is wrong in a way such loops have been wrong.

A judge that lets them pass proves nothing when it lets the loop itself pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from fakes import FakeSource, FakeTransactions

from worker.batch import Batch, Partition, Span
from worker.loop import conductor, laying, openslab, outbox
from worker.loop.admission import Admission, Admitted
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.openslab import OpenSlab
from worker.loop.outbox import Outbox, Tally
from worker.loop.receipt import Receipt
from worker.loop.window import Epochs, Slab, Window
from worker.sending import Sending


@dataclass(frozen=True, slots=True)
class Bug:
    """What to replace by what, and who must notice."""

    owner: Any
    name: str
    wrong: Callable[..., Any]
    caught_by: frozenset[str]
    where: dict[str, Any]
    """What a schedule has to be like for the bug to show often enough."""

    def planted(self) -> Any:
        return mock.patch.object(self.owner, self.name, self.wrong)


BUGS: dict[str, Bug] = {}


def replaces(
    owner: Any, name: str, *caught_by: str, **where: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def plant(wrong: Callable[..., Any]) -> Callable[..., Any]:
        BUGS[wrong.__name__.strip("_")] = Bug(owner, name, wrong, frozenset(caught_by), where)
        return wrong

    return plant


# -- positions and commits ------------------------------------------------------------------------------


@replaces(Window, "settle", "NothingCommittedEarly")
def position_of_the_last_settled_slab(self: Window, slab: Slab) -> None:
    """Acknowledgements come in any order; an earlier slab is still on its way."""
    self._slabs.discard(slab)
    for partition, end in slab.ends.items():
        self._positions[partition] = max(end, self._positions.get(partition, 0))
        if not any(other in self._slabs for other in self._unsettled[partition]):
            del self._unsettled[partition]


@replaces(Window, "committable", "NothingCommittedEarly")
def position_of_the_last_released_slab(self: Window) -> dict[Partition, int]:
    """Handed to the producer is not acknowledged."""
    return {p: line[-1].ends[p] for p, line in self._unsettled.items()} | self._positions


@replaces(Window, "committable", "Progress")
def commit_the_last_offset_instead_of_the_next(self: Window) -> dict[Partition, int]:
    return {p: n - 1 for p, n in self._positions.items() if self._committed.get(p) != n - 1}


_on_lost = Conductor.on_lost


@replaces(Conductor, "on_lost", "OnlyTheOwner")
def commit_when_partitions_are_lost(self: Conductor, partitions: list[Partition]) -> None:
    self.commit(wait=True)
    _on_lost(self, partitions)


@replaces(FakeSource, "starts", "NothingCommittedEarly")
def hand_over_at_the_position_of_the_reader(
    self: FakeSource, partitions: Iterable[Partition]
) -> dict[Partition, tuple[int, str]]:
    """Read is not done."""
    found = {}
    for partition in partitions:
        log, index = self._kafka.logs[partition], self._next[partition]
        found[partition] = log[index - 1].offset + 1 if index else 0, ""
    return found


@replaces(AtLeastOnce, "acknowledged", "NothingCommittedEarly")
def settle_whatever_the_report_says(self: AtLeastOnce) -> list[Slab]:
    """A failed delivery completes its slab as a successful one does."""
    settled, self._done[:] = self._done[:], []
    self._pending -= len(settled)
    return settled


_right_acknowledge = Receipt.acknowledge


@replaces(Receipt, "acknowledge", "NothingCommittedEarly")
def acknowledgement_counted_twice(self: Receipt, outputs: int) -> bool:
    """One report is taken for two outputs."""
    left = self.unanswered
    return left > 0 and _right_acknowledge(self, min(2 * outputs, left))


# -- order and epochs -----------------------------------------------------------------------------------


@replaces(Epochs, "current", "OnlyTheOwner", "InOrder", "NothingCommittedEarly")
def epoch_ignored(self: Epochs, span: Span) -> bool:
    return True


@replaces(Window, "rewind", "InOrder", "NothingCommittedEarly")
def rewind_keeps_the_work_in_flight(self: Window, truth: Any = None) -> dict[Partition, int]:
    """Results of before the rewind come out beside those of after."""
    return {p: self._positions.get(p, self._started[p]) for p in self.owned if p in self._started}


_seek = FakeSource.seek


@replaces(FakeSource, "seek", "NothingCommittedEarly")
def rewind_without_seek(self: FakeSource, positions: dict[Partition, int]) -> None:
    _seek(self, {})


@replaces(Window, "_consider", "InOrder", "NoBug")
def release_as_batches_come_back(self: Window, slab: Slab) -> None:
    """First come, first published."""
    if slab.waiting_for == 0 and slab not in self._ready:
        for partition in slab.ends:
            line = self._unreleased[partition]
            line.remove(slab)
            line.appendleft(slab)
        slab.blocked_by = 0
        self._ready.append(slab)


@replaces(Sending, "advance", "InOrder")
def partial_send_starts_again(self: Sending, rows: int) -> None:
    """The rows the producer has taken are handed over once more."""


_right_push = Outbox.push


@replaces(Outbox, "push", "OnlyTheOwner")
def outputs_kept_back_go_out_after_a_loss(self: Outbox, on_delivery: Callable[[Slab], Any]) -> list[Slab]:
    """A partition that was taken away while the producer's queue was full is published all the same."""
    taken_away = []
    for slab, sending in self._queue:
        if sending.source not in slab.ends:
            slab.ends[sending.source] = 0
            taken_away.append((slab, sending.source))
    try:
        return _right_push(self, on_delivery)
    finally:
        for slab, partition in taken_away:
            slab.ends.pop(partition, None)


# -- records that need no model, dead letters, counters --------------------------------------------------


@replaces(Admission, "_bury", "NothingCommittedEarly")
def tombstone_left_out(self: Admission, admitted: Admitted, _columns: Any, row: int, _route: Any) -> None:
    admitted.outcomes.dropped.add(row)
    self._settle(admitted, row)


@replaces(Outbox, "_dead_letter", "NothingCommittedEarly", "NothingLost")
def dead_letter_skipped(self: Outbox, *_args: Any) -> Iterator[Any]:
    return iter(())


_right_lay_in = laying.lay_in


@replaces(laying, "lay_in", "DeadLettersAccountedFor")
def rejection_laid_to_the_wrong_row(whole: Any, batch: Batch) -> None:
    """A row of the batch taken for a row of the slab."""
    _right_lay_in(whole, batch)
    assert batch.outcomes is not None
    for index, rejection in batch.outcomes.rejected.items():
        whole.rejected.pop(batch.rows[index], None)
        whole.rejected[index] = rejection


_right_tally = outbox.tally


@replaces(conductor, "tally", "CountersReconcile")
def what_was_lost_counts_as_answered(slab: Slab, spans: list[Span], worker_name: str) -> Tally:
    return _right_tally(slab, slab.spans, worker_name)


# -- exactly once ---------------------------------------------------------------------------------------


@replaces(
    ExactlyOnce, "commit", "NothingDoubled", exactly_once=True, ordered=True, capacity=3, slab_records=16
)
def committed_beside_half_a_slab(self: ExactlyOnce, window: Window, wait: bool) -> list[Slab]:
    if self._undoing is not None:
        return []
    if self._committing is not None:
        self._done += self._conclude()
    self._refuse_lost()
    if self._slabs:
        self._start(window)
        if wait:
            self._done += self._conclude()
    return self._report()


@replaces(ExactlyOnce, "lost", "NothingDoubled")
def outputs_of_lost_partitions_stay_in_the_transaction(
    self: ExactlyOnce, partitions: Iterable[Partition]
) -> None:
    """Their positions are another's to commit, and these outputs with them."""


_right_recovered = ExactlyOnce.recovered


@replaces(ExactlyOnce, "recovered", "NothingDoubled")
def unknown_outcome_taken_for_an_abort(self: ExactlyOnce, window: Window) -> dict[Partition, int] | None:
    ours = {partition: window.position(partition) for partition in window.owned}
    with mock.patch.object(self._transactions, "committed", return_value=ours):
        return _right_recovered(self, window)


@replaces(FakeTransactions, "abort", "NothingDoubled", "DeadLettersAccountedFor")
def abort_keeps_the_outputs(self: FakeTransactions) -> None:
    self._sink.doomed, self._open = False, False


_right_commit = FakeTransactions.commit


@replaces(FakeTransactions, "commit", "NothingDoubled", "NothingLost", exactly_once=True)
def group_asked_for_when_the_commit_arrives(
    self: FakeTransactions, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any
) -> None:
    """The membership of that moment may be a new one, and these positions another's since."""
    _right_commit(self, positions, metadata, self.group())


@replaces(Conductor, "_commit_until", "NothingAnsweredAgain")
def leaves_without_a_last_commit(self: Conductor, deadline_ns: int) -> None:
    """The commit at intervals was a moment ago."""


@replaces(Window, "unsettled", "HandedOverAtOnce", limit_bytes=1_000_000)
def waits_for_partitions_of_others(self: Window, partitions: Collection[Partition] | None = None) -> bool:
    return bool(self._slabs)


# -- records that kill -----------------------------------------------------------------------------------


@replaces(Caution, "survived", "DeadLettersAccountedFor", "NothingLost")
def survivors_are_charged_too(self: Caution, partition: Partition, next_offset: int) -> None:
    """The count goes on from record to record: soon each of them has its dead letter."""


@replaces(Caution, "covers", "Progress", "NoBug")
def nothing_is_worked_on_alone(self: Caution, partition: Partition, offset: int) -> bool:
    """The process dies of the same record for ever."""
    return False


# -- budget and progress --------------------------------------------------------------------------------

_right_drop = OpenSlab.drop


@replaces(OpenSlab, "drop", "BytesBounded", "Progress")
def bytes_of_revoked_records_leak(self: OpenSlab, partitions: Any) -> int:
    _right_drop(self, partitions)
    return 0


@replaces(Window, "returned", "BytesBounded")
def tensors_freed_twice(self: Window, batch: Batch) -> None:
    self.bytes -= batch.cost_bytes
    _right_returned(self, batch)


_right_returned = Window.returned


@replaces(Window, "sent", "BytesBounded")
def payloads_kept_until_acknowledged(self: Window, slab: Slab) -> None:
    """Taken off the books with the hand-over, let go with the slab."""
    self.bytes -= slab.payload_bytes
    slab.payload_bytes = 0


@replaces(openslab, "_affordable", "BytesBounded")
def tensors_not_weighed(costs: list[int], free_bytes: int) -> int:
    """Payloads are bounded, what they are decoded into is not."""
    return len(costs)


@replaces(Conductor, "_settle", "Progress")
def starved_until_a_batch_comes_back(self: Conductor, slabs: Iterable[Slab]) -> None:
    """Nothing is in the pool any more: the last acknowledgement was the last event."""
    for slab in slabs:
        self.window.settle(slab)
        self._count_settled(slab)
