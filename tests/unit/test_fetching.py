"""The loop's wait for things outside: order, bytes, retries, revocations. Calls are played by the test, without threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeClock, FakeRoute, NullLog

from worker.batch import Columns, Destination, Headers, Partition, Span
from worker.errors import Reject
from worker.loop.budget import Budget
from worker.loop.epochs import Epochs
from worker.loop.fetching import FIRST_SIZE, Fetching
from worker.loop.io_threads import Back, IoThreads
from worker.outside import Away, Need, NotYet, Sized

A, B = Partition("in", 0), Partition("in", 1)


class Played:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.running: list[tuple[Any, Callable[[], Any]]] = []
        self._ended: list[Back] = []

    def start(self, job: Any, call: Callable[[], Any]) -> None:
        self.running.append((job, call))

    def back(self) -> list[Back]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None: ...

    @property
    def asked(self) -> list[str]:
        return [job.need.what for job, _ in self.running]

    def end(self, *what: str) -> None:
        """Let these calls end, or all of them."""
        for job, call in [(j, c) for j, c in self.running if not what or j.need.what in what]:
            self.running.remove((job, call))
            self._end(job, call)

    def _end(self, job: Any, call: Callable[[], Any]) -> None:
        try:
            self._ended.append(Back(job, call()))
        except Exception as error:
            self._ended.append(Back(job, error=error))


class Shelf:
    """An outside: records whose value begins with ``get`` need the thing that the value names."""

    concurrency = 4

    def __init__(self, shared: bool = False, place: str = "shelf") -> None:
        self.shared = shared
        self.things: dict[str, Any] = {}
        """Thing -> payload, or an exception."""
        self.known: set[str] = set()
        self.closed: list[str] = []
        self.place = place

    def need(self, payload: bytes | None, headers: Headers | None) -> Need | None:
        if payload is None or not payload.startswith(b"get "):
            return None
        what = payload[4:].decode()
        if what == "nonsense":
            raise Reject("nonsense is no thing", "reference_refused")
        return None if what in self.known else Need(what, self.place)

    def ask(self, need: Need, allowed_bytes: int) -> bytes | Sized | None:
        found = self.things.get(need.what, b"<%s>" % need.what.encode())
        if isinstance(found, Exception):
            raise found
        if self.shared:
            self.known.add(need.what)
            return None
        if len(found) <= allowed_bytes:
            return bytes(found)
        return Sized(len(found), lambda: bytes(found), lambda: self.closed.append(need.what))


class Room:
    """A fetching over one budget."""

    def __init__(self, limit: int = 1 << 30, *outsides: Shelf) -> None:
        self.clock = FakeClock()
        self.calls = Played()
        self.budget = Budget(limit)
        self.share = self.budget.shares[0]
        self.shelf = outsides[0] if outsides else Shelf()
        self.log = NullLog()
        self.route = FakeRoute("p", frozenset({"in"}), None, 1 << 20, "pass", Destination("out"))
        chain = outsides or (self.shelf,)
        self.fetching = Fetching(
            {self.route: chain}, self.calls, self.share, self.log, self.clock, self.clock.wall_ms
        )
        self._next: dict[Partition, int] = {}

    def take(self, partition: Partition, *values: bytes, deadlines: dict[int, float] | None = None) -> None:
        first = self._next.get(partition, 0)
        rows = len(values)
        self._next[partition] = first + rows
        columns = Columns(
            list(values),
            [None] * rows,
            [None] * rows,
            [0] * rows,
            [*range(first, first + rows)],
            [partition] * rows,
        )
        spans = [Span(partition, 0, rows, first + rows)]
        self.fetching.append(columns, spans, [self.route] * rows, deadlines or {}, self.clock())

    def turn(self) -> list[tuple[int, int, bytes]]:
        """Partition, offset and payload of the records that come out."""
        columns, spans = self.fetching.turn(lambda: self.share.free, False)
        assert columns.fetched is not None or not columns.values
        self.spans = spans
        self.columns = columns
        return [
            (p.number, offset, value if its.payload is None else its.payload)
            for p, offset, value, its in zip(
                columns.partitions, columns.offsets, columns.values, columns.fetched or (), strict=True
            )
        ]


def test_a_partition_leaves_in_order_and_another_does_not_wait_for_it() -> None:
    """The second record of a partition waits for the first one; the other partition's record goes at once."""
    room = Room()
    room.take(A, b"get a", b"get b")
    room.take(B, b"get c")
    assert room.turn() == []
    room.calls.end("b", "c")
    assert room.turn() == [(1, 0, b"<c>")]
    room.calls.end("a")
    assert room.turn() == [(0, 0, b"<a>"), (0, 1, b"<b>")]
    assert room.spans == [Span(A, 0, 2, 2)]
    assert len(room.fetching) == 0
    assert room.budget.held == 0


