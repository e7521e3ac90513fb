"""A bounded pool of threads that takes batches through decode, infer and finish. Knows nothing of the domain.

The threads share one set of lists under one lock. There is no thread per stage and no queue between stages, so nothing
can pile up: in each lane at most ``runs`` batches run at once, and at most ``ahead`` more are decoded or being decoded.
All threads decode shards of the same batch; whoever finishes the last shard makes it ready. Finished batches come back
through one mailbox.

One thread always remains for every lane that has none: a slow lane never holds all threads. Where lanes have unlike
priorities, a less important one keeps out of these spare threads while a more important one has work, but for its turn
now and then (:class:`worker.loop.turns.Turns`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from worker.batch import Batch, Lane, Partition
from worker.loop.awaited import Waits
from worker.loop.lanes import MOST_TRYING_AGAIN, Job, Queue
from worker.loop.turns import Turns, ranked

Task = tuple[Job, Callable[[], None]]


class Steps(Protocol):
    """What the pool does to a batch. ``shards`` comes first and once, then every ``decode``, ``infer``, ``finish``.

    Where ``finish`` leaves a further try in ``batch.again``, the pool takes that batch through all steps when it is due, and
    only then gives back the batch that was submitted.
    """

    def shards(self, batch: Batch) -> list[tuple[int, int]]: ...

    def decode(self, batch: Batch, start: int, stop: int) -> None: ...

    def infer(self, batch: Batch) -> None: ...

    def finish(self, batch: Batch) -> None: ...


@dataclass(frozen=True, slots=True)
class Returned:
    """A batch that is back, with the exception that stopped it: the process cannot go on after one."""

    batch: Batch
    error: BaseException | None = None


class Mailbox:
    """Where finished batches come back; many writers, one reader."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Returned | None] = SimpleQueue()

    def put(self, returned: Returned) -> None:
        self._queue.put(returned)

    def nudge(self) -> None:
        """Let whoever waits in :meth:`drain` go on: there is something else to look at."""
        self._queue.put(None)

    def drain(self, timeout_s: float = 0.0) -> list[Returned]:
        """Everything that is back; waits up to ``timeout_s`` for the first, or for a nudge."""
        found: list[Returned] = []
        try:
            if timeout_s > 0 and (first := self._queue.get(timeout=timeout_s)) is not None:
                found.append(first)
            while True:
                if (back := self._queue.get_nowait()) is not None:
                    found.append(back)
        except Empty:
            return found


