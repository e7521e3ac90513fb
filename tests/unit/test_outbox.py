"""The outbox: what goes out, in which order, how a full queue is resumed, and when too much is bad."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from fakes import (
    DEAD_LETTERS,
    RESULTS,
    FakeClock,
    FakeEnvelope,
    FakeKafka,
    FakeRollout,
    FakeSink,
    Message,
    Witness,
    answer,
    columns_of,
)
from hypothesis import given
from hypothesis import strategies as st

from worker.batch import Columns, Headers, Outcomes, Partition, Span
from worker.errors import DeadLetterLimit, Reject, Rejection
from worker.loop.accounts import tally
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.epochs import Epochs
from worker.loop.laying import Sheet, lay_out
from worker.loop.limit import DeadLetterRate
from worker.loop.openslab import OpenSlab
from worker.loop.outbox import Letterhead, Outbox
from worker.loop.slab import Slab

pytestmark = pytest.mark.usefixtures("both_batch_paths")

A, B = Partition("in", 0), Partition("in", 1)
SHARE = Budget(1 << 30).shares[0]
NEVER = 2.0


class Sent(Witness):
    def __init__(self) -> None:
        self.messages: list[Message] = []

    def sent(self, who: object, message: Message) -> None:
        self.messages.append(message)


class Desk:
    """An outbox, the sink behind it, and what the sink took."""

    def __init__(
        self, capacity: int = 1_000, ratio: float = NEVER, routes: list[FakeRollout] | None = None
    ) -> None:
        self.seen = Sent()
        self.clock = FakeClock()
        self.sink = FakeSink(FakeKafka(self.clock, {"in": 2}, witness=self.seen), capacity=capacity)
        self.outbox = Outbox(
            self.sink, Letterhead(DEAD_LETTERS, "client-1", "worker"), DeadLetterRate(ratio, 1000)
        )
        self.epochs = Epochs()
        self.admission = Admission(routes or [FakeRollout()], None, "drop", 1_000_000)

    def slab(self, *runs: tuple[Partition, list[bytes | None]], **columns: list[object]) -> Slab:
        """Records as a slab that is back from the engine; offsets count from 0 per run."""
        taken, spans = Columns(), []
        for partition, values in runs:
            start = len(taken)
            taken.extend(columns_of(partition, range(len(values)), values))
            spans.append(Span(partition, start, len(taken), len(values)))
        for name, column in columns.items():
            setattr(taken, name, column)
        opened = OpenSlab(SHARE)
        opened.append(taken, spans, 0, 0.0)
        slab = opened.close(self.admission, 1_000_000, 0.0, 1_000, False)
        assert slab is not None
        slab.turn.ends = {partition: len(values) for partition, values in runs}
        for batch in slab.batches:
            answer(batch, 0)
        return slab

    def publish(self, slab: Slab) -> list[Slab]:
        self.outbox.add(slab, self.epochs)
        return self.push()

    def push(self) -> list[Slab]:
        return self.outbox.push(_count_down)

    @property
    def log(self) -> list[tuple[str, Partition, int]]:
        return [(m.topic, m.source, m.offset) for m in self.seen.messages]


def _count_down(slab: Slab) -> Callable[[object, object], None]:
    def reported(_error: object, _message: object) -> None:
        slab.receipt.acknowledge(1)

    return reported


def test_results_leave_in_the_order_of_the_input() -> None:
    """Partition by partition, also when several batches made the slab."""
    desk = Desk(routes=[FakeRollout(max_size=2)])
    slab = desk.slab((A, [b"x"] * 3), (B, [b"x"] * 2))
    assert desk.publish(slab) == [slab]
    assert desk.log == [(RESULTS, A, n) for n in range(3)] + [(RESULTS, B, n) for n in range(2)]
    assert slab.receipt.unanswered == 5
    assert [m.value for m in desk.seen.messages][:2] == [b"0 ok", b"1 ok"]


def test_a_dead_letter_goes_out_in_its_place() -> None:
    """Between the results of its neighbours, to the other topic, key kept."""
    desk = Desk()
    desk.publish(desk.slab((A, [b"x", b"bad", b"x"]), keys=[b"k", b"k", b"k"]))
    assert desk.log == [(RESULTS, A, 0), (DEAD_LETTERS, A, 1), (RESULTS, A, 2)]
    letter = desk.seen.messages[1]
    assert (letter.key, letter.value) == (b"k", b"bad")
    assert dict(letter.headers or ())["__connect.errors.task.id"] == b"client-1"


def test_a_refused_request_may_be_answered_too() -> None:
    """`output.errors`: the dead letter first, then the error on the output topic."""
    desk = Desk(routes=[FakeRollout(errors=True)])
    slab = desk.slab((A, [b"bad"]), headers=[[("traceparent", b"00-1"), ("other", b"x")]])
    desk.publish(slab)
    assert desk.log == [(DEAD_LETTERS, A, 0), (RESULTS, A, 0)]
    assert desk.seen.messages[1].headers == [("traceparent", b"00-1")]
    assert slab.receipt.unanswered == 2


def test_an_error_that_cannot_be_made_stays_out() -> None:
    """Where custom code cannot wrap the error, the dead letter stands alone and the records beside it go on."""

    class Unwilling(FakeEnvelope):
        def error(self, columns: Columns, row: int, rejection: Rejection) -> tuple[bytes, Headers | None]:
            raise Reject("no")

    rollout = FakeRollout(errors=True)
    object.__setattr__(rollout.route, "envelope", Unwilling())
    desk = Desk(routes=[rollout])
    desk.publish(desk.slab((A, [b"x", b"bad", b"x"])))
    assert desk.log == [(RESULTS, A, 0), (DEAD_LETTERS, A, 1), (RESULTS, A, 2)]


def test_a_request_refused_before_or_after_the_engine_is_answered_too() -> None:
    """`output.errors` speaks for every rejection: too large to be looked at, and a result its topic refuses."""
    desk = Desk(routes=[FakeRollout(errors=True, max_bytes=1)])
    desk.publish(desk.slab((A, [b"xx"])))
    assert desk.log == [(DEAD_LETTERS, A, 0), (RESULTS, A, 0)]
    assert desk.seen.messages[1].value == b"0 the record has 2 bytes, input.max_bytes is 1"
    desk = Desk(routes=[FakeRollout(errors=True)])
    slab = desk.slab((A, [b"x"]))
    outcomes = slab.batches[0].outcomes
    assert outcomes is not None
    outcomes.bodies[0] = b"x" * 2_000_000
    desk.publish(slab)
    assert desk.log == [(DEAD_LETTERS, A, 0), (RESULTS, A, 0)]
    assert desk.seen.messages[1].value.startswith(b"0 the result has ")


def test_a_tombstone_its_topic_would_refuse_is_a_dead_letter() -> None:
    """Its key and headers count; an error about it that does not fit either stays out."""
    desk = Desk(routes=[FakeRollout(errors=True)])
    desk.publish(desk.slab((A, [None]), keys=[b"0"], headers=[[("traceparent", b"x" * 2_000_000)]]))
    assert desk.log == [(DEAD_LETTERS, A, 0)]
    assert dict(desk.seen.messages[0].headers or ())["streaminfer.error.reason"] == b"too_large_output"


def test_a_dead_letter_goes_by_the_same_rule_as_results() -> None:
    """`output.partition: input`: by the input partition, keyed or not."""
    desk = Desk(routes=[FakeRollout(output_partition="input")])
    desk.publish(desk.slab((B, [b"bad", b"x"]), keys=[b"k", b"k"]))
    assert [(m.topic, m.partition) for m in desk.seen.messages] == [(DEAD_LETTERS, 1), (RESULTS, 1)]


def test_a_message_is_published_without_secrets() -> None:
    """Own code may say anything; neither the dead letter nor the error on the output topic repeats it."""
    desk = Desk(routes=[FakeRollout(errors=True, tombstone="reject")])
    head = Letterhead(DEAD_LETTERS, "client-1", "worker", lambda text: text.replace("null", "***"))
    desk.outbox = Outbox(desk.sink, head, DeadLetterRate(NEVER, 1000))
    desk.publish(desk.slab((A, [None])))
    letter, error = desk.seen.messages
    said = dict(letter.headers or ())["__connect.errors.exception.message"]
    assert said == b"the value is *** and input.tombstone is reject"
    assert error.value == b"0 " + said


def test_what_no_pipeline_takes_is_a_dead_letter_of_the_worker() -> None:
    """And names no model."""
    desk = Desk(routes=[FakeRollout(when=("to", b"x"))])
    desk.publish(desk.slab((A, [b"x"])))
    headers = dict(desk.seen.messages[0].headers or ())
    assert headers["__connect.errors.connector.name"] == b"worker"
    assert headers["streaminfer.model"] == b""


def test_tombstones_pass_and_dropped_records_leave_nothing() -> None:
    """A slab of dropped records alone has nothing to wait for."""
    passing, dropping = Desk(), Desk(routes=[FakeRollout(tombstone="drop")])
    passing.publish(passing.slab((A, [b"x", None]), keys=[b"0", b"1"]))
    assert [m.value for m in passing.seen.messages] == [b"0 ok", None]
    traced = Desk()
    traced.publish(traced.slab((A, [b"x", None]), headers=[None, [("traceparent", b"00-1"), ("other", b"")]]))
    assert traced.seen.messages[1].headers == [("traceparent", b"00-1")]
    slab = dropping.slab((A, [None]), keys=[b"0"])
    dropping.publish(slab)
    assert dropping.log == []
    assert slab.receipt.unanswered == 0


def test_pipelines_of_one_slab_keep_the_order_of_the_input() -> None:
    """Rows of two pipelines in turn go to their own topics in turn."""
    routes = [FakeRollout(name, when=("to", name.encode()), output_topic=name) for name in "xy"]
    desk = Desk(routes=routes)
    to = [[("to", name)] for name in (b"x", b"y", b"y", b"x")]
    desk.publish(desk.slab((A, [b"v"] * 4), headers=to))
    assert desk.log == [("x", A, 0), ("y", A, 1), ("y", A, 2), ("x", A, 3)]


def test_a_full_queue_is_resumed_where_it_stopped() -> None:
    """Within a run of rows, and the slab counts as handed over only at its end."""
    desk = Desk(capacity=2)
    slab = desk.slab((A, [b"x"] * 5))
    assert desk.publish(slab) == []
    assert len(desk.outbox) == 1
    desk.sink.poll()
    assert desk.push() == []
    desk.sink.poll()
    assert desk.push() == [slab]
    assert [offset for _, _, offset in desk.log] == [0, 1, 2, 3, 4]
    desk.sink.poll()
    assert slab.receipt.unanswered == 0


def test_the_bytes_of_all_values_are_told() -> None:
    """Results and dead letters."""
    desk = Desk()
    assert desk.outbox.add(desk.slab((A, [b"x", b"bad"])), desk.epochs) == len(b"0 ok") + len(b"bad")


def test_records_of_a_dead_epoch_are_not_published() -> None:
    """Only those of the partition that was taken away between taking and releasing."""
    desk = Desk()
    slab = desk.slab((A, [b"x", b"bad"]), (B, [b"x"]))
    desk.epochs.bump(A)
    desk.publish(slab)
    assert desk.log == [(RESULTS, B, 0)]


def test_outputs_kept_back_by_a_full_queue_die_with_their_partition() -> None:
    """Those of other partitions of the slab still go."""
    desk = Desk(capacity=1)
    slab = desk.slab((A, [b"x"] * 2), (B, [b"x"]))
    assert desk.publish(slab) == []
    del slab.turn.ends[A]  # revoked
    desk.sink.poll()
    assert desk.push() == [slab]
    assert desk.log == [(RESULTS, A, 0), (RESULTS, B, 0)]
    assert slab.receipt.unanswered == 1


def test_clearing_forgets_what_was_not_handed_over() -> None:
    """The slab then waits only for what the producer already had."""
    desk = Desk(capacity=2)
    slab = desk.slab((A, [b"x"] * 5))
    desk.publish(slab)
    assert desk.outbox.clear() == [slab]
    assert slab.receipt.unanswered == 2
    assert len(desk.outbox) == 0


def test_a_result_its_topic_would_refuse_is_a_dead_letter() -> None:
    """`too_large_output`; its neighbours are published."""
    desk = Desk()
    desk.sink.limits[RESULTS] = 1_000
    desk.publish(desk.slab((A, [b"x", b"huge" * 100])))
    assert desk.log == [(RESULTS, A, 0), (DEAD_LETTERS, A, 1)]
    assert dict(desk.seen.messages[1].headers or ())["streaminfer.error.reason"] == b"too_large_output"


def test_a_result_is_too_large_with_its_key() -> None:
    """The topic's limit holds for the whole record, however small its value."""
    desk = Desk()
    desk.sink.limits[RESULTS] = 1_000
    desk.publish(desk.slab((A, [b"x", b"x"]), keys=[b"0", b"1" * 1_000]))
    assert [topic for topic, _, _ in desk.log] == [RESULTS, DEAD_LETTERS]


