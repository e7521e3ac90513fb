"""Records of a share group: lent, numbered, settled one by one; what is lent again is worked on with care."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import AcknowledgeType

from worker.batch import COUNTED, LENT_OFTEN, Columns, Partition, Span
from worker.errors import ConfigError
from worker.kafka.share_source import ShareSource
from worker.loop.openslab import _split
from worker.settings import validate

A, B = Partition("in", 0), Partition("in", 1)
WORD = {
    AcknowledgeType.ACCEPT: "accepted",
    AcknowledgeType.RELEASE: "released",
    AcknowledgeType.REJECT: "rejected",
}


class Message:
    """A record as the client gives it."""

    def __init__(self, partition: int, offset: int, count: int = 1) -> None:
        self._place = partition, offset, count

    def error(self) -> None: ...

    def topic(self) -> str:
        return "in"

    def partition(self) -> int:
        return self._place[0]

    def offset(self) -> int:
        return self._place[1]

    def delivery_count(self) -> int:
        return self._place[2]


class Lender:
    """A share consumer whose loans the test writes down beforehand."""

    def __init__(self, properties: dict[str, Any]) -> None:
        self.properties = properties
        self.loans: deque[list[Message]] = deque()
        self.settled: list[tuple[str, int, int]] = []
        """What became of a record, its partition and offset, in order."""
        self.sent = 0

    def set_acknowledgement_commit_callback(self, callback: Any) -> None:
        self.on_answer = callback

    def subscribe(self, topics: list[str]) -> None:
        self.topics = topics

    def poll(self, timeout: float) -> list[Message]:
        return self.loans.popleft() if self.loans else []

    def acknowledge_offset(self, topic: str, partition: int, offset: int, kind: Any) -> None:
        self.settled.append((WORD[kind], partition, offset))

    def commit_sync(self, timeout: float) -> dict[Any, Any]:
        self.sent += 1
        return {}

    def commit_async(self) -> None:
        self.sent += 1

    def close(self) -> None:
        self.closed = True


class Listener:
    def __init__(self) -> None:
        self.assigned: list[list[Partition]] = []

    def on_assign(self, partitions: list[Partition]) -> None:
        self.assigned.append(partitions)

    def on_revoke(self, partitions: list[Partition]) -> None: ...

    def on_lost(self, partitions: list[Partition]) -> None: ...


class Group:
    """A source, its lender and its listener, with a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        made: list[Lender] = []

        def client(properties: dict[str, Any]) -> Lender:
            made.append(Lender(properties))
            return made[-1]

        self.source = ShareSource({}, ["in"], 30.0, client, lambda: self.now)
        (self.lender,) = made
        monkeypatch.setattr(self.source, "_gatherer", Gatherer())
        monkeypatch.setattr("worker.kafka.share_source.record_bytes", lambda message: 100)
        self.listener = Listener()
        self.source.subscribe(self.listener)

    def take(self, most: int = 100) -> tuple[list[tuple[int, int]], list[Span]]:
        """Partition and offset of each record, and the spans."""
        columns, spans = self.source.take(0.0, most, 1 << 20)
        return [(p.number, o) for p, o in zip(columns.partitions, columns.offsets, strict=True)], spans


class Gatherer:
    """As the one of real messages, of which a test cannot make any."""

    def gather(self, messages: list[Message]) -> tuple[Columns, list[Span]]:
        messages.sort(key=Message.partition)
        places = [Partition("in", m.partition()) for m in messages]
        spans, start = [], 0
        for place, count in Counter(places).items():
            spans.append(Span(place, start, start + count, -1))
            start += count
        size = len(messages)
        rows: list[Any] = [None] * size
        return Columns(
            [b""] * size, rows, [None] * size, [0] * size, [m.offset() for m in messages], places
        ), spans


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(monkeypatch)


def test_a_committed_position_accepts_the_records_before_it(group: Group) -> None:
    """Positions number the records as they come; committing one settles those before it and no other."""
    group.lender.loans.append([Message(0, 7), Message(0, 3), Message(1, 9)])
    rows, spans = group.take()
    assert rows == [(0, 3), (0, 7), (1, 9)]
    assert {span.partition: span.next_offset for span in spans} == {A: COUNTED + 2, B: COUNTED + 1}
    assert group.source.commit({A: COUNTED + 1}) == {A: COUNTED + 1}
    assert group.lender.settled == [("accepted", 0, 3)]
    group.source.commit({A: COUNTED + 2, B: COUNTED + 1})
    assert group.lender.settled[1:] == [("accepted", 0, 7), ("accepted", 1, 9)]
    group.lender.loans.append([Message(0, 2)])
    _, (span,) = group.take()
    assert span.next_offset == COUNTED + 3, "a later record has a later number, whatever its offset"


def test_an_offset_is_no_position_of_a_share_group(group: Group) -> None:
    """A commit at an offset, as the loop makes it where nothing was settled, accepts nothing."""
    group.lender.loans.append([Message(0, 3)])
    group.take()
    group.source.commit({A: 4, B: COUNTED})
    assert group.lender.settled == []