class ThreadPool:
    """Threads over ``steps``.

    Args:
        threads: most threads that one lane uses. There is one thread more for every further lane.
        lanes: those known from the start; another one joins with its first batch.
        clock_ns: monotonic nanoseconds, the clock of ``steps``.
    """

    def __init__(
        self,
        steps: Steps,
        threads: int,
        lanes: Iterable[Lane],
        mailbox: Mailbox,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.serial = False
        """Batches run side by side, so that one lane's do not wait for another's."""
        self.outstanding = 0
        """Batches submitted and not collected; for the submitter's thread."""
        self._steps = steps
        self._mailbox = mailbox
        self._clock_ns = clock_ns
        self._lock = threading.Condition()
        self._queues = {lane: Queue(lane) for lane in lanes}
        self._turns: Turns[Queue] = Turns(lambda queue: queue.lane.priority)
        self._ranked = ranked(lane.priority for lane in self._queues)
        """Lanes have unlike priorities."""
        self._spare = max(0, len(self._queues) - 1)
        """Threads beyond those that one lane uses at most."""
        self._begun: dict[Job, None] = {}
        """Batches being worked on, the oldest first."""
        self._closing = False
        self._idle = threads + self._spare
        """Threads that hold no batch."""
        self._threads = [
            threading.Thread(target=self._work, name=f"pool-{index}", daemon=True)
            for index in range(self._idle)
        ]
        for thread in self._threads:
            thread.start()

    def free(self, lanes: Collection[Lane]) -> bool:
        """Whether a batch submitted now to any of these lanes would not just queue up; for the submitter's thread."""
        return all(queue.free for queue in map(self._queue, lanes))

    def trying_again(self) -> list[Batch]:
        """Submitted batches of which rows are tried again, now or later; for the submitter's thread."""
        if not any(queue.trying_again for queue in self._queues.values()):
            return []
        with self._lock:
            return [batch for queue in self._queues.values() for batch in queue.trying_again.values()]

    def submit(self, batch: Batch) -> None:
        queue = self._queue(batch.servable.lane)
        self.outstanding += 1
        queue.outstanding += 1
        with self._lock:
            queue.waiting.append(Job(batch, queue, batch))
            self._lock.notify_all()

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        """Batches that are back; waits up to ``timeout_s`` for the first."""
        found = self._mailbox.drain(timeout_s)
        self.outstanding -= len(found)
        for back in found:
            self._queues[back.batch.servable.lane].outstanding -= 1
        return found

    def nudge(self) -> None:
        """Let whoever waits in :meth:`collect` go on; for any thread."""
        self._mailbox.nudge()

    def waits(self) -> dict[Partition, Waits]:
        """Nothing outside: see :class:`worker.loop.storing.Storing`."""
        return {}

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

    def _queue(self, lane: Lane) -> Queue:
        queue = self._queues.get(lane)
        if queue is None:
            with self._lock:
                queue = self._queues[lane] = Queue(lane)
                self._ranked = ranked(lane.priority for lane in self._queues)
        return queue

    def _work(self) -> None:
        queue: Queue | None = None
        while (task := self._next(queue)) is not None:
            job, step = task
            queue = job.queue
            try:
                step()
            except BaseException as error:  # whatever it is, the submitter must hear of it
                self._abandon(job, error)
            # The names would keep this batch's arrays alive until the next one arrives.
            del task, job, step

    def _next(self, left: Queue | None) -> Task | None:
        """The most useful thing to do now; waits for it. None: the pool is closed.

        Args:
            left: the lane that the asking thread has just worked for.
        """
        with self._lock:
            if left is not None:
                left.threads -= 1
                self._idle += 1
                if len(self._queues) > 1:
                    self._lock.notify_all()  # a lane that had to leave this thread alone may use one now
            while (task := self._find()) is None:
                if self._closing:
                    return None
                self._lock.wait(self._next_try_s())
            task[0].queue.threads += 1
            self._idle -= 1
            return task

    def _find(self) -> Task | None:
        """A task of the most important lane that may have one; among equals, of the one that has the fewest threads."""
        queues: Iterable[Queue] = self._queues.values()
        if len(self._queues) > 1:
            queues = sorted(queues, key=lambda queue: queue.threads)
            if self._ranked:
                queues = self._turns.order(queues)
        for queue in queues:
            if queue.parked:
                queue.unpark(self._clock_ns())
            if self._may_use_a_thread(queue) and (task := self._task_of(queue)) is not None:
                if self._ranked:
                    self._turns.went(queue, [other for other in queues if other is not queue and other.able])
                return task
        return None

    def _task_of(self, queue: Queue) -> Task | None:
        """In one lane: run what is decoded, else decode what is open, else open a batch."""
        if (job := queue.runnable()) is not None:
            return job, partial(self._infer, job)
        if (job := queue.undecoded()) is not None:
            return job, partial(self._decode, job, *job.todo.popleft())
        if (job := queue.openable()) is not None:
            self._begun[job] = None
            return job, partial(self._open, job)
        return None

    def _next_try_s(self) -> float | None:
        """Until the first parked batch is due; None where none is parked."""
        due_ns = [due_ns for queue in self._queues.values() for due_ns, _ in queue.parked]
        return max(0.0, (min(due_ns) - self._clock_ns()) / 1e9) if due_ns else None

    def _may_use_a_thread(self, queue: Queue) -> bool:
        """Whether enough threads would remain for the lanes that have none, and for those that are more important."""
        if self._ranked and self._idle <= self._spare and not self._turns.come(queue):
            mine = queue.lane.priority
            if any(q.lane.priority > mine and (q.threads or q.able) for q in self._queues.values()):
                return False
        if not queue.threads:
            return True
        return self._idle > sum(not other.threads for other in self._queues.values())

    def _open(self, job: Job) -> None:
        shards = self._steps.shards(job.batch)
        if len(shards) == 1:
            self._steps.decode(job.batch, *shards[0])
            self._make_ready(job)
            return
        with self._lock:
            job.todo.extend(shards)
            job.undecoded = len(shards)
            if shards:
                job.queue.opened.append(job)
                self._lock.notify_all()
        if not shards:
            self._make_ready(job)

    def _decode(self, job: Job, start: int, stop: int) -> None:
        self._steps.decode(job.batch, start, stop)
        with self._lock:
            job.undecoded -= 1
            last = job.undecoded == 0 and job in job.queue.opened
            if last:
                job.queue.opened.remove(job)
        if last:
            self._make_ready(job)

    def _make_ready(self, job: Job) -> None:
        with self._lock:
            job.queue.ready.append(job)
            self._lock.notify_all()

    def _infer(self, job: Job) -> None:
        try:
            self._steps.infer(job.batch)
        finally:
            with self._lock:
                job.queue.running -= 1
                self._lock.notify_all()
        self._steps.finish(job.batch)
        again = job.batch.again
        with self._lock:
            self._begun.pop(job, None)
            if again is not None:
                job.batch.again = None
                job.queue.parked.append((again.due_ns, Job(again.batch, job.queue, job.whole)))
                job.queue.trying_again[id(job.whole)] = job.whole
                self._lock.notify_all()  # a thread that waits must not wait beyond the time of this one
            else:
                job.queue.trying_again.pop(id(job.whole), None)
        if again is None:
            self._mailbox.put(Returned(job.whole))

    def _abandon(self, job: Job, error: BaseException) -> None:
        with self._lock:
            job.todo.clear()
            if job in job.queue.opened:
                job.queue.opened.remove(job)
        self._mailbox.put(Returned(job.whole, error))


class InlinePool:
    """The pool's twin without threads: for models whose batch costs less than a hand-over."""

    def __init__(
        self, steps: Steps, mailbox: Mailbox, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.serial = True
        """Batches run one after the other, in the order in which they are submitted."""
        self.outstanding = 0
        self._steps = steps
        self._mailbox = mailbox
        self._clock_ns = clock_ns
        self._parked: list[tuple[int, Batch, Batch]] = []
        """Further tries: when they are due, their batch, and the batch that was submitted."""
        self._current: Batch | None = None

    def free(self, lanes: Collection[Lane]) -> bool:
        """Whether few batches wait for a further try: every other one is done when :meth:`submit` returns."""
        return len(self._parked) < MOST_TRYING_AGAIN

    def trying_again(self) -> list[Batch]:
        """Submitted batches of which rows wait for a further try."""
        return [whole for _, _, whole in self._parked]

    def nudge(self) -> None:
        """Let whoever waits in :meth:`collect` go on; for any thread."""
        self._mailbox.nudge()

    def waits(self) -> dict[Partition, Waits]:
        """Nothing outside: see :class:`worker.loop.storing.Storing`."""
        return {}

    def oldest(self) -> Batch | None:
        """The batch being worked on; for any thread to ask."""
        return self._current

    def submit(self, batch: Batch) -> None:
        self.outstanding += 1
        self._process(batch, batch)

    def _process(self, batch: Batch, whole: Batch) -> None:
        self._current = batch
        try:
            for start, stop in self._steps.shards(batch):
                self._steps.decode(batch, start, stop)
            self._steps.infer(batch)
            self._steps.finish(batch)
        except Exception as error:
            self._mailbox.put(Returned(whole, error))
        else:
            if batch.again is None:
                self._mailbox.put(Returned(whole))
            else:
                self._parked.append((batch.again.due_ns, batch.again.batch, whole))
                batch.again = None
        finally:
            self._current = None

    def collect(self, timeout_s: float = 0.0) -> list[Returned]:
        for parked in [parked for parked in self._parked if parked[0] <= self._clock_ns()]:
            self._parked.remove(parked)
            self._process(*parked[1:])
        found = self._mailbox.drain(timeout_s)
        self.outstanding -= len(found)
        return found

    def close(self, timeout_s: float) -> bool:
        return True
