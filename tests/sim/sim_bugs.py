"""Planted bugs: one noun of the loop is wrong in a way such loops have been wrong.

A judge that lets them pass proves nothing when it lets the loop itself pass. A bug replaces a public method of a noun,
or puts a wrong noun in the place of the right one where a replica is put together (``world``). So the list says what
each noun is there for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import world
from fakes import DEAD_LETTERS, FakeSink, FakeSource, FakeTransactions
from sim_rollouts import SimRollout

from worker.batch import Batch, Columns, Partition, Span
from worker.errors import SickModel
from worker.loop import intakes, laying, openslab, versions
from worker.loop.accounts import Accounts
from worker.loop.admission import Admission
from worker.loop.again import answered_by
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Claim
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor
from worker.loop.epochs import Epochs
from worker.loop.exactly_once import ExactlyOnce
from worker.loop.fetching import Fetching
from worker.loop.intake import Intake
from worker.loop.keep import Keep
from worker.loop.laying import Sheet
from worker.loop.openslab import OpenSlab
from worker.loop.receipt import Receipt
from worker.loop.slab import Slab
from worker.loop.versions import Versions
from worker.loop.window import Window
from worker.sending import Sending
from worker.serving.trial import Trial


@dataclass(frozen=True, slots=True)
class Bug:
    """What to replace by what, and who must notice."""

    owner: Any
    name: str
    wrong: Any
    caught_by: frozenset[str]
    where: dict[str, Any]
    """What a schedule has to be like for the bug to show often enough."""

    def planted(self) -> Any:
        return mock.patch.object(self.owner, self.name, self.wrong)


BUGS: dict[str, Bug] = {}


def replaces(owner: Any, name: str, *caught_by: str, **where: Any) -> Callable[[Any], Any]:
    """The decorated function or class is what stands in the place of ``owner.name``."""

    def plant(wrong: Any) -> Any:
        there = property(wrong) if isinstance(vars(owner).get(name), property) else wrong
        BUGS[wrong.__name__] = Bug(owner, name, there, frozenset(caught_by), where)
        return wrong

    return plant


# -- positions and commits ------------------------------------------------------------------------------


class _HastyWindow(Window):
    """Moves positions to the end of whatever slab it is told of, whether or not an earlier one is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self._reached: dict[Partition, int] = {}

    def reach(self, slab: Slab) -> None:
        for partition, end in slab.turn.ends.items():
            self._reached[partition] = max(end, self._reached.get(partition, 0))

    def committable(self) -> dict[Partition, int]:
        hasty = {p: n for p, n in self._reached.items() if p in self.owned and n > (self.position(p) or 0)}
        return super().committable() | hasty


@replaces(world, "Window", "NothingCommittedEarly")
class PositionOfTheLastAcknowledgedSlab(_HastyWindow):
    """Acknowledgements come in any order; an earlier slab is still on its way."""

    def acknowledged(self, slab: Slab) -> None:
        self.reach(slab)
        super().acknowledged(slab)


@replaces(world, "Window", "NothingCommittedEarly")
class PositionOfTheLastReleasedSlab(_HastyWindow):
    """Handed to the producer is not acknowledged."""

    def releasable(self) -> Slab | None:
        slab = super().releasable()
        if slab is not None:
            self.reach(slab)
        return slab


_committable = Window.committable


@replaces(Window, "committable", "Progress")
def commit_the_last_offset_instead_of_the_next(self: Window) -> dict[Partition, int]:
    """The committed position is the next one to read."""
    return {p: n - 1 for p, n in _committable(self).items() if self.committed_position(p) != n - 1}


