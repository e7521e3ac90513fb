"""The loop over fakes: one replica, a clock that passes when somebody waits, a pool that finishes when told."""

from __future__ import annotations

from itertools import count

import pytest
from fakes import (
    DEAD_LETTERS,
    RESULTS,
    FakeClock,
    FakeKafka,
    FakePool,
    FakeRollout,
    FakeSink,
    FakeSource,
)
from world import Figures, make_loop

from worker.batch import Partition
from worker.errors import ClientFatal, DeadLetterLimit, SickModel, Stalled
from worker.loop.caution import Note
from worker.loop.intake import SPARE_RECORDS
from worker.loop.what_now import SERVE_S
from worker.loop.window import Window

A, B = Partition("in", 0), Partition("in", 1)
RECORD_BYTES = 512 + 1
"""What one record of these tests weighs before it is decoded."""


class Loop:
    """A replica with everything around it; ``finishes``: whoever waits for the pool finds its batches done."""

    def __init__(
        self,
        kafka: FakeKafka | None = None,
        slab_records: int = 4,
        limit_bytes: int = 1_000_000,
        ratio: float = 2.0,
        capacity: int = 1_000,
        finishes: bool = True,
        max_crashes: int = 3,
        ordered: bool = True,
        slab_cpu_ms: float = 0.0,
        **route: object,
    ) -> None:
        self.kafka = kafka or FakeKafka(FakeClock(), {"in": 2}, {RESULTS: 1})
        clock = self.clock = self.kafka.clock
        self.source = FakeSource(self.kafka)
        self.sink = FakeSink(self.kafka, capacity=capacity)
        self.pool = FakePool(clock)
        self.pool.finishes = finishes
        world = make_loop(
            clock,
            self.source,
            self.sink,
            self.pool,
            [FakeRollout(slab_records=slab_records, **route)],  # type: ignore[arg-type]
            Figures(
                limit_bytes=limit_bytes,
                ratio=ratio,
                max_crashes=max_crashes,
                ordered=ordered,
            ),
            cpu_ns=count(0, int(slab_cpu_ms * 1e6)).__next__,  # asked once per slab
        )
        self.conductor, self.window, self.budget = world.conductor, world.window, world.budget
        self.meters, self.log = world.meters, world.log
        self.source.subscribe(self.conductor.membership)
        self.kafka.rebalance()

    def feed(self, *values: bytes, partition: Partition = A) -> None:
        for value in values:
            self.kafka.append(partition, value)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.conductor.turn()

    def until_quiet(self) -> None:
        for _ in range(1_000):
            if self.kafka.drained() and not self.window.slabs:
                return
            self.turn()
        raise AssertionError("not quiet after 1,000 turns")

    @property
    def results(self) -> list[tuple[int, int]]:
        """(partition, offset) of what is on the output topic."""
        return [(m.source.number, m.offset) for m in self.kafka.outputs(RESULTS)]


def test_records_become_results_and_their_positions_are_committed() -> None:
    """Records of both partitions, with gaps in the offsets, are answered and committed; the counters agree and no byte stays held."""
    loop = Loop()
    loop.feed(b"x", b"x")
    loop.kafka.append(A, b"x", gap=5)
    loop.feed(b"x", partition=B)
    loop.until_quiet()
    assert sorted(loop.results) == [(0, 0), (0, 1), (0, 7), (1, 0)]
    assert loop.kafka.committed == {A: 8, B: 1}
    assert loop.meters.records == {"taken": 4, "ok": 4, "dead_letter": 0, "dropped": 0}
    assert loop.budget.held == 0


def test_a_slab_waits_for_company_no_longer_than_it_must() -> None:
    """When slabs cost much, a slab goes when it is full or when its first record has waited for `max_wait_ms`."""
    loop = Loop(finishes=False, slab_cpu_ms=100)
    loop.pool.capacity = 9
    for _ in range(2):  # the first one cannot know yet what it costs
        loop.feed(b"x")
        loop.turn()
    batches = len(loop.pool.held)
    loop.feed(b"x")
    loop.turn()
    assert len(loop.pool.held) == batches
    loop.feed(b"x")
    loop.turn(6)  # a millisecond each
    assert [len(batch) for batch in loop.pool.held[batches:]] == [2]
    loop.feed(*[b"x"] * 4)
    loop.turn()
    assert [len(batch) for batch in loop.pool.held[batches:]] == [2, 4]