def test_a_record_without_a_key_is_a_dead_letter_where_its_topic_is_compacted() -> None:
    """The broker would refuse it for ever; records with a key, an empty one included, are published."""
    desk = Desk()
    desk.sink.compacted = {RESULTS}
    desk.publish(desk.slab((A, [b"x"] * 3), keys=[b"k", None, b""]))
    assert desk.log == [(RESULTS, A, 0), (DEAD_LETTERS, A, 1), (RESULTS, A, 2)]
    headers = dict(desk.seen.messages[1].headers or ())
    assert headers["streaminfer.error.reason"] == b"invalid"
    assert headers["__connect.errors.stage"] == b"publish"
    assert b"topic results is compacted" in (headers["__connect.errors.exception.message"] or b"")


def test_an_error_without_a_key_stays_out_of_a_compacted_topic() -> None:
    """With ``output.errors`` the dead letter is the only answer to such a record."""
    desk = Desk(routes=[FakeRollout(errors=True)])
    desk.sink.compacted = {RESULTS}
    desk.publish(desk.slab((A, [b"bad"])))
    assert desk.log == [(DEAD_LETTERS, A, 0)]


def test_a_dead_letter_without_a_key_gets_one_where_its_topic_is_compacted() -> None:
    """It goes to the partition that it would have without a key, so that a record's letters stay together."""
    desk = Desk()
    desk.sink.compacted = {DEAD_LETTERS}
    desk.publish(desk.slab((B, [b"bad", b"bad"]), keys=[None, b"k"]))
    made, kept = desk.seen.messages
    assert (made.key, made.partition) == (b"in/1/0", B.number)
    assert kept.key == b"k"