@replaces(world, "Conductor", "OnlyTheOwner")
class CommitWhenPartitionsAreLost(Conductor):
    """Lost partitions have another owner."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        on_lost = self.membership.on_lost

        def commit_first(partitions: list[Partition]) -> None:
            self.commit(wait=True)
            on_lost(partitions)

        self.membership.on_lost = commit_first  # type: ignore[method-assign]


@replaces(FakeSource, "starts", "NothingCommittedEarly")
def hand_over_at_the_position_of_the_reader(
    self: FakeSource, partitions: Iterable[Partition]
) -> dict[Partition, tuple[int, str]]:
    """Read is not done."""
    found = {}
    for partition in partitions:
        found[partition] = self.position(partition), ""
    return found


_on_delivery = AtLeastOnce.on_delivery


@replaces(AtLeastOnce, "on_delivery", "NothingCommittedEarly")
def failure_counts_as_delivery(self: AtLeastOnce, slab: Slab) -> Callable[..., None]:
    """A failed delivery completes its slab as a successful one does."""
    told = _on_delivery(self, slab)
    return lambda _error, message, rows=1: told(None, message, rows)


_acknowledge = Receipt.acknowledge


@replaces(Receipt, "acknowledge", "NothingCommittedEarly")
def acknowledgement_counted_twice(self: Receipt, outputs: int) -> bool:
    """One report is taken for two outputs."""
    return _acknowledge(self, min(2 * outputs, self.unanswered))


# -- order and epochs -----------------------------------------------------------------------------------


@replaces(Epochs, "current", "OnlyTheOwner", "InOrder", "NothingCommittedEarly")
def epoch_ignored(self: Epochs, span: Span) -> bool:
    """A result of an earlier epoch is taken for one of now."""
    return True


@replaces(Window, "rewind", "InOrder", "NothingCommittedEarly")
def rewind_keeps_the_work_in_flight(self: Window, truth: Any = None) -> dict[Partition, int]:
    """Results from before the rewind come out beside those from after it."""
    found = {}
    for partition in self.owned:
        with suppress(KeyError):  # nothing was taken from it
            found[partition] = self.resume_at(partition)
    return found


_seek = FakeSource.seek


@replaces(FakeSource, "seek", "NothingCommittedEarly")
def rewind_without_seek(self: FakeSource, positions: dict[Partition, int]) -> None:
    """What was given up is never read again."""
    _seek(self, {})


_admit = Window.admit


@replaces(Window, "admit", "InOrder", "NoBug")
def turn_that_waits_for_nobody(self: Window, slab: Slab) -> None:
    """First come, first published."""
    _admit(self, slab)
    slab.turn.blocked_by = 0


@replaces(Sending, "advance", "InOrder")
def partial_send_starts_again(self: Sending, rows: int) -> None:
    """The rows the producer has taken are handed over once more."""


@replaces(world, "Window", "OnlyTheOwner")
class TurnThatForgetsNoPartition(Window):
    """A partition that was taken away while the producer's queue was full is published all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._admitted: list[Slab] = []

    def admit(self, slab: Slab) -> None:
        self._admitted.append(slab)
        super().admit(slab)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        before = [(slab, dict(slab.turn.ends)) for slab in self._admitted]
        super().revoke(partitions)
        for slab, ends in before:
            slab.turn.ends.update(ends)


# -- records that need no model, dead letters, counters --------------------------------------------------


_admitted = Admission.admit


@replaces(Admission, "admit", "NothingCommittedEarly")
def tombstone_left_out(self: Admission, columns: Any, now_ms: float) -> Any:
    """A tombstone that should be passed on is dropped."""
    admitted = _admitted(self, columns, now_ms)
    for row in admitted.decided:
        route = admitted.routes[row]
        if columns.values[row] is None and route is not None and row not in admitted.outcomes.rejected:
            admitted.outcomes.dropped.add(row)
    return admitted


_send = FakeSink.send


@replaces(FakeSink, "send", "NothingCommittedEarly", "NothingLost")
def dead_letters_skipped(self: FakeSink, sending: Sending, on_delivery: Any) -> int:
    """The record is answered for, and there is nothing to show for it."""
    if sending.topic != DEAD_LETTERS:
        return _send(self, sending, on_delivery)
    if on_delivery is not None:
        on_delivery(None, None, len(sending))
    return len(sending)


_lay_out = laying.lay_out


@replaces(laying, "lay_out", "DeadLettersAccountedFor")
def rejection_laid_to_the_wrong_row(slab: Slab) -> Any:
    """A row of the batch is taken for a row of the slab."""
    whole = _lay_out(slab)
    for batch in slab.batches:
        assert batch.outcomes is not None
        for index, rejection in [*batch.outcomes.rejected.items()]:
            whole.rejected.pop(batch.rows[index], None)
            whole.rejected[index] = rejection
    return whole


class _Always(Epochs):
    def current(self, span: Span) -> bool:
        return True


@replaces(world, "Accounts", "CountersReconcile")
class WhatWasLostCountsAsAnswered(Accounts):
    """Records that another process answers are counted here too."""

    def ended(self, slab: Slab, epochs: Epochs) -> None:
        super().ended(slab, _Always())


_superseded = Keep.superseded


@replaces(Keep, "superseded", "NothingCommittedEarly", "NothingLost")
def the_oldest_of_a_key_is_kept(self: Keep, columns: Columns) -> Any:
    """The newest frame is the one that is dropped."""
    rows, told = _superseded(self, columns)
    keys = list(zip(columns.partitions, columns.keys, strict=True))
    turned = {len(keys) - 1 - keys[::-1].index(keys[row]) for row in rows}
    return turned, told


_keys = Keep._keys