def test_a_record_that_comes_alone_goes_at_once() -> None:
    """A record that comes alone is submitted in the same turn, whatever a slab costs."""
    loop = Loop(finishes=False, slab_cpu_ms=100)
    loop.pool.capacity = 9
    for number in range(4):
        loop.feed(b"x")
        loop.turn()
        assert len(loop.pool.held) == number + 1
        loop.clock.advance(0.005)


def test_records_that_come_close_together_are_left_to_gather() -> None:
    """The dearer a slab is, the further apart slabs are kept; the client keeps the records meanwhile."""
    apart = {}
    for slab_cpu_ms in (0.0, 0.2, 100.0):
        loop = Loop(slab_cpu_ms=slab_cpu_ms)
        for number in range(40):  # the cost is known after some
            last = loop.clock()
            loop.feed(b"x")
            while loop.meters.records["taken"] == number:
                loop.turn()
        apart[slab_cpu_ms] = (loop.clock() - last) / 1e6
    assert apart[0.0] < apart[0.2] < apart[100.0] < 6


def test_records_behind_a_full_slab_do_not_wait() -> None:
    """With a backlog no slab waits, however much a slab costs."""
    loop = Loop(slab_records=4, slab_cpu_ms=100)
    loop.feed(*[b"x"] * 400)
    began = loop.clock()
    while loop.meters.records["taken"] < 400:
        loop.turn()
    assert loop.clock() - began < 0.005 * 1e9


def test_nothing_is_committed_before_it_is_acknowledged() -> None:
    """While the producer acknowledges nothing, no position is committed, however long it takes."""
    loop = Loop()
    loop.sink.stalled = True
    loop.feed(b"x")
    loop.turn(300)
    assert loop.results == []
    assert loop.kafka.committed.get(A, 0) == 0
    loop.sink.stalled = False
    loop.until_quiet()
    assert loop.kafka.committed[A] == 1


def test_results_keep_the_order_of_the_input_whatever_the_pool_does() -> None:
    """A slab that is finished before an earlier one is published after it."""
    loop = Loop(slab_records=1, finishes=False)
    loop.feed(b"x", b"x")
    loop.turn(3)
    first, second = loop.pool.held
    loop.pool.finish(second)
    loop.turn(3)
    assert loop.results == []
    loop.pool.finish(first)
    loop.turn(3)
    assert loop.results == [(0, 0), (0, 1)]


def test_without_order_a_batch_is_published_as_it_returns() -> None:
    """With `order: none` a batch is published as it returns, and positions still move in order."""
    loop = Loop(slab_records=1, finishes=False, ordered=False)
    loop.feed(b"x", b"x")
    loop.turn(3)
    first, second = loop.pool.held
    loop.pool.finish(second)
    loop.turn(100)
    assert loop.results == [(0, 1)]
    assert loop.kafka.committed.get(A, 0) == 0
    loop.pool.finish(first)
    loop.until_quiet()
    assert sorted(loop.results) == [(0, 0), (0, 1)]


def test_a_full_window_pauses_the_assignment_and_keeps_its_place_in_the_group() -> None:
    """In a full window the open slab fills one record at a time, then the topics are paused; rebalances are still served."""
    loop = Loop(slab_records=2, finishes=False)
    loop.feed(*[b"x"] * 100)
    loop.turn(20)
    assert not loop.source.paused, "whatever was fetched is fetched again after a pause"
    loop.turn(80)
    assert loop.source.paused
    assert loop.pool.outstanding == loop.pool.capacity
    taken = loop.source.records_read(A)
    assert taken == 2 * loop.pool.capacity + 2 + SPARE_RECORDS
    loop.kafka.rebalance({A: loop.source})
    loop.turn()
    assert loop.source.assignment() == [A]
    assert all(len(batch) == 2 for batch in loop.pool.held)
    loop.pool.finishes = True
    loop.until_quiet()
    assert not loop.source.paused
    assert len(loop.results) == 100


