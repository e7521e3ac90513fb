"""The pool: who does what at the same time, what comes back, and what is let go."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from worker.batch import Batch, Columns
from worker.loop.pool import InlinePool, Returned, ThreadPool

DEADLINE_S = 20.0


class Pipeline:
    """Something a batch refers to, to see whether the batch is still referred to."""


def batch_of(rows: int = 4) -> Batch:
    return Batch(None, range(rows), Columns([b""] * rows), None, Pipeline(), 0, 0.0)


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


@pytest.fixture
def pools() -> Iterator[Callable[..., ThreadPool]]:
    made: list[ThreadPool] = []

    def make(steps: Steps, threads: int = 2, instances: int = 1, ahead: int = 1) -> ThreadPool:
        made.append(ThreadPool(steps, threads, instances, ahead))
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
    """Whatever the number of shards: none for an empty batch, one, or several."""
    steps = Steps()
    pool = pools(steps, threads=3, instances=2)
    batches = [batch_of(rows) for rows in (0, 1, 2, 7, 4)]
    for batch in batches:
        pool.submit(batch)
    back = all_back(pool)
    assert {id(r.batch) for r in back} == {id(b) for b in batches}
    assert all(r.error is None and r.batch.finished_ns for r in back)
    assert sum(stop - start for start, stop, _ in steps.decoded) == sum(map(len, batches))


def test_all_threads_decode_shards_of_one_batch(pools: Callable[..., ThreadPool]) -> None:
    """Two shards meet at a barrier: neither could pass it alone."""
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
    pool = pools(steps, threads=4, instances=2, ahead=ahead)
    for _ in range(8):
        pool.submit(batch_of())
    begun = 2 + ahead  # two run, the others are decoded meanwhile, in two shards each
    until(lambda: steps.running == 2 and len(steps.decoded) == 2 * begun)
    gate.set()
    assert len(all_back(pool)) == 8
    assert steps.running_max == 2
    assert steps.open_max == begun


def test_a_slot_is_free_until_batches_would_only_queue_up(pools: Callable[..., ThreadPool]) -> None:
    """Running, decoded, and one to open when a run ends."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    pool = pools(steps, instances=1)
    for _ in range(3):
        assert pool.free
        pool.submit(batch_of())
    assert not pool.free
    gate.set()
    all_back(pool)
    assert pool.free


@pytest.mark.parametrize("step", ["at_decode", "at_infer"])
def test_an_exception_comes_back_with_its_batch(pools: Callable[..., ThreadPool], step: str) -> None:
    """Never a thread that dies quietly."""

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
    """The oldest one being worked on; none when all are back."""
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
    """Not by a thread that waits for the next one: at a slow trickle that would be memory beyond the budget."""
    steps = Steps(shard_rows=1)
    steps.at_decode = lambda: threading.Event().wait(0.001)  # long enough for others to look for work in vain
    pool = pools(steps, threads=3)
    for _ in range(10):
        pool.submit(batch_of())
        held = [weakref.ref(returned.batch.servable) for returned in all_back(pool)]
        until(lambda held=held: gc.collect() >= 0 and all(ref() is None for ref in held))  # type: ignore[misc]


def test_closing_waits_for_what_is_held_and_says_when_it_does_not_end() -> None:
    """False while a thread is stuck in the model; True once it is done."""
    steps, gate = Steps(), threading.Event()
    steps.at_infer = lambda: gate.wait(DEADLINE_S)
    pool = ThreadPool(steps, 2, 1)
    pool.submit(batch_of())
    until(lambda: steps.running == 1)
    assert not pool.close(0.01)
    gate.set()
    assert pool.close(DEADLINE_S)
    assert len(pool.collect()) == 1


def test_the_inline_pool_works_where_it_is_called() -> None:
    """Same steps, same mailbox, no threads; an exception comes back the same way."""
    steps = Steps()
    pool = InlinePool(steps)
    pool.submit(batch_of())
    assert {thread for _, _, thread in steps.decoded} == {threading.current_thread().name}
    steps.at_infer = lambda: 1 / 0
    pool.submit(batch_of())
    fine, failed = all_back(pool)
    assert fine.error is None
    assert isinstance(failed.error, ZeroDivisionError)
    assert pool.free
    assert pool.close(0)
