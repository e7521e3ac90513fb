"""A bounded pool of threads that takes batches through decode, infer and finish. Knows nothing of the domain.

The threads share one set of lists under one lock; there is no thread per stage and no queue between stages, so
nothing can pile up: at most ``instances`` batches run at once and at most ``ahead`` more are decoded or being
decoded. All threads decode shards of the same batch; whoever finishes the last shard makes it ready.
Finished batches come back through one mailbox.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from worker.batch import Batch


class Steps(Protocol):
    """What the pool does to a batch. ``shards`` comes first and once, then every ``decode``, ``infer``, ``finish``."""

    def shards(self, batch: Batch) -> list[tuple[int, int]]: ...

    def decode(self, batch: Batch, start: int, stop: int) -> None: ...

    def infer(self, batch: Batch) -> None: ...

    def finish(self, batch: Batch) -> None: ...


@dataclass(frozen=True, slots=True)
class Returned:
    """A batch that is back, with the exception that stopped it: the process cannot go on after one."""

    batch: Batch
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class _Job:
    batch: Batch
    todo: deque[tuple[int, int]] = field(default_factory=deque)
    undecoded: int = 0


class Mailbox:
    """Where finished batches come back; many writers, one reader."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Returned] = SimpleQueue()

    def put(self, returned: Returned) -> None:
        self._queue.put(returned)

    def drain(self, timeout_s: float = 0.0) -> list[Returned]:
        """Everything that is back; waits up to ``timeout_s`` for the first."""
        found: list[Returned] = []
        try:
            found.append(self._queue.get(timeout=timeout_s) if timeout_s > 0 else self._queue.get_nowait())
            while True:
                found.append(self._queue.get_nowait())
        except Empty:
            return found


class ThreadPool:
    """``threads`` workers over ``steps``.

    Args:
        instances: model runs at once.
        ahead: batches decoded, or being decoded, beyond those that run; two where a decode takes as long as a run.
    """

    def __init__(self, steps: Steps, threads: int, instances: int, ahead: int = 1) -> None:
        self.mailbox = Mailbox()
        self.outstanding = 0
        """Batches submitted and not collected; the submitter's thread alone reads and writes it."""
        self.capacity = instances + ahead + 1
        """Batches worth having here: running, decoded, and one to open when a run ends."""
        self._steps = steps
        self._instances = instances
        self._most_begun = instances + ahead
        self._lock = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._opened: list[_Job] = []
        self._begun: dict[_Job, None] = {}
        """Jobs being worked on, the oldest first."""
        self._ready: deque[_Job] = deque()
        self._decoded = 0
        self._running = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"pool-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def free(self) -> bool:
        """Whether a batch submitted now would not just queue up."""
        return self.outstanding < self.capacity

    def submit(self, batch: Batch) -> None:
        self.outstanding += 1
        with self._lock:
            self._waiting.append(_Job(batch))
            self._lock.notify_all()

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        """Batches that are back; waits up to ``timeout_s`` for the first."""
        found = self.mailbox.drain(timeout_s)
        self.outstanding -= len(found)
        return found

    def oldest(self) -> Batch | None:
        """The batch that has been worked on for longest; for any thread to ask."""
        with self._lock:
            job = next(iter(self._begun), None)
            return job.batch if job is not None else None

    def close(self, timeout_s: float) -> bool:
        """Stop the threads once they are done with what they hold; False when one is still busy after that."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (task := self._next()) is not None:
            job, step = task
            try:
                step()
            except BaseException as error:  # whatever it is, the submitter must hear of it
                self._abandon(job, error)
            # the names would keep this batch's frames alive until the next one arrives
            del task, job, step

    def _next(self) -> tuple[_Job, Callable[[], None]] | None:
        """The most useful thing to do now: run what is decoded, else decode what is open, else open a batch."""
        with self._lock:
            while True:
                if self._ready and self._running < self._instances:
                    job = self._ready.popleft()
                    self._running += 1
                    self._decoded -= 1
                    return job, partial(self._infer, job)
                if (opened := self._undecoded()) is not None:
                    return opened, partial(self._decode, opened, *opened.todo.popleft())
                if self._waiting and self._decoded + self._running < self._most_begun:
                    job = self._waiting.popleft()
                    self._begun[job] = None
                    self._decoded += 1
                    return job, partial(self._open, job)
                if self._closing:
                    return None
                self._lock.wait()

    def _undecoded(self) -> _Job | None:
        # a loop in the caller would leave its variable, and so the last batch, alive while the thread waits
        return next((job for job in self._opened if job.todo), None)

    def _open(self, job: _Job) -> None:
        shards = self._steps.shards(job.batch)
        if len(shards) == 1:
            self._steps.decode(job.batch, *shards[0])
            self._make_ready(job)
            return
        with self._lock:
            job.todo.extend(shards)
            job.undecoded = len(shards)
            if shards:
                self._opened.append(job)
                self._lock.notify_all()
        if not shards:
            self._make_ready(job)

    def _decode(self, job: _Job, start: int, stop: int) -> None:
        self._steps.decode(job.batch, start, stop)
        with self._lock:
            job.undecoded -= 1
            last = job.undecoded == 0 and job in self._opened
            if last:
                self._opened.remove(job)
        if last:
            self._make_ready(job)

    def _make_ready(self, job: _Job) -> None:
        with self._lock:
            self._ready.append(job)
            self._lock.notify_all()

    def _infer(self, job: _Job) -> None:
        try:
            self._steps.infer(job.batch)
        finally:
            with self._lock:
                self._running -= 1
                self._lock.notify_all()
        self._steps.finish(job.batch)
        with self._lock:
            self._begun.pop(job, None)
        self.mailbox.put(Returned(job.batch))

    def _abandon(self, job: _Job, error: BaseException) -> None:
        with self._lock:
            job.todo.clear()
            if job in self._opened:
                self._opened.remove(job)
        self.mailbox.put(Returned(job.batch, error))


class InlinePool:
    """The pool's twin without threads: for models whose batch costs less than a hand-over."""

    def __init__(self, steps: Steps) -> None:
        self.mailbox = Mailbox()
        self.outstanding = 0
        self.free = True
        self._steps = steps
        self._current: Batch | None = None

    def oldest(self) -> Batch | None:
        """The batch being worked on; for any thread to ask."""
        return self._current

    def submit(self, batch: Batch) -> None:
        self.outstanding += 1
        self._current = batch
        try:
            for start, stop in self._steps.shards(batch):
                self._steps.decode(batch, start, stop)
            self._steps.infer(batch)
            self._steps.finish(batch)
        except Exception as error:
            self.mailbox.put(Returned(batch, error))
        else:
            self.mailbox.put(Returned(batch))
        finally:
            self._current = None

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        found = self.mailbox.drain(timeout_s if self.outstanding else 0.0)
        self.outstanding -= len(found)
        return found

    def close(self, timeout_s: float) -> bool:
        return True