def test_the_byte_budget_bounds_what_is_taken() -> None:
    """Payloads and tensors together keep within the byte budget while the pool still has free slots."""
    limit = 3 * RECORD_BYTES + 350
    loop = Loop(slab_records=1, limit_bytes=limit, finishes=False, item_nbytes=100)
    loop.pool.capacity = 100
    loop.feed(*[b"x"] * 20)
    loop.turn(50)
    assert loop.pool.outstanding == 3
    assert loop.budget.held <= limit + RECORD_BYTES
    loop.pool.finishes = True
    loop.until_quiet()
    assert loop.budget.held == 0


def test_a_full_open_slab_leaves_room_for_the_tensors_of_its_first_record() -> None:
    """Payloads of an open slab leave room for the tensors of its first record."""
    limit, payload = 50_000, 5_000
    loop = Loop(slab_records=100, limit_bytes=limit, finishes=False, item_nbytes=20_000)
    loop.feed(*[b"x" * payload] * 40)
    most = 0
    for _ in range(200):
        loop.turn()
        most = max(most, loop.budget.held)
        loop.pool.finish()
    loop.until_quiet()
    assert most <= limit + payload + 512  # one record always may come


def test_a_record_larger_than_what_is_left_goes_when_nothing_else_is_in_flight() -> None:
    """A record that does not fit goes once nothing is in flight, also when the last thing awaited was an acknowledgement."""
    loop = Loop(slab_records=8, limit_bytes=2_000, item_nbytes=1_200)
    loop.sink.stalled = True
    loop.feed(*[b"x"] * 3)
    loop.turn(30)
    loop.feed(*[b"x"] * 3)
    loop.turn(30)
    loop.sink.stalled = False
    loop.until_quiet()
    assert [offset for _, offset in loop.results] == list(range(6))


def test_a_full_producer_queue_stops_taking_and_loses_nothing() -> None:
    """Outputs that the producer's queue has no room for wait, later ones wait behind them, and none is lost."""
    loop = Loop(capacity=3)
    loop.sink.stalled = True
    loop.feed(*[b"x"] * 50)
    loop.turn(100)
    assert len(loop.sink) == 3
    assert loop.source.records_read(A) < 50
    loop.sink.stalled = False
    loop.until_quiet()
    assert [offset for _, offset in loop.results] == list(range(50))


def test_a_revoke_finishes_what_is_in_flight_and_commits_it() -> None:
    """A revoke finishes and commits what is in flight and leaves records that were not started to the new owner."""
    loop = Loop(slab_records=2, finishes=False)
    loop.pool.capacity = 1
    loop.feed(b"x", b"x", b"x")
    loop.turn()
    assert len(loop.pool.held) == 1
    loop.turn()
    loop.pool.finishes = True
    loop.kafka.rebalance({B: loop.source})
    loop.clock.advance(SERVE_S)
    loop.turn()
    assert loop.results == [(0, 0), (0, 1)]
    assert loop.kafka.committed[A] == 2
    assert not loop.window.busy()
    assert loop.budget.held == 0


def test_a_revoke_that_cannot_finish_lets_go_in_time() -> None:
    """A revoke ends after `revoke_s`; a batch that comes back later is neither published nor committed."""
    loop = Loop(finishes=False)
    loop.feed(*[b"x"] * 4)
    loop.turn()
    loop.kafka.rebalance({B: loop.source})
    before_ns = loop.clock()
    loop.turn()
    assert 0.5e9 <= loop.clock() - before_ns < 1e9
    loop.pool.finishes = True
    loop.turn(50)
    assert loop.results == []
    assert loop.kafka.committed.get(A, 0) == 0
    assert loop.budget.held == 0
    assert loop.meters.records == {"taken": 4, "ok": 0, "dead_letter": 0, "dropped": 4}


def test_a_partition_handed_over_without_progress_keeps_its_position() -> None:
    """A partition of which records were only read is handed over at the position where reading began."""
    loop = Loop(slab_records=8, finishes=False)
    loop.kafka.committed[A] = 1
    loop.feed(b"x", b"x", b"x")
    loop.turn()  # read, not submitted
    loop.kafka.rebalance({B: loop.source})
    loop.turn()
    assert loop.kafka.committed[A] == 1
    assert loop.kafka.notes[A] == ""


