"""The pool: who does what at the same time, what comes back, and what is let go."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from worker.batch import Again, Batch, Columns, Lane
from worker.loop.lanes import MOST_TRYING_AGAIN
from worker.loop.pool import InlinePool, Mailbox, Returned, ThreadPool

DEADLINE_S = 20.0


LANE = Lane("one")


class Servable:
    """What a batch refers to: the tests look whether the batch is still referred to."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane


def batch_of(rows: int = 4, lane: Lane = LANE) -> Batch:
    return Batch(None, range(rows), Columns([b""] * rows), None, Servable(lane), 0, 0.0)


class Clock:
    """Nanoseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


class Steps:
    """Counts who is where; each step can be made to wait or to fail."""

    def __init__(self, shard_rows: int = 2) -> None:
        self.lock = threading.Lock()
        self.shard_rows = shard_rows
        self.decoded: list[tuple[int, int, str]] = []
        self.open = self.running = 0
        self.open_max = self.running_max = 0
        self.at_decode: Callable[[], object] = lambda: None
        self.at_infer: Callable[[], object] = lambda: None
        self.again: dict[int, Again] = {}
        """Further tries that batches ask for, by their identity."""
        self.finished: list[int] = []
        """Identities of batches."""

    def shards(self, batch: Batch) -> list[tuple[int, int]]:
        with self.lock:
            self.open += 1
            self.open_max = max(self.open_max, self.open)
        rows = len(batch)
        return [(start, min(start + self.shard_rows, rows)) for start in range(0, rows, self.shard_rows)]

    def decode(self, batch: Batch, start: int, stop: int) -> None:
        self.at_decode()
        with self.lock:
            self.decoded.append((start, stop, threading.current_thread().name))

    def infer(self, batch: Batch) -> None:
        with self.lock:
            self.running += 1
            self.running_max = max(self.running_max, self.running)
        self.at_infer()
        with self.lock:
            self.running -= 1
            self.open -= 1

    def finish(self, batch: Batch) -> None:
        batch.finished_ns = 1
        self.finished.append(id(batch))
        batch.again = self.again.pop(id(batch), None)


@pytest.fixture
def pools() -> Iterator[Callable[..., ThreadPool]]:
    made: list[ThreadPool] = []

    def make(steps: Steps, threads: int = 2, *lanes: Lane) -> ThreadPool:
        made.append(ThreadPool(steps, threads, lanes or [LANE], Mailbox()))
        return made[-1]

    yield make
    assert all(pool.close(DEADLINE_S) for pool in made)


def all_back(pool: ThreadPool | InlinePool) -> list[Returned]:
    back: list[Returned] = []
    end = time.monotonic() + DEADLINE_S
    while pool.outstanding and time.monotonic() < end:
        back += pool.collect(0.5)
    assert not pool.outstanding
    return back


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        threading.Event().wait(0.001)


def test_every_row_is_decoded_once_and_every_batch_comes_back(pools: Callable[..., ThreadPool]) -> None:
    """Every row is decoded once and every batch comes back, with no shard, one, or several."""
    steps, lane = Steps(), Lane("two at once", runs=2)
    pool = pools(steps, 3, lane)
    batches = [batch_of(rows, lane) for rows in (0, 1, 2, 7, 4)]
    for batch in batches:
        pool.submit(batch)
    back = all_back(pool)
    assert {id(r.batch) for r in back} == {id(b) for b in batches}
    assert all(r.error is None and r.batch.finished_ns for r in back)
    assert sum(stop - start for start, stop, _ in steps.decoded) == sum(map(len, batches))


def test_all_threads_decode_shards_of_one_batch(pools: Callable[..., ThreadPool]) -> None:
    """Shards of one batch are decoded on several threads at once."""
    steps = Steps()
    steps.at_decode = threading.Barrier(2, timeout=DEADLINE_S).wait
    pool = pools(steps)
    pool.submit(batch_of(4))
    assert all_back(pool)[0].error is None
    assert len({thread for _, _, thread in steps.decoded}) == 2


@pytest.mark.parametrize("ahead", [1, 2])
def test_runs_and_decoded_batches_are_bounded(pools: Callable[..., ThreadPool], ahead: int) -> None:
    """At most `instances` model runs at once, at most `ahead` more batches decoded: never idle, never piling up."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    lane = Lane("two at once", runs=2, ahead=ahead)
    pool = pools(steps, 4, lane)
    for _ in range(8):
        pool.submit(batch_of(lane=lane))
    begun = 2 + ahead  # two run, the others are decoded meanwhile, in two shards each
    until(lambda: steps.running == 2 and len(steps.decoded) == 2 * begun)
    gate.set()
    assert len(all_back(pool)) == 8
    assert steps.running_max == 2
    assert steps.open_max == begun