def test_the_time_of_the_wait_is_told() -> None:
    """A record tells how long it waited for the outside, and when it was taken; one without a need tells 0."""
    room = Room()
    room.take(A, b"get a", b"plain")
    room.turn()
    taken_ns = room.clock()
    room.clock.advance(0.25)
    room.calls.end()
    assert room.turn() == [(0, 0, b"<a>"), (0, 1, b"plain")]
    fetched = room.columns.fetched or []
    assert [its.fetch_us for its in fetched] == [250_000, 0]
    assert [its.taken_ns for its in fetched] == [taken_ns, taken_ns]


def test_the_oldest_records_are_asked_for_first() -> None:
    """Twice as many calls as may run at once are handed over, the oldest records' first; one more for each that ends."""
    room = Room()
    room.take(A, *[b"get %d" % n for n in range(10)])
    room.turn()
    assert room.calls.asked == [f"{n}" for n in range(8)]
    room.calls.end("2")
    room.turn()
    assert room.calls.asked == ["0", "1", "3", "4", "5", "6", "7", "8"]


def test_memory_is_taken_from_the_budget_before_a_payload_is_read() -> None:
    """While calls run, the bytes they may fill are held; a payload beyond that waits until its own size is free."""
    room = Room(3 * FIRST_SIZE)
    room.shelf.things = {"big": b"x" * (2 * FIRST_SIZE)}
    room.take(A, b"get big")
    room.turn()
    assert room.budget.held >= FIRST_SIZE
    other = room.share.claim(2 * FIRST_SIZE - 4096)
    room.calls.end()
    room.turn()
    assert room.calls.running == []  # its size is known, there is no room
    other.free()
    room.turn()
    assert room.budget.held >= 2 * FIRST_SIZE
    room.calls.end()
    assert len(room.turn()) == 1


def test_payloads_behind_one_that_does_not_fit_make_room_for_it() -> None:
    """A full budget of payloads that wait for an older one never stands still: the youngest is fetched again later."""
    half = 400_000
    room = Room(1_000_000)
    room.shelf.things = {"a": b"a" * 700_000, "b": b"b" * half, "c": b"c" * half}
    room.take(A, b"get a", b"get b", b"get c")
    out: list[tuple[int, int, bytes]] = []
    room.turn()
    first, *rest = room.calls.running
    room.calls.running = rest
    for _ in range(4):  # b comes first, and c as far as its size
        room.calls.end()
        out += room.turn()
    assert out == []
    assert room.budget.held > half
    room.calls.running = [first]
    for _ in range(20):
        room.calls.end()
        assert room.budget.held <= 1_000_000
        out += room.turn()
    assert [offset for _, offset, _ in out] == [0, 1, 2]
    assert room.budget.held == 0