def test_lost_partitions_are_neither_published_nor_committed() -> None:
    """Results of lost partitions are not published or committed, finished or not: another process may have answered them."""
    loop = Loop(finishes=False)
    loop.feed(*[b"x"] * 4)
    loop.turn()
    other = FakeSource(loop.kafka)
    other.subscribe(Window())  # never polls
    loop.kafka.kick(loop.source)
    loop.pool.finish()
    loop.turn(100)
    assert loop.results == []
    assert loop.kafka.committed.get(A, 0) == 0
    assert not loop.window.busy()
    assert loop.budget.held == 0


def test_a_refused_output_rewinds_to_the_settled_position() -> None:
    """After a refused output, everything from the acknowledged position on is read and published again, in order."""
    loop = Loop(slab_records=1)
    loop.feed(*[b"x"] * 6)
    loop.sink.refuse = 1
    loop.until_quiet()
    assert loop.meters.rewinds == {"delivery": 1}
    assert loop.kafka.committed[A] == 6
    assert sorted(set(loop.results)) == [(0, n) for n in range(6)]
    assert loop.budget.held == 0


def test_three_rewinds_without_a_commit_are_enough() -> None:
    """The fourth rewind in a row without a commit ends the process."""
    loop = Loop()
    loop.feed(b"x")
    loop.sink.refuse = 1_000
    with pytest.raises(ClientFatal, match="3 rewinds in a row brought no commit"):
        loop.until_quiet()


def test_a_refusal_during_a_revoke_rewinds_what_stays() -> None:
    """An output refused during a revoke rewinds the partitions that stay."""
    loop = Loop(slab_records=2)
    loop.turn()
    loop.sink.stalled = True
    loop.feed(b"x")
    loop.feed(b"x", partition=B)
    loop.turn(10)
    loop.sink.stalled, loop.sink.refuse = False, 2
    loop.kafka.rebalance({A: loop.source})
    loop.turn(100)
    assert loop.results == [(0, 0)]
    assert loop.kafka.committed[A] == 1
    assert loop.kafka.committed.get(B, 0) == 0


def test_a_drain_finishes_commits_and_leaves() -> None:
    """A drain finishes and commits what is in flight; records that were read and not started are left to the next owner."""
    loop = Loop(slab_records=2)
    loop.feed(b"x", b"x", b"x")
    loop.turn(2)
    loop.conductor.membership.drain()
    committed = loop.kafka.committed[A]
    assert loop.results == [(0, n) for n in range(committed)]
    assert committed >= 2
    assert loop.kafka.members == []
    assert loop.log.events()[-1] == "drained"
    assert loop.budget.held == 0


def test_whoever_asks_how_it_goes_is_answered_while_draining() -> None:
    """Metrics and probes are served during a drain."""
    loop = Loop(slab_records=1, finishes=False)
    loop.feed(b"x")
    loop.turn(3)
    turns: list[bool] = []

    def on_turn() -> None:
        turns.append(loop.conductor.draining)
        if len(turns) == 5:
            loop.pool.finish(loop.pool.held[0])

    loop.conductor._on_turn = on_turn
    loop.conductor.membership.drain()
    assert turns[:5] == [True] * 5


def test_a_drain_over_its_budget_says_so() -> None:
    """A drain over its budget raises, with what was acknowledged by then committed."""
    loop = Loop(slab_records=1, finishes=False)
    loop.feed(b"x", b"x")
    loop.turn(3)
    loop.pool.finish(loop.pool.held[0])
    with pytest.raises(Stalled, match=r"limits\.drain_s \(1\.0 s\)"):
        loop.conductor.membership.drain()
    assert loop.kafka.committed[A] == 1
    assert loop.kafka.members == []


def test_a_drain_that_gives_back_counts_what_it_gives_back() -> None:
    """When an output is refused during a drain, its records count as dropped: in = ok + dropped."""
    loop = Loop(slab_records=1)
    loop.sink.stalled = True
    loop.feed(*[b"x"] * 4)
    loop.turn(5)
    loop.sink.stalled, loop.sink.refuse = False, 1
    loop.conductor.membership.drain()
    counted = loop.meters.records
    assert loop.log.events()[-2:] == ["given_back", "drained"]
    assert counted["taken"] == counted["ok"] + counted["dropped"] > 0
    assert not +loop.meters.in_flight