def test_a_slot_is_free_until_batches_would_only_queue_up(pools: Callable[..., ThreadPool]) -> None:
    """A lane has a free slot while a batch would run, be decoded, or be opened when a run ends."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    other = Lane("other")
    pool = pools(steps, 2, LANE, other)
    for _ in range(3):
        assert pool.free([LANE])
        pool.submit(batch_of())
    assert not pool.free([LANE])
    assert not pool.free([other, LANE])
    assert pool.free([other])
    gate.set()
    all_back(pool)
    assert pool.free([LANE, other])


def test_a_slow_lane_never_holds_all_threads(pools: Callable[..., ThreadPool]) -> None:
    """While every run of one lane hangs, batches of the others are decoded, run and finished."""
    gate = threading.Event()
    slow, quick = Lane("slow", runs=8, ahead=8), Lane("quick")

    class Hanging(Steps):
        def infer(self, batch: Batch) -> None:
            if batch.servable.lane is slow:
                assert gate.wait(DEADLINE_S)
            super().infer(batch)

    pool = pools(Hanging(), 2, slow, quick)
    for _ in range(8):
        pool.submit(batch_of(lane=slow))
    back: list[Returned] = []
    for _ in range(5):
        pool.submit(batch_of(lane=quick))
        until(lambda: back.extend(pool.collect(0.01)) or not pool.outstanding - 8)  # type: ignore[func-returns-value]
    assert [returned.batch.servable.lane for returned in back] == [quick] * 5
    gate.set()
    all_back(pool)


def test_a_lane_alone_uses_as_many_threads_as_it_was_given(pools: Callable[..., ThreadPool]) -> None:
    """The thread that is kept for another lane comes on top: nobody loses one to a lane without work."""
    steps, wide = Steps(), Lane("wide", runs=2)
    steps.at_infer = threading.Barrier(2, timeout=DEADLINE_S).wait
    pool = pools(steps, 2, wide, Lane("idle"))
    for _ in range(2):
        pool.submit(batch_of(lane=wide))
    assert all(back.error is None for back in all_back(pool))
    assert steps.running_max == 2


def test_each_lane_keeps_its_own_runs(pools: Callable[..., ThreadPool]) -> None:
    """`instances: 1` of one pipeline stays 1 beside another one's 3."""
    lanes = [Lane("one at a time", runs=1, ahead=3), Lane("three", runs=3)]
    running: Counter[Lane] = Counter()
    most: Counter[Lane] = Counter()

    class Watching(Steps):
        def infer(self, batch: Batch) -> None:
            with self.lock:
                running[batch.servable.lane] += 1
                most.update({batch.servable.lane: 0})
                most[batch.servable.lane] = max(most[batch.servable.lane], running[batch.servable.lane])
            threading.Event().wait(0.002)
            with self.lock:
                running[batch.servable.lane] -= 1
            super().infer(batch)

    pool = pools(Watching(), 4, *lanes)
    for _ in range(12):
        for lane in lanes:
            pool.submit(batch_of(lane=lane))
    all_back(pool)
    assert most[lanes[0]] == 1
    assert 1 < most[lanes[1]] <= 3


def served(pool: ThreadPool, steps: Steps, first: Lane, last: Lane, batches: int) -> Counter[Lane]:
    """Runs by lane until the more important of two lanes, both with so many batches, has no more work."""
    gate, done, had = threading.Event(), threading.Event(), Counter[Lane]()

    def infer(batch: Batch) -> None:
        gate.wait(DEADLINE_S)
        with steps.lock:
            if not done.is_set():
                had[batch.servable.lane] += 1
            if had[first] == batches:
                done.set()

    steps.infer = infer  # type: ignore[method-assign]
    for lane in (first, last):
        for _ in range(batches):
            pool.submit(batch_of(lane=lane))
    gate.set()
    assert done.wait(DEADLINE_S)
    all_back(pool)
    return had


def test_a_more_important_lane_has_nineteen_of_twenty_turns(pools: Callable[..., ThreadPool]) -> None:
    """Of two lanes that always have work, priority 9 runs about twenty times as often as priority 0, which still runs."""
    steps, first, last = Steps(4), Lane("first", priority=9), Lane("last", priority=0)
    had = served(pools(steps, 1, last, first), steps, first, last, batches=200)
    assert 5 <= had[last] <= 20, had


def test_a_less_important_lane_uses_what_is_left_over(pools: Callable[..., ThreadPool]) -> None:
    """A lane of priority 0 has all threads but the spare one while nobody more important has work."""
    steps, last = Steps(), Lane("last", runs=2, priority=0)
    steps.at_infer = threading.Barrier(2, timeout=DEADLINE_S).wait
    pool = pools(steps, 2, last, Lane("first", priority=9))
    for _ in range(2):
        pool.submit(batch_of(lane=last))
    assert all(back.error is None for back in all_back(pool))
    assert steps.running_max == 2