def test_who_is_away_is_waited_for() -> None:
    """However long the store is away, nothing is rejected; it is told once, with the time, and that it is back."""
    room = Room()
    room.shelf.things = {"a": Away("connection refused")}
    room.take(A, b"get a")
    for _ in range(200):
        room.turn()
        room.calls.end()
        room.clock.advance(0.5)
    assert room.turn() == []
    (waits,) = room.fetching.waits().values()
    assert waits.away
    assert waits.sentence.startswith("for the shelf, away since 20")
    room.shelf.things = {}
    for _ in range(10):
        room.clock.advance(0.5)
        room.turn()
        room.calls.end()
    assert room.log.events() == ["away", "back"]
    assert len(room.fetching.waits()) == 0 or room.turn() == [(0, 0, b"<a>")]


def test_what_is_not_there_in_time_is_rejected() -> None:
    """A thing that is not there is asked for again until its time is over, then the record has its rejection."""
    room = Room()
    missing = Reject("there is no a", "reference_missing")
    room.shelf.things = {"a": NotYet(missing, within_s=2.0)}
    room.take(A, b"get a", b"get b")
    asked, out = 0, []
    started = room.clock()
    while not out:
        room.turn()
        asked += "a" in room.calls.asked
        room.calls.end()
        room.clock.advance(0.05)
        out = room.turn()
    assert 2.0 <= (room.clock() - started) / 1e9 < 2.3
    assert asked > 3
    rejection = (room.columns.fetched or [])[0].rejection
    assert rejection is not None
    assert (rejection.reason, rejection.stage) == ("reference_missing", "fetch")
    assert [offset for _, offset, _ in out] == [0, 1]


def test_an_outage_is_no_absence() -> None:
    """The time in which a thing may appear does not pass while the store is away."""
    room = Room()
    room.shelf.things = {"a": NotYet(Reject("no"), within_s=2.0)}
    room.take(A, b"get a")
    room.turn()
    room.calls.end()
    room.shelf.things = {"a": Away("503")}
    for _ in range(20):
        assert room.turn() == []
        room.calls.end()
        room.clock.advance(1.0)
    room.shelf.things = {"a": NotYet(Reject("no"), within_s=2.0)}
    for _ in range(6):
        room.turn()
        room.calls.end()
        assert room.turn() == []
        room.clock.advance(0.3)
    room.shelf.things = {}
    room.clock.advance(1.0)
    room.turn()
    room.calls.end()
    assert room.turn() == [(0, 0, b"<a>")]


def test_a_thing_that_comes_late_is_taken() -> None:
    """What was not there at first and is there within its time is the record's payload."""
    room = Room()
    room.shelf.things = {"a": NotYet(Reject("no"), within_s=2.0)}
    room.take(A, b"get a")
    room.turn()
    room.calls.end()
    room.turn()
    room.shelf.things = {}
    room.clock.advance(0.2)
    room.turn()
    room.calls.end()
    assert room.turn() == [(0, 0, b"<a>")]


def test_a_number_of_tries_may_end_it_sooner() -> None:
    """A payload that is not whole three times is rejected, long before its time is over."""
    room = Room()
    room.shelf.things = {"a": NotYet(Reject("torn", "reference_mismatch"), within_s=1e6, tries=3)}
    room.take(A, b"get a")
    for _ in range(3):
        room.turn()
        room.calls.end()
        out = room.turn()
        room.clock.advance(1.0)
    assert len(out) == 1


def test_one_answer_serves_all_records_that_need_it() -> None:
    """A shared need is asked for once, whatever the number of records that wait for it."""
    room = Room(1 << 30, Shelf(shared=True))
    room.take(A, b"get schema", b"get schema", b"get other")
    room.take(B, b"get schema")
    room.turn()
    assert room.calls.asked == ["schema", "other"]
    room.calls.end()
    assert len(room.turn()) == 4
    room.take(A, b"get schema")
    assert len(room.turn()) == 1  # known by now


def test_what_was_fetched_may_need_something_itself() -> None:
    """A payload goes through every outside of its route in order: the second one sees what the first one gave."""
    store, registry = Shelf(), Shelf(shared=True, place="registry")
    store.things = {"a": b"get schema"}
    registry.things = {}
    room = Room(1 << 30, store, registry)
    room.take(A, b"get a")
    room.turn()
    room.calls.end()
    room.turn()
    assert room.calls.asked == ["schema"]
    room.calls.end()
    assert room.turn() == [(0, 0, b"get schema")]