def test_a_drain_that_gives_back_commits_what_was_settled_before() -> None:
    """When an output is refused during a drain, the next owner reads from the refused record on, and counts no crash."""
    loop = Loop(slab_records=1)
    loop.turn()
    assert loop.kafka.notes[A].startswith("streaminfer;attempts=1"), "as long as it has not got anywhere"
    loop.source.refuse_commits = True  # as a broker does while the group rebalances
    loop.feed(b"x", b"x")
    loop.turn(50)
    assert loop.results == [(0, 0), (0, 1)]
    assert loop.kafka.committed.get(A, 0) == 0
    loop.sink.stalled = True
    loop.feed(b"x", b"x")
    loop.turn(2)
    assert loop.kafka.committed.get(A, 0) == 0
    loop.source.refuse_commits, loop.sink.stalled, loop.sink.refuse = False, False, 1
    loop.conductor.membership.drain()
    assert "given_back" in loop.log.events()
    assert loop.kafka.committed[A] == 2
    assert loop.kafka.notes[A] == ""
    assert loop.kafka.members == []


def test_stopping_ends_the_loop_by_a_drain() -> None:
    """The loop drains and ends at the first turn after it was asked to stop."""
    loop = Loop()
    loop.kafka.members.clear()
    loop.conductor.stop_requested = True
    loop.conductor.run()
    assert loop.log.events() == ["drain", "drained"]
    assert not loop.conductor.joined


def test_too_many_dead_letters_end_the_process_before_their_slab() -> None:
    """Slabs before the one that trips the limit are published and committed; of that one, the dead letters that
    count are published and no position is committed."""
    loop = Loop(slab_records=50, ratio=0.5)
    loop.kafka.members.clear()
    loop.feed(*[b"x"] * 55, *[b"bad"] * 150)
    with pytest.raises(DeadLetterLimit) as stopped:
        loop.conductor.run()
    said = str(stopped.value)
    assert (
        "55 of the last 110 records are dead letters, dead_letter.stop_after.ratio is 0.5: 55 invalid" in said
    )
    assert "they are in dead-letters" in said
    assert [letter.offset for letter in loop.kafka.outputs(DEAD_LETTERS)] == [*range(55, 110)]
    assert loop.kafka.committed[A] == 100
    assert len(loop.kafka.outputs(RESULTS)) == 55


def test_a_limit_reached_while_draining_leaves_its_evidence_too() -> None:
    """A drain that reaches the limit commits what is before it and publishes the dead letters that count."""
    loop = Loop(slab_records=200, ratio=0.5)
    loop.kafka.members.clear()
    loop.feed(*[b"bad"] * 100)
    loop.pool.finishes = False
    loop.source.subscribe(loop.conductor.membership)
    loop.kafka.rebalance()
    while not loop.pool.held:
        loop.conductor.turn()
    loop.pool.finishes = True
    loop.conductor.stop_requested = True
    loop.kafka.members.clear()
    with pytest.raises(DeadLetterLimit, match="they are in dead-letters"):
        loop.conductor.run()
    assert len(loop.kafka.outputs(DEAD_LETTERS)) == 100
    assert loop.kafka.committed.get(A, 0) == 0


def test_the_limit_ends_the_process_also_when_an_output_is_refused_meanwhile() -> None:
    """The dead-letter limit ends the process also when an output is refused meanwhile; no position beyond the acknowledged ones is committed."""
    loop = Loop(slab_records=50, ratio=0.5)
    loop.kafka.members.clear()
    loop.sink.stalled, loop.sink.refuse = True, 1
    loop.feed(*[b"x"] * 50, *[b"bad"] * 150)
    end_of_stall = iter(range(200))

    def fuse(_step: str) -> None:
        loop.sink.stalled = next(end_of_stall, None) is not None

    loop.pool.fuse = loop.sink.fuse = fuse
    with pytest.raises(DeadLetterLimit):
        loop.conductor.run()
    assert loop.kafka.committed.get(A, 0) == 0