@replaces(Keep, "_keys", "NothingCommittedEarly", "NothingLost")
def all_keys_of_a_partition_are_one(self: Keep, columns: Columns, routes: Any) -> Any:
    """One camera's frame takes the place of another's."""
    return ((row, (route, partition, None)) for row, (route, partition, _) in _keys(self, columns, routes))


@replaces(Accounts, "left_out", "CountersReconcile")
def what_is_left_out_stays_in_flight(self: Accounts, told: Any) -> None:
    """in = ok + dead_letter + dropped + in flight, and nothing takes these out of flight."""
    self._taken(told.route.name, told.gone, told.nbytes)


# -- exactly once ---------------------------------------------------------------------------------------


@replaces(
    Receipt,
    "handed_over",
    "NothingCommittedEarly",
    "NothingLost",
    "NothingDoubled",
    exactly_once=True,
    ordered=True,
    capacity=3,
)
def half_a_slab_counts_as_handed_over(self: Receipt) -> bool:
    """Its position is committed in a transaction that holds only some of its outputs."""
    return self.planned and (self.taken > 0 or not self.expected)


@replaces(ExactlyOnce, "lost", "NothingDoubled")
def outputs_of_lost_partitions_stay_in_the_transaction(
    self: ExactlyOnce, partitions: Iterable[Partition]
) -> None:
    """Their positions are another's to commit, and these outputs with them."""


_rewind = Window.rewind


@replaces(Window, "rewind", "NothingDoubled", exactly_once=True)
def unknown_outcome_taken_for_an_abort(self: Window, truth: Any = None) -> dict[Partition, int]:
    """Our own positions are believed where only the broker knows."""
    return _rewind(self)


@replaces(FakeTransactions, "abort", "NothingDoubled", "DeadLettersAccountedFor")
def abort_keeps_the_outputs(self: FakeTransactions) -> None:
    """The next commit makes them visible."""
    self._sink.doomed, self._open = False, False


_commit = FakeTransactions.commit


@replaces(FakeTransactions, "commit", "NothingDoubled", "NothingLost", exactly_once=True)
def group_asked_for_when_the_commit_arrives(
    self: FakeTransactions, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any
) -> None:
    """The membership of that moment may be a new one, and these positions another's since."""
    _commit(self, positions, metadata, self.group())


# -- handing over ---------------------------------------------------------------------------------------


@replaces(world, "Conductor", "NothingAnsweredAgain")
class LeavesWithoutALastCommit(Conductor):
    """The commit at intervals was a moment ago."""

    def commit(self, wait: bool = False) -> None:
        if not self.draining:
            super().commit(wait)


_busy = Window.busy


@replaces(Window, "busy", "HandedOverAtOnce", limit_bytes=1_000_000)
def waits_for_partitions_of_others(self: Window, partitions: Collection[Partition] | None = None) -> bool:
    """A revocation waits for everything in flight."""
    return _busy(self)


# -- records that kill -----------------------------------------------------------------------------------


@replaces(Caution, "survived", "DeadLettersAccountedFor", "NothingLost")
def survivors_are_charged_too(self: Caution, partition: Partition, next_offset: int) -> None:
    """The count goes on from record to record: soon each of them has its dead letter."""


@replaces(Caution, "covers", "Progress", "NoBug")
def nothing_is_worked_on_alone(self: Caution, partition: Partition, offset: int) -> bool:
    """The process dies of the same record for ever."""
    return False


# -- things outside --------------------------------------------------------------------------------------


class _Overtaking(Fetching):
    """Whoever has its payload leaves, whatever stands before it."""

    def turn(self, room_bytes: Callable[[], int], in_flight: bool) -> Any:
        for partition, line in self._lines.items():
            self._lines[partition] = deque(sorted(line, key=lambda record: not record.ready))
        return super().turn(room_bytes, in_flight)


BUGS["overtaking_at_the_store"] = Bug(
    world, "Fetching", _Overtaking, frozenset({"NothingCommittedEarly", "InOrder"}), {"fetches": True}
)
_close_drop = Fetching.drop


@replaces(Fetching, "drop", "BytesBounded", "Progress", "NoBug", fetches=True)
def bytes_of_revoked_payloads_leak(self: Fetching, partitions: Any) -> None:
    """The records that wait for the store are forgotten, their bytes are not."""
    before = self.claim.nbytes
    _close_drop(self, partitions)
    self.claim.adjust(before - self.claim.nbytes)


# -- budget and progress --------------------------------------------------------------------------------


_free = Claim.free


@replaces(Claim, "free", "BytesBounded", "Progress")
def budget_that_leaks(self: Claim) -> None:
    """One byte of every slab is never given back."""
    _free(self)
    self.adjust(1)


