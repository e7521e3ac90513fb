"""`input.keep`: of what waits the newest is answered, or every n-th record; positions, order, memory and counters hold."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fakes import RESULTS, FakeClock, FakeKafka, FakeRollout, columns_of
from test_conductor import A, B, Loop

from worker.batch import RENAMED_HEADERS, SKIPPED_RECORD, UNREAD_RECORD, Columns, Headers, Partition, Span
from worker.loop.admission import Admission
from worker.loop.caution import Note
from worker.loop.keep import KEYS_COUNTED, Keep, LeftOut
from worker.settings import PipelineSettings


def loop(**settings: Any) -> Loop:
    """A replica whose pool is held up until the test finishes its batches; slabs of any number of keys."""
    made = Loop(finishes=False, **{"keep": "latest", "slab_records": 8, **settings})
    made.pool.capacity = 1
    return made


def feed(made: Loop, *keys: bytes | None, partition: Partition = A, value: bytes = b"frame") -> None:
    for key in keys:
        made.kafka.append(partition, value, key=key)


def busy(made: Loop, *keys: bytes | None) -> None:
    """One slab of these keys is with the model, which answers when the test says."""
    feed(made, *keys)
    made.turn(3)
    assert len(made.pool.held) == 1


def finish(made: Loop) -> None:
    """The model answers what it has, and all that follows."""
    made.pool.finish()
    made.pool.finishes = True
    made.until_quiet()


def test_the_newest_of_each_key_that_waits_is_answered() -> None:
    """While the model works, newer records take the places of those that wait: one answer for each key, the newest."""
    made = loop()
    busy(made, b"door")
    for _ in range(50):
        feed(made, b"door", b"yard", b"hall")
        made.turn(2)
    finish(made)
    assert made.results == [(0, 0), (0, 148), (0, 149), (0, 150)]
    assert made.kafka.committed[A] == 151
    assert made.meters.records["skipped"] == made.meters.records["dropped"] == 147
    assert made.meters.records["taken"] == 151
    assert made.budget.held == 0


def test_records_without_a_key_count_for_their_partition() -> None:
    """The newest keyless record of each partition is answered; it takes no place of a keyed one."""
    made = loop()
    busy(made, None)
    feed(made, None, None, b"door", None)
    feed(made, None, None, b"door", partition=B)
    made.turn(4)
    finish(made)
    assert sorted(made.results) == [(0, 0), (0, 3), (0, 4), (1, 1), (1, 2)]


def test_a_record_that_waits_alone_is_not_dropped() -> None:
    """Nothing is left out while the model keeps up: every record is answered."""
    made = loop()
    made.pool.finishes = True
    for _ in range(20):
        feed(made, b"door")
        made.until_quiet()
    assert len(made.results) == 20
    assert made.meters.records["skipped"] == 0


def test_what_waits_takes_no_more_memory_than_its_keys() -> None:
    """Records that are left out give their bytes back at once: a backlog 100 times the budget passes while the model works."""
    made = loop(limit_bytes=40_000)
    busy(made, b"door")
    for _ in range(200):
        feed(made, b"door", b"yard", value=b"x" * 10_000)
        made.turn(2)
        assert made.budget.held <= 40_000
    assert made.conductor.paused == frozenset()
    finish(made)
    assert made.results == [(0, 0), (0, 399), (0, 400)]
    assert made.budget.held == 0


def test_a_tombstone_and_a_bad_record_count_as_newer_ones() -> None:
    """What the newest record is does not matter: a tombstone is passed on, a bad one is a dead letter."""
    made = loop()
    busy(made, b"0")
    made.kafka.append(A, b"frame", key=b"2")
    made.kafka.append(A, None, key=b"2")
    made.kafka.append(A, b"frame", key=b"door")
    made.kafka.append(A, b"bad", key=b"door")
    made.turn(3)
    finish(made)
    assert made.results == [(0, 0), (0, 2)]
    assert made.meters.records["dead_letter"] == 1
    assert made.meters.records["skipped"] == 2


def test_an_old_newest_record_is_expired() -> None:
    """A deadline holds for the record that is kept, as for any other."""
    made = loop()
    busy(made, b"door")
    for _ in range(2):
        made.kafka.append(A, b"frame", key=b"door", headers=[("ce_expirytime", b"2001-01-01T00:00:00Z")])
    made.turn(3)
    finish(made)
    assert made.results == [(0, 0)]
    assert made.meters.records["dropped"] == 2
    assert made.meters.records["skipped"] == 1


def test_a_record_under_caution_is_not_left_out() -> None:
    """After a death records go one at a time, all of them: the one that killed must not hide behind a newer one."""
    kafka = FakeKafka(FakeClock(), {"in": 2}, {RESULTS: 1})
    kafka.committed[A], kafka.notes[A] = 0, str(Note(1, 6))
    for _ in range(8):
        kafka.append(A, b"frame", key=b"door")
    made = Loop(kafka, keep="latest", slab_records=8)
    made.until_quiet()
    assert made.results[:6] == [(0, offset) for offset in range(6)]


@pytest.mark.parametrize("takes", [1, 3, 24])
def test_every_answers_each_nth_record_of_a_key(takes: int) -> None:
    """{every: 3} answers the first of three of each key, however the records are taken."""
    made = loop(keep=3)
    made.pool.finishes = True
    for number in range(24):
        feed(made, b"door" if number % 2 else b"yard")
        if number % takes == takes - 1:
            made.until_quiet()
    made.until_quiet()
    assert made.results == [(0, offset) for offset in (0, 1, 6, 7, 12, 13, 18, 19)]
    assert made.kafka.committed[A] == 24
    assert made.meters.records["skipped"] == made.meters.records["dropped"] == 16
    assert made.budget.held == 0


def test_every_counts_each_pipeline_for_itself() -> None:
    """Records that another pipeline takes, or none, are not counted; theirs are all answered."""
    every = FakeRollout("few", when=("to", b"few"), keep=2)
    rest = FakeRollout("rest", when=("to", b"rest"))
    admission = Admission([every, rest], None, "drop", 1_000)
    keep = Keep([*admission.rollouts], admission.route_of)
    columns = columns_of(A, range(6), [b"v"] * 6)
    columns.headers = [[("to", name)] for name in (b"few", b"rest", b"few", b"nobody", b"rest", b"few")]
    kept, spans, told = keep.sparse(columns, [Span(A, 0, 6, 6)])
    assert kept.offsets == [0, 1, 3, 4, 5]
    assert told == [LeftOut(every.route, 1, 1, 1)]
    assert spans == [Span(A, 0, 5, 6)]


def test_a_take_without_a_record_to_answer_moves_the_position() -> None:
    """Where all of a take is passed over, one record stays for the position, marked; nobody else can mark one."""
    route = FakeRollout(keep=10)
    admission = Admission([route], None, "drop", 1_000)
    keep = Keep([*admission.rollouts], admission.route_of)
    keep.sparse(columns_of(A, [0]), [Span(A, 0, 1, 1)])
    kept, spans, told = keep.sparse(columns_of(A, [1, 2, 3]), [Span(A, 0, 3, 4)])
    assert (kept.offsets, spans) == ([3], [Span(A, 0, 1, 4)])
    assert (told[0].records, told[0].gone) == (3, 2)
    assert admission.admit(kept, 0.0).outcomes.dropped == {0}
    forged = columns_of(A, [4])
    forged.headers = [[("".join([*SKIPPED_RECORD]), b"")]]
    assert admission.admit(forged, 0.0).outcomes.dropped == set()


@pytest.mark.parametrize("mark", [RENAMED_HEADERS, UNREAD_RECORD])
def test_a_record_that_cannot_be_read_is_neither_left_out_nor_counted(mark: str) -> None:
    """A record that the source marked has its own outcome."""
    route = FakeRollout(keep="latest")
    admission = Admission([route], None, "drop", 1_000)
    keep = Keep([*admission.rollouts], admission.route_of)
    headers: list[Headers | None] = [None, [(mark, b"1")], None]
    columns = columns_of(A, range(3))
    columns.headers = headers
    assert keep.superseded(columns)[0] == {0}


def test_counting_keys_takes_bounded_memory() -> None:
    """A stream with a new key in every record does not grow the table of counts beyond its bound."""
    route = FakeRollout(keep=2)
    keep = Keep([route.route], Admission([route], None, "drop", 1_000).route_of)
    rows = KEYS_COUNTED + 5
    columns = columns_of(A, range(rows))
    columns.keys = [b"%d" % row for row in range(rows)]
    keep.sparse(columns, [Span(A, 0, rows, rows)])
    assert len(keep._counts) == KEYS_COUNTED


def test_keeping_everything_looks_at_no_record() -> None:
    """A pipeline with keep: all pays nothing: its intake has nothing to keep."""
    admission = Admission([FakeRollout()], None, "drop", 1_000)
    assert not Keep([*admission.rollouts], admission.route_of)


def test_leaving_out_costs_little() -> None:
    """Finding what newer records stand for costs less than 5 us of CPU for each record that waits."""
    route = FakeRollout(keep="latest")
    keep = Keep([route.route], Admission([route], None, "drop", 1_000).route_of)
    columns = columns_of(A, range(4_000))
    columns.keys = [b"%d" % (row % 50) for row in range(4_000)]
    best = min(_cpu_s(keep, columns) for _ in range(5))
    assert best / 4_000 < 5e-6


def _cpu_s(keep: Keep, columns: Columns) -> float:
    began = time.process_time()
    keep.superseded(columns)
    return time.process_time() - began


@pytest.mark.parametrize(("given", "found"), [("all", "all"), ("latest", "latest"), ({"every": 4}, 4)])
def test_the_setting(given: Any, found: Any) -> None:
    """all, latest, or {every: n}."""
    settings = _pipeline(given).input.keep
    assert (settings if isinstance(settings, str) else settings.every) == found


@pytest.mark.parametrize("given", ["newest", {"every": 1}, {"every": 0}, {"each": 3}, 4])
def test_another_setting_is_refused(given: Any) -> None:
    """A word that is none of them, and a number that leaves nothing out."""
    with pytest.raises(ValueError, match="keep"):
        _pipeline(given)


def _pipeline(keep: Any) -> PipelineSettings:
    return PipelineSettings.model_validate(
        {
            "input": {"topics": ["in"], "format": "json", "keep": keep},
            "model": {"path": "model.onnx"},
            "output": {"topic": "out"},
        }
    )