def test_nothing_is_borrowed_before_the_last_loan_is_settled(group: Group) -> None:
    """All records of a loan are settled before the next one is asked for, however they are taken."""
    group.lender.loans += [[Message(0, 0), Message(0, 1), Message(0, 2)], [Message(0, 3)]]
    assert group.take(most=2)[0] == [(0, 0), (0, 1)]
    assert group.take(most=2)[0] == [(0, 2)]
    assert group.take()[0] == []
    group.source.commit({A: COUNTED + 3})
    assert group.take()[0] == [(0, 3)]


def test_a_dead_letters_record_is_rejected(group: Group) -> None:
    """A record that became a dead letter is rejected, the others of its loan are accepted."""
    group.lender.loans.append([Message(0, 0), Message(0, 1)])
    group.take()
    group.source.reject(A, 1)
    group.source.commit({A: COUNTED + 2})
    assert group.lender.settled == [("accepted", 0, 0), ("rejected", 0, 1)]


def test_what_is_given_up_is_released(group: Group) -> None:
    """A rewind and the end of the process release what is not settled, taken or not."""
    group.lender.loans.append([Message(0, 0), Message(0, 1), Message(0, 2)])
    group.take(most=2)
    group.source.commit({A: COUNTED + 1})
    group.source.seek({A: COUNTED + 1})
    assert group.lender.settled == [("accepted", 0, 0), ("released", 0, 1), ("released", 0, 2)]
    group.lender.loans.append([Message(1, 5)])
    group.take()
    group.source.close(1.0)
    assert group.lender.settled[-1] == ("released", 1, 5)


def test_what_is_not_begun_in_time_is_released(group: Group) -> None:
    """Records that could not be begun before most of their lock is over go back, so that nobody answers them twice."""
    group.lender.loans.append([Message(0, 0), Message(0, 1)])
    assert group.take(most=1)[0] == [(0, 0)]
    group.now = 25.0
    assert group.take()[0] == []
    assert group.lender.settled == [("released", 0, 1)]


@pytest.mark.parametrize(("count", "order"), [(2, [0, 1, 2]), (3, [2, 1, 0])])
def test_records_that_are_lent_again_go_one_at_a_time(group: Group, count: int, order: list[int]) -> None:
    """At the second delivery one record is taken and settled before the next; at the third in the opposite order."""
    group.lender.loans.append([Message(0, offset, count) for offset in range(3)])
    for number, offset in enumerate(order, 1):
        assert group.take()[0] == [(0, offset)]
        assert group.take()[0] == [], "the one before is not settled"
        group.source.commit({A: COUNTED + number})
    assert group.lender.sent == 3


def test_a_record_that_is_lent_too_often_is_marked(group: Group) -> None:
    """At the fourth delivery a record is marked for its dead letter, before the broker gives it up at the fifth."""
    group.lender.loans.append([Message(0, 0, 4), Message(0, 1, 1)])
    columns, _ = group.source.take(0.0, 100, 1 << 20)
    (mark, value), *_ = columns.headers[0] or []
    assert (mark, value, columns.headers[1]) == (LENT_OFTEN, b"4", None)


def test_partitions_are_ours_when_their_first_record_comes(group: Group) -> None:
    """The loop hears of its membership at once, and of a partition with the first record of it, once."""
    group.take()
    group.lender.loans += [[Message(0, 0)], [Message(0, 1), Message(1, 0)]]
    group.take()
    group.source.commit({A: COUNTED + 1})
    group.take()
    assert group.listener.assigned == [[], [A], [B]]


def test_nothing_is_borrowed_while_the_loop_is_full(group: Group) -> None:
    """A pause stops borrowing; what waits stays until it ends."""
    group.lender.loans.append([Message(0, 0)])
    group.source.pause(["in"])
    assert group.take()[0] == []
    group.source.resume(["in"])
    assert group.take()[0] == [(0, 0)]


def test_a_slab_that_is_cut_ends_at_the_number_of_its_last_record() -> None:
    """A cut counts records where positions do, and goes by offsets where they are offsets."""
    counted = [Span(A, 0, 4, COUNTED + 9)]
    first, rest = _split(counted, 3, [50, 10, 70, 20])
    assert [(s.stop, s.next_offset) for s in first] == [(3, COUNTED + 8)]
    assert [(s.start, s.stop, s.next_offset) for s in rest] == [(0, 1, COUNTED + 9)]
    first, _ = _split([Span(A, 0, 4, 90)], 3, [10, 20, 40, 70])
    assert [s.next_offset for s in first] == [41]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"order": "partition"}, "order"),
        ({"input": {"window": {"size": 2}}}, "input.window"),
        ({"input": {"keep": "latest"}}, "input.keep"),
        ({"input": {"topics": ["^in.*"]}}, "input.topics"),
        ({"control": {"topic": "c"}, "model": {"repository": "r", "name": "m"}}, "control"),
    ],
)
def test_what_a_share_group_cannot_give_is_refused(more: dict[str, Any], key: str) -> None:
    """Order, windows, newest records, patterns and rollouts do not go with `delivery: queue`: one sentence names the setting."""
    document: dict[str, Any] = {
        "name": "q",
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "delivery": "queue",
        "order": "none",
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
    }
    validate(document, Path.cwd())
    if "input" in more:
        more = {**more, "input": {**document["input"], **more["input"]}}
    with pytest.raises(ConfigError, match=f"^{key}: "):
        validate({**document, **more}, Path.cwd())