def test_a_sick_model_commits_nothing_more() -> None:
    """After a batch that says its model is sick, nothing more is committed."""
    loop = Loop(finishes=False)
    loop.feed(*[b"x"] * 4)
    loop.turn()
    loop.pool.finish(error=SickModel("model digits is sick"))
    with pytest.raises(SickModel):
        loop.turn()
    assert loop.kafka.committed.get(A, 0) == 0


def test_a_client_that_cannot_go_on_ends_the_process() -> None:
    """A fatal Kafka client ends the process with the client's reason."""
    loop = Loop()
    loop.source.fatal = "fenced"
    with pytest.raises(ClientFatal, match="fenced"):
        loop.turn()


def test_poison_that_killed_often_enough_is_a_dead_letter_undecoded() -> None:
    """A record whose note shows enough attempts becomes a dead letter without being decoded; the records behind it are answered."""
    loop = Loop(finishes=True, max_crashes=3)
    loop.feed(b"kill", b"x", b"x")
    loop.kafka.notes[A] = str(Note(attempts=2, until=2))
    loop.until_quiet()
    (letter,) = loop.kafka.outputs(DEAD_LETTERS)
    headers = dict(letter.headers or ())
    assert headers["streaminfer.error.reason"] == b"crashed"
    assert headers["streaminfer.error.attempts"] == b"3"
    assert sorted(loop.results) == [(0, 1), (0, 2)]
    assert loop.kafka.notes[A] == ""


def test_under_caution_one_record_is_worked_on_and_its_attempt_is_noted_first() -> None:
    """An attempt is noted beside the acknowledged position, also behind a gap, so that the next commit does not erase it."""
    loop = Loop(finishes=False)
    loop.kafka.append(A, b"x")
    loop.kafka.append(A, b"x", gap=3)
    loop.kafka.notes[A] = str(Note(attempts=0, until=8))
    loop.turn(30)
    assert [len(batch) for batch in loop.pool.held] == [1]
    assert (loop.kafka.committed[A], loop.kafka.notes[A]) == (0, str(Note(1, 8)))
    loop.pool.finish()
    loop.turn(30)
    assert [batch.columns.offsets for batch in loop.pool.held] == [[4]]
    assert (loop.kafka.committed[A], loop.kafka.notes[A]) == (1, str(Note(1, 8, at=4)))


def test_an_end_of_our_own_choice_is_no_attempt() -> None:
    """A drain over its budget takes the attempt at the record under caution back: nobody died of it."""
    loop = Loop(finishes=False)
    loop.kafka.append(A, b"slow")
    loop.kafka.notes[A] = str(Note(attempts=1, until=8))
    loop.turn(30)
    assert loop.kafka.notes[A] == str(Note(2, 8))
    with pytest.raises(Stalled):
        loop.conductor.membership.drain()
    assert (loop.kafka.committed[A], loop.kafka.notes[A]) == (0, str(Note(1, 8)))


def test_an_end_of_our_own_choice_before_any_progress_leaves_no_note() -> None:
    """The next owner of a partition whose first records were slow reads it as usual."""
    loop = Loop(finishes=False)
    loop.feed(b"slow")
    loop.turn(3)
    assert loop.kafka.notes[A] == str(Note(1, 8))
    with pytest.raises(Stalled):
        loop.conductor.membership.drain()
    assert loop.kafka.notes[A] == ""


def test_a_second_signal_is_no_attempt() -> None:
    """An operator who does not wait for the drain makes no record suspect: the loop notes it inside the drain."""
    loop = Loop(finishes=False)
    loop.kafka.append(A, b"slow")
    loop.kafka.notes[A] = str(Note(attempts=1, until=8))
    loop.turn(30)
    noted = []

    def second_signal(_step: str) -> None:
        loop.conductor.ending = True
        if loop.conductor.ended:
            noted.append(loop.kafka.notes[A])

    loop.pool.fuse = second_signal
    with pytest.raises(Stalled):
        loop.conductor.membership.drain()
    assert noted[0] == str(Note(1, 8))