@pytest.mark.parametrize("step", ["at_decode", "at_infer"])
def test_an_exception_comes_back_with_its_batch(pools: Callable[..., ThreadPool], step: str) -> None:
    """An exception in a step comes back with its batch."""

    def fail() -> None:
        raise SystemError("boom")

    steps = Steps(shard_rows=4)
    setattr(steps, step, fail)
    pool = pools(steps)
    batch = batch_of()
    pool.submit(batch)
    (back,) = all_back(pool)
    assert back.batch is batch
    assert isinstance(back.error, SystemError)


def test_the_batch_that_takes_longest_can_be_asked_for(pools: Callable[..., ThreadPool]) -> None:
    """The pool names the batch that has been worked on for longest, and none when all are back."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    pool = pools(steps)
    first = batch_of()
    pool.submit(first)
    pool.submit(batch_of())
    until(lambda: steps.running == 1)
    assert pool.oldest() is first
    gate.set()
    all_back(pool)
    assert pool.oldest() is None


def test_no_finished_batch_is_kept_alive(pools: Callable[..., ThreadPool]) -> None:
    """A thread that waits for work keeps no finished batch alive."""
    steps = Steps(shard_rows=1)
    steps.at_decode = lambda: threading.Event().wait(0.001)  # long enough for others to look for work in vain
    pool = pools(steps, 3)
    for _ in range(10):
        pool.submit(batch_of())
        held = [weakref.ref(returned.batch.servable) for returned in all_back(pool)]
        until(lambda held=held: gc.collect() >= 0 and all(ref() is None for ref in held))  # type: ignore[misc]


def test_closing_waits_for_what_is_held_and_says_when_it_does_not_end() -> None:
    """`close` is False while a thread is stuck in the model, and True once it is done."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    pool = ThreadPool(steps, 2, [LANE], Mailbox())
    pool.submit(batch_of())
    until(lambda: steps.running == 1)
    assert not pool.close(0.01)
    gate.set()
    assert pool.close(DEADLINE_S)
    assert len(pool.collect()) == 1


def test_a_batch_comes_back_when_its_further_tries_are_done(pools: Callable[..., ThreadPool]) -> None:
    """A batch that asks for further tries comes back once, after the last of them; the lane works on others meanwhile."""
    steps, later = Steps(), time.monotonic_ns() + 200_000_000
    first, second, third = batch_of(), batch_of(2), batch_of(1)
    steps.again = {id(first): Again(second, later), id(second): Again(third, 0)}
    pool = pools(steps)
    pool.submit(first)
    until(lambda: pool.trying_again() == [first])
    assert pool.free([LANE])
    other = batch_of()
    pool.submit(other)
    (back,) = pool.collect(DEADLINE_S)
    assert back.batch is other
    (back,) = all_back(pool)
    assert back.batch is first
    assert steps.finished == [id(batch) for batch in (first, other, second, third)]


def test_a_lane_with_many_further_tries_takes_no_more(pools: Callable[..., ThreadPool]) -> None:
    """When 32 batches of a lane wait for a further try it takes no other one, so that a service that is away has rest."""
    steps, never = Steps(), time.monotonic_ns() + 3_600_000_000_000
    pool = pools(steps)
    for waiting in range(MOST_TRYING_AGAIN):
        assert pool.free([LANE]), waiting
        batch = batch_of()
        steps.again[id(batch)] = Again(batch_of(), never)
        pool.submit(batch)
        until(lambda most=waiting: len(pool.trying_again()) > most)  # type: ignore[misc]
    assert not pool.free([LANE])


def test_the_inline_pool_tries_again_when_it_is_asked_for_results() -> None:
    """Without threads a further try happens in the first `collect` after its time."""
    steps, clock = Steps(), Clock()
    pool = InlinePool(steps, Mailbox(), clock)
    first, second = batch_of(), batch_of(1)
    steps.again[id(first)] = Again(second, clock.now_ns + 5)
    pool.submit(first)
    assert pool.collect() == []
    assert steps.finished == [id(first)]
    clock.now_ns += 5
    (back,) = pool.collect()
    assert back.batch is first
    assert steps.finished == [id(first), id(second)]
    assert pool.outstanding == 0


def test_the_inline_pool_works_where_it_is_called() -> None:
    """The inline pool takes a batch through the same steps on the caller's thread, and returns exceptions the same way."""
    steps = Steps()
    pool = InlinePool(steps, Mailbox())
    pool.submit(batch_of())
    assert {thread for _, _, thread in steps.decoded} == {threading.current_thread().name}
    steps.at_infer = lambda: 1 / 0
    pool.submit(batch_of())
    fine, failed = all_back(pool)
    assert fine.error is None
    assert isinstance(failed.error, ZeroDivisionError)
    assert pool.free([LANE])
    assert pool.close(0)