def test_every_record_is_counted_once_by_its_outcome() -> None:
    """Also those given back to Kafka after they were released: as dropped."""
    desk = Desk(routes=[FakeRollout(tombstone="drop")])
    slab = desk.slab((A, [b"x", b"bad", None]), (B, [b"x", b"bad"]), keys=[b"0"] * 5)
    desk.publish(slab)
    counts = tally(slab, slab.spans, "worker")
    of_one = {("digits", "1"): 2}
    assert (counts.ok, counts.dead_letter, counts.dropped) == (of_one, of_one, {"digits": 1})
    assert counts.errors == {("digits", "invalid", "decode", "1"): 2}
    desk.epochs.bump(B)
    counts = tally(slab, slab.live_spans(desk.epochs), "worker")
    of_one = {("digits", "1"): 1}
    assert (counts.ok, counts.dead_letter, counts.dropped) == (of_one, of_one, {"digits": 3})


def test_headers_of_some_batches_are_laid_into_the_whole_slab() -> None:
    """Rows of batches without headers have none."""
    desk = Desk(routes=[FakeRollout(max_size=1)])
    slab = desk.slab((A, [b"x"] * 3))
    outcomes = slab.batches[1].outcomes
    assert outcomes is not None
    outcomes.headers = [[("traceparent", b"1")]]
    assert lay_out(slab).headers == [None, [("traceparent", b"1")], None]