def test_a_sick_model_makes_no_record_an_attempt() -> None:
    """The records of the batch that found the model sick are not suspected of killing."""
    loop = Loop(finishes=False)
    loop.feed(b"x")
    loop.turn(3)
    (batch,) = loop.pool.held
    batch.sick = "it differs"
    loop.pool.finish()
    with pytest.raises(SickModel):
        loop.conductor.run()
    assert (loop.kafka.committed[A], loop.kafka.notes[A]) == (0, "")


def test_a_batch_past_its_time_is_noted_as_such() -> None:
    """If the process ends by the batch time-out, the attempt counts and the dead letter tells the cause."""
    loop = Loop(finishes=False)
    loop.feed(b"slow")
    loop.turn(3)
    loop.conductor.batch_overdue = True
    loop.turn()
    note = Note.parse(loop.kafka.notes[A])
    assert note is not None
    assert (note.attempts, note.timed_out) == (1, True)
    after = Loop(finishes=True, max_crashes=2)
    after.feed(b"slow")
    after.kafka.notes[A] = loop.kafka.notes[A]
    after.until_quiet()
    (letter,) = after.kafka.outputs(DEAD_LETTERS)
    headers = dict(letter.headers or ())
    assert headers["streaminfer.error.reason"] == b"crashed"
    assert b"limits.batch_timeout_s" in (headers["__connect.errors.exception.message"] or b"")


def test_a_record_under_caution_that_the_budget_keeps_waiting_is_no_attempt() -> None:
    """A record under caution that waits for bytes is no attempt: handed over and taken back, it comes no closer to its dead letter."""
    loop = Loop(limit_bytes=10_000, costly=True, scratch=lambda value: len(value) // 2)
    noted = loop.kafka.notes[A] = str(Note(1, 8))
    loop.sink.stalled = True
    loop.feed(b"x", partition=B)
    loop.turn(10)
    assert loop.window.slabs
    loop.feed(*[b"x" * 2_750] * 3)  # together they leave too little of the budget for tensors
    loop.turn(10)
    assert loop.budget.held > 9_500
    assert (len(loop.pool.held), loop.kafka.notes[A]) == (0, noted)
    loop.sink.stalled = False
    loop.until_quiet()
    assert (0, 0) in loop.results


def test_the_loop_knows_what_it_spends_its_time_on() -> None:
    """The moment of the last turn is the clock's."""
    loop = Loop()
    loop.feed(b"x")
    loop.turn()
    assert loop.conductor.turned_ns == loop.clock()
    assert loop.conductor.joined


def test_a_record_that_is_tried_again_holds_its_partition_alone() -> None:
    """While a record of one partition waits for a further try, later records of the others are answered."""
    loop = Loop(finishes=False, slab_records=8)
    loop.pool.capacity = 9
    loop.feed(b"x")
    loop.turn()
    (waiting,) = loop.pool.held
    loop.pool.again = [waiting]
    for _ in range(3):
        loop.feed(b"x", partition=A)
        loop.feed(b"x", partition=B)
    for _ in range(20):
        loop.turn()
        for batch in [batch for batch in loop.pool.held if batch is not waiting]:
            loop.pool.finish(batch)
    assert loop.results == [(1, 0), (1, 1), (1, 2)]
    loop.pool.again = []
    loop.pool.finish()
    loop.until_quiet()
    assert sorted(loop.results) == [(0, n) for n in range(4)] + [(1, n) for n in range(3)]
    assert [place for place in loop.results if place[0] == 0] == [(0, n) for n in range(4)]


def test_partitions_that_wait_together_are_told_from_the_others() -> None:
    """A slab that was taken before keeps its partitions waiting too, and records of those do not join the others."""
    loop = Loop(FakeKafka(FakeClock(), {"in": 3}, {RESULTS: 1}), finishes=False, slab_records=8)
    third = Partition("in", 2)
    loop.pool.capacity = 9
    loop.feed(b"x")
    loop.feed(b"x", partition=B)
    loop.turn()
    (waiting,) = loop.pool.held
    loop.pool.again = [waiting]
    for partition in (A, B, third):
        loop.feed(b"x", partition=partition)
    for _ in range(20):
        loop.turn()
        for batch in [batch for batch in loop.pool.held if batch is not waiting]:
            loop.pool.finish(batch)
    assert loop.results == [(2, 0)]