def test_revoked_records_are_forgotten_and_their_bytes_given_back() -> None:
    """Bytes of a call under way stay in the budget until it ends; then nothing is left of a revoked partition."""
    room = Room()
    room.shelf.things = {"big": b"x" * (FIRST_SIZE + 1), "away": Away("no")}
    room.take(A, b"get a", b"get big", b"get away", b"get nonsense")
    room.turn()
    room.calls.end("big", "away")
    room.fetching.turn(lambda: 0, True)  # big waits for bytes, away is parked
    room.fetching.drop([A])
    assert room.shelf.closed == ["big"]
    assert room.budget.held == FIRST_SIZE
    room.calls.end()
    assert room.turn() == []
    room.clock.advance(5.0)
    assert room.turn() == []
    assert room.calls.running == []
    assert (room.budget.held, len(room.fetching)) == (0, 0)


def test_nobody_holds_back_for_records_that_are_gone() -> None:
    """An intake whose payload did not fit stops asking the others for room once its records were revoked."""
    room = Room(1_000)
    room.shelf.things = {"big": b"x" * 5_000}
    room.take(A, b"get big")
    room.turn()
    room.calls.end()
    room.fetching.turn(lambda: 0, True)
    assert room.fetching.starved
    room.fetching.drop([A])
    assert not room.fetching.starved


def test_records_of_an_earlier_epoch_are_forgotten() -> None:
    """After a rewind the records that were taken before it do not come out."""
    room, epochs = Room(), Epochs()
    room.take(A, b"get a")
    room.take(B, b"get b")
    epochs.bump(A)
    room.fetching.discard(epochs)
    room.turn()
    room.calls.end()
    assert room.turn() == [(1, 0, b"<b>")]


def test_a_record_past_its_deadline_is_not_asked_for() -> None:
    """While the store is away a record's deadline passes: it leaves without its payload, to be settled as expired."""
    room = Room()
    room.shelf.things = {"a": Away("no")}
    room.take(A, b"get a", deadlines={0: room.clock.wall_ms() + 1_000})
    room.turn()
    room.calls.end()
    room.turn()
    room.clock.advance(3.0)
    assert room.turn() == [(0, 0, b"get a")]
    assert room.calls.running == []


def test_a_need_that_cannot_be_followed_is_a_rejection() -> None:
    """The record is never asked for, and keeps its place."""
    room = Room()
    room.take(A, b"get a", b"get nonsense")
    room.turn()
    assert room.calls.asked == ["a"]
    room.calls.end()
    assert len(room.turn()) == 2
    rejection = (room.columns.fetched or [])[1].rejection
    assert rejection is not None
    assert rejection.reason == "reference_refused"


def test_an_unknown_error_is_a_bug() -> None:
    """What nobody foresaw ends the process, as everywhere in the loop."""
    room = Room()
    room.shelf.things = {"a": ValueError("what?")}
    room.take(A, b"get a")
    room.turn()
    room.calls.end()
    with pytest.raises(ValueError, match="what"):
        room.turn()


def test_io_threads_run_side_by_side_and_wake_the_loop() -> None:
    """As many calls as there are threads run at once; each end wakes whoever waits; an exception is an answer too."""
    import threading

    woken, gate = threading.Semaphore(0), threading.Barrier(3, timeout=20)
    calls = IoThreads(3, woken.release)
    for job in range(3):
        calls.start(job, gate.wait)  # ends only when all three run
    calls.start("fails", lambda: 1 // 0)
    found: list[Back] = []
    while len(found) < 4:
        assert woken.acquire(timeout=20)
        found += calls.back()
    assert {back.job for back in found if back.error is None} == {0, 1, 2}
    assert isinstance(next(back.error for back in found if back.job == "fails"), ZeroDivisionError)
    calls.close()