_drop = OpenSlab.drop


@replaces(OpenSlab, "drop", "BytesBounded", "Progress")
def bytes_of_revoked_records_leak(self: OpenSlab, partitions: Any) -> None:
    """The records are forgotten, their bytes are not."""
    before = self.claim.nbytes
    _drop(self, partitions)
    self.claim.adjust(before - self.claim.nbytes)


_returned = Window.returned


@replaces(Window, "returned", "BytesBounded")
def tensors_freed_twice(self: Window, batch: Batch) -> None:
    """The budget has more room than there is."""
    batch.slab.claim.adjust(-batch.cost_bytes)  # type: ignore[union-attr]
    _returned(self, batch)


_sent = Window.sent


@replaces(Window, "sent", "BytesBounded")
def payloads_kept_until_acknowledged(self: Window, slab: Slab) -> None:
    """Taken off the books with the hand-over, let go with the slab."""
    columns = slab.columns
    _sent(self, slab)
    slab.columns = columns


_close = OpenSlab.close


@replaces(OpenSlab, "close", "BytesBounded", limit_bytes=12_000)
def tensors_not_weighed(self: OpenSlab, admission: Admission, _free: int, *args: Any) -> Slab | None:
    """Payloads are bounded, what they are decoded into is not."""
    return _close(self, admission, 1 << 60, *args)


@replaces(Intake, "relaxed", "Progress")
def pause_without_an_end(self: Intake) -> bool:
    """Topics that were paused once are never fetched again."""
    return False


@replaces(intakes, "distribute", "DeadLettersAccountedFor", "NoBug")
def take_given_to_one_intake(columns: Any, spans: list[Span], by_topic: Any) -> Any:
    """Records of a topic come to the pipelines of another one."""
    yield next(iter(by_topic.values())), columns, spans


_starves = Intake.starves


@replaces(Intake, "starves", "Progress")
def starved_until_a_batch_comes_back(self: Intake, in_flight: bool) -> bool:
    """Nothing is in flight any more: the last acknowledgement was the last event."""
    return _starves(self, True)


# -- rollouts -------------------------------------------------------------------------------------------


@replaces(Trial, "rows", "VersionOfItsKey")
def every_other_record_goes_to_the_candidate(self: Trial, columns: Columns) -> list[int]:
    """The share is right, and a key goes back and forth."""
    return [] if self.shadow else [*range(0, len(columns), 2)]


@replaces(Trial, "grow", "VersionOfItsKey")
def a_share_stays_as_it_was(self: Trial, share: float) -> None:
    """One replica goes on with the smaller share."""


@replaces(Sheet, "servable_of", "VersionOfItsKey")
def dead_letters_name_the_stable_version(self: Sheet, row: int, route: Any) -> Any:
    """Who looks for the version that refused a record looks at the wrong one."""
    return self.servables[route]


@replaces(versions, "answered_by", "VersionOfItsKey")
def what_is_answered_again_keeps_its_first_name(servable: Any, batch: Batch) -> Batch:
    """The row is still listed as the candidate's."""
    others = dict(batch.slab.others)  # type: ignore[union-attr]
    fresh = answered_by(servable, batch)
    batch.slab.others.update(others)  # type: ignore[union-attr]
    return fresh


@replaces(SimRollout, "sick", "DeadLettersAccountedFor", "NoBug")
def a_sick_candidate_ends_the_process(self: SimRollout, servable: Any, why: str) -> None:
    """As a sick stable version does: there it is right."""
    raise SickModel(why)


@replaces(Versions, "_ended", "BytesBounded", "Progress")
def bytes_of_a_shadow_leak(self: Versions, shadow: Any, batch: Batch) -> None:
    """Whatever a shadow was given stays on the books."""
    del self._claims[id(batch)]


@replaces(Versions, "answer_again", "Progress", "NoBug")
def a_sick_candidate_takes_its_batch_along(self: Versions, batch: Batch, why: str) -> None:
    """Nobody answers the records; their slab never ends."""


@replaces(openslab, "_shares", "VersionOfItsKey", "NoBug")
def both_answer_the_candidates_records(rows_of: Any, slab: Slab, admitted: Any) -> Any:
    """The stable version is given the whole slab all the same."""
    for route, rows in rows_of.items():
        yield route, admitted.servables[route], rows
        if (trial := admitted.trials.get(route)) is not None:
            yield route, trial.candidate, [row for row in rows if row in slab.others]


@replaces(Intake, "held", "HeldRecordsWait")
def an_intake_that_is_held_goes_on(self: Intake) -> bool:
    """The replica answers records of a key by the stable version while others answer them by the candidate."""
    return False
