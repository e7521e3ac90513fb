"""Intakes: which routes share one, what each keeps for itself, and how a take is divided among them."""

from __future__ import annotations

from itertools import count

import pytest
from fakes import FakeRollout, columns_of

from worker.batch import Columns, Partition, Span
from worker.loop.admission import Admission, Rollout
from worker.loop.budget import Budget
from worker.loop.intake import SPARE_RECORDS, SPARE_SLABS, Intake
from worker.loop.intakes import distribute, groups

MS = 1_000_000


def rollouts(*topics: str) -> list[FakeRollout]:
    """One route per argument; topics are single letters."""
    return [FakeRollout(str(number), frozenset(names)) for number, names in enumerate(topics)]


def make(*members: Rollout, alone: bool = False, limit_bytes: int = 1_000_000) -> Intake:
    budget = Budget(limit_bytes, 1 if alone else 2)
    return Intake(
        Admission(members, None, "drop", limit_bytes),
        budget.shares[0],
        alone,
        clock_ns=lambda: 0,
        cpu_ns=count(0, 1_000 * MS).__next__,  # a slab costs a second of CPU time
    )


def put(intake: Intake, topic: str, count: int, now_ns: int = 0, **columns: object) -> None:
    partition = Partition(topic, 0)
    taken = columns_of(partition, range(count))
    for name, column in columns.items():
        setattr(taken, name, column)
    intake.open.append(taken, [Span(partition, 0, count, count)], now_ns, 0.0)


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        (["a"], [["0"]]),
        (["a", "b"], [["0"], ["1"]]),
        (["a", "a"], [["0", "1"]]),
        (["ab", "c", "bd"], [["0", "2"], ["1"]]),
        (["a", "b", "c", "abc"], [["0", "1", "2", "3"]]),  # only the last one connects them
        (["a", "b", "c", "ca"], [["0", "2", "3"], ["1"]]),
    ],
)
def test_routes_that_share_topics_share_an_intake(topics: list[str], expected: list[list[str]]) -> None:
    """Directly or through others; a route on topics of its own has its own. File order decides who is tried first."""
    assert [[r.route.name for r in group] for group in groups(rollouts(*topics))] == expected


def test_each_intake_keeps_its_own_figures() -> None:
    """`max_wait_ms` and the slab's size of one pipeline do not change another one's."""
    quick = make(FakeRollout("quick", frozenset("q"), slab_records=2_048, max_wait_s=0.005))
    slow = make(FakeRollout("slow", frozenset("s"), slab_records=4, max_wait_s=0.050))
    for intake, topic in ((quick, "q"), (slow, "s")):
        for _ in range(2):  # what a slab costs is known after the second
            put(intake, topic, 1)
            assert intake.close(0.0, 1, in_flight=False) is not None
        put(intake, topic, 1)
    assert (quick.slab_records, slow.slab_records) == (2_048, 4)
    assert (quick.left_s(0), slow.left_s(0)) == (0.005, 0.050)


def test_the_longest_wait_is_the_shortest_of_the_routes_that_share_a_topic() -> None:
    """They share the slab, so that the most impatient one decides when it goes."""
    both = make(
        FakeRollout("patient", frozenset("t"), max_wait_s=0.5),
        FakeRollout("hasty", frozenset("t"), max_wait_s=0.002),
    )
    for _ in range(3):
        put(both, "t", 1)
        both.close(0.0, 1, in_flight=False)
    put(both, "t", 1)
    assert both.left_s(0) == 0.002


def test_no_route_of_a_shared_topic_gets_more_than_its_own_slab() -> None:
    """A slow pipeline beside a quick one on one topic is not given the quick one's many records."""
    both = make(
        FakeRollout("quick", frozenset("t"), when=("to", b"q"), slab_records=100),
        FakeRollout("slow", frozenset("t"), when=("to", b"s"), slab_records=2),
    )
    to = [b"q", b"s", b"q", b"q", b"s", b"q", b"s", b"q"]
    put(both, "t", 8, headers=[[("to", name)] for name in to])
    slab = both.close(0.0, 100, in_flight=False)
    assert slab is not None
    assert {batch.route.name: list(batch.rows) for batch in slab.batches} == {
        "quick": [0, 2, 3, 5],
        "slow": [1, 4],
    }
    assert len(both.open) == 2


def test_an_intake_with_others_beside_it_is_full_later() -> None:
    """A pause throws the client's fetched records away: with takes going on for others it must come rarely."""
    for alone, spare in ((True, SPARE_RECORDS), (False, SPARE_RECORDS + SPARE_SLABS * 8)):
        intake = make(FakeRollout("r", frozenset("t"), slab_records=8), alone=alone)
        put(intake, "t", 8 + spare - 1)
        assert not intake.full()
        put(intake, "t", 1)
        assert intake.full()
        assert intake.room() < 0


def test_an_intake_without_bytes_for_one_record_is_full() -> None:
    """The tensors of the next record must fit beside the payloads that wait."""
    intake = make(FakeRollout("r", frozenset("t"), item_nbytes=4_000, slab_records=100), limit_bytes=40_000)
    assert not intake.full()
    while not intake.full():
        put(intake, "t", 1)
    assert 0 <= intake.share.free <= 4_000
    assert intake.room() == 0


def test_a_take_is_divided_by_topic() -> None:
    """Rows of one intake's topics keep their order and their spans; nothing is copied when all go to one."""
    quick, slow = make(*rollouts("ab")), make(*rollouts("c"))
    intakes = {"a": quick, "b": quick, "c": slow}
    columns, spans = Columns(), []
    for topic, offsets in (("a", [3, 4]), ("c", [7]), ("b", [1, 5])):
        start = len(columns)
        columns.extend(columns_of(Partition(topic, 0), offsets))
        spans.append(Span(Partition(topic, 0), start, len(columns), offsets[-1] + 1, epoch=2))
    found = {
        intake: (part.offsets, [(s.partition.topic, s.start, s.stop, s.next_offset, s.epoch) for s in ours])
        for intake, part, ours in distribute(columns, spans, intakes)
    }
    assert found == {
        quick: ([3, 4, 1, 5], [("a", 0, 2, 5, 2), ("b", 2, 4, 6, 2)]),
        slow: ([7], [("c", 0, 1, 8, 2)]),
    }
    ((only, whole, same),) = distribute(columns, spans, dict.fromkeys("abc", quick))
    assert (only, whole is columns, same is spans) == (quick, True, True)