def sheet_of(bad: list[bool]) -> Sheet:
    outcomes = Outcomes.empty(len(bad))
    outcomes.rejected = {
        row: Rejection("invalid", "decode", "no") for row, is_bad in enumerate(bad) if is_bad
    }
    spans = [Span(A, 0, len(bad), len(bad))] if bad else []
    return Sheet(columns_of(A, range(len(bad))), [None] * len(bad), {}, True, {}, outcomes, spans)


@given(
    st.lists(st.booleans(), max_size=80),
    st.lists(st.integers(0, 30)),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_the_limit_trips_at_the_exact_record(
    bad: list[bool], cuts: list[int], ratio: float, of_last: int, from_seen: int
) -> None:
    """Judged record by record over the last min(seen, of_last), from so many seen on, however slabs cut the stream."""
    trips = next(
        (
            seen
            for seen in range(from_seen, len(bad) + 1)
            if sum(bad[max(0, seen - of_last) : seen]) >= ratio * min(seen, of_last)
        ),
        None,
    )
    rate = DeadLetterRate(ratio, of_last, from_seen)
    start = 0
    for size in [*cuts, len(bad)]:
        part = bad[start : start + size]
        trip = rate.count(sheet_of(part))
        if trips is not None and start < trips <= start + len(part):
            assert trip is not None
            assert trip.row == trips - start - 1
            return
        assert trip is None
        start += len(part)


def test_the_limit_can_be_off() -> None:
    """Without a ratio no share of dead letters stops the worker."""
    assert DeadLetterRate(None, 1_000, from_seen=1).count(sheet_of([True] * 500)) is None


def test_the_limit_may_change_while_records_are_counted() -> None:
    """A lower share counts what was there; switched off and on again, counting begins anew."""
    rate = DeadLetterRate(0.9, 1_000, from_seen=10)
    assert rate.count(sheet_of([True, False] * 10)) is None
    rate.judge_by(0.5, 1_000)
    trip = rate.count(sheet_of([True]))
    assert trip is not None
    rate.judge_by(None, 1)
    assert rate.count(sheet_of([True] * 100)) is None
    rate.judge_by(0.5, 1_000)
    assert rate.count(sheet_of([True] * 9)) is None
    assert rate.count(sheet_of([True])) is not None


def test_the_sentence_counts_reasons_and_names_samples() -> None:
    """It has the number of dead letters by reason and up to three of them, one of each reason first."""
    rate = DeadLetterRate(0.5, 1_000, from_seen=4)
    sheet = sheet_of([True] * 4)
    sheet.outcomes.rejected[2] = Rejection("undecodable", "decode", "not\x1b[2J JSON")
    trip = rate.count(sheet)
    assert trip is not None
    assert trip.sentence == (
        "4 of the last 4 records are dead letters, dead_letter.stop_after.ratio is 0.5: "
        "3 invalid, 1 undecodable; for example in/0/3 invalid (no), "
        r"in/0/2 undecodable (not\x1b[2J JSON), in/0/1 invalid (no)"
    )


def test_the_dead_letters_that_trip_the_limit_are_published_and_nothing_else() -> None:
    """The slab is read again by a successor; until then its dead letters, up to the last one counted, are evidence."""
    desk = Desk(ratio=0.5)
    with pytest.raises(DeadLetterLimit):
        desk.publish(desk.slab((A, [b"x"] * 10 + [b"bad"] * 200)))
    assert desk.log == []
    clock, end = desk.clock, desk.clock.ns + 10**9
    assert desk.outbox.leave_evidence(lambda: clock.ns > end) == f"they are in {DEAD_LETTERS}"
    assert desk.log == [(DEAD_LETTERS, A, offset) for offset in range(10, 100)]


def test_evidence_that_does_not_arrive_is_said() -> None:
    """A broker that is away does not hold up the end beyond the deadline, and the sentence says what is missing."""
    desk = Desk(ratio=0.5)
    desk.sink.stalled = True
    with pytest.raises(DeadLetterLimit):
        desk.publish(desk.slab((A, [b"bad"] * 100)))
    clock, end = desk.clock, desk.clock.ns + 10**9
    said = desk.outbox.leave_evidence(lambda: clock.ns > end)
    assert said == f"100 of them could not be delivered to {DEAD_LETTERS}"


def test_evidence_is_not_published_twice_with_transactions() -> None:
    """The records are read again, so a dead letter outside their transaction would double one: the sentence says so."""
    desk = Desk(ratio=0.5)
    head = Letterhead(DEAD_LETTERS, "client-1", "worker", transactional=True)
    desk.outbox = Outbox(desk.sink, head, DeadLetterRate(0.5, 1000))
    with pytest.raises(DeadLetterLimit):
        desk.publish(desk.slab((A, [b"bad"] * 100)))
    said = desk.outbox.leave_evidence(lambda: False)
    assert said == f"100 of them are not in {DEAD_LETTERS}, because their transaction was not committed"
    assert desk.log == []


def test_nothing_of_the_slab_that_trips_the_limit_is_published() -> None:
    """A slab that trips the limit hands no output to the producer."""
    desk = Desk(ratio=0.5)
    with pytest.raises(
        DeadLetterLimit,
        match=r"100 of the last 100 .*100 invalid; for example in/0/99 invalid \(bad record\)",
    ):
        desk.publish(desk.slab((A, [b"bad"] * 100)))
    assert desk.push() == []
    assert desk.log == []


def test_the_work_of_publishing_batches_early_grows_with_the_rows() -> None:
    """With ``order: none`` four times as many batches cost about four times as many steps, not sixteen times."""
    assert _steps_of_early_batches(64) < 5 * _steps_of_early_batches(16)


def _steps_of_early_batches(batches: int) -> int:
    """Lines of Python executed while a slab of so many batches is published batch by batch."""
    desk = Desk(capacity=100_000, routes=[FakeRollout(max_size=4)])
    slab = desk.slab((A, [b"x"] * 4 * batches))
    steps = 0

    def count(_frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for batch in slab.batches:
            desk.outbox.add_batch(batch, desk.epochs)
    finally:
        sys.settrace(before)
    assert slab.receipt.expected == 4 * batches
    return steps
