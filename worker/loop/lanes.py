"""What the pool knows of each lane: its batches by stage, and how many threads work on them.

A lane is where model runs happen, ``runs`` at a time (:class:`worker.batch.Lane`). All methods are called under the
pool's lock, except those that say otherwise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from worker.batch import Batch, Lane


@dataclass(slots=True, eq=False)
class Job:
    """A batch in the pool."""

    batch: Batch
    queue: Queue
    whole: Batch
    """The batch that was submitted: ``batch`` itself, or the one whose rows ``batch`` tries again."""
    todo: deque[tuple[int, int]] = field(default_factory=deque)
    """Shards that nobody decodes yet."""
    undecoded: int = 0
    """Shards that are not decoded."""


MOST_TRYING_AGAIN = 32
"""Batches of one lane that may wait for a further try while others go on: a service that is away is asked no more often."""


class Queue:
    """The batches of one lane."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.capacity = lane.runs + lane.ahead + 1
        """Batches worth having here: running, decoded, and one to open when a run ends."""
        self.outstanding = 0
        """Batches submitted and not collected. The submitter's thread alone reads and writes it, without the lock."""
        self.threads = 0
        """Threads that work on a batch of this lane now."""
        self.waiting: deque[Job] = deque()
        self.opened: list[Job] = []
        """Batches with shards to decode."""
        self.ready: deque[Job] = deque()
        """Decoded batches that wait for their run."""
        self.decoded = 0
        """Batches decoded, or being decoded, that do not run."""
        self.running = 0
        self.parked: list[tuple[int, Job]] = []
        """Further tries, with the monotonic time, in nanoseconds, when each is due."""
        self.trying_again: dict[int, Batch] = {}
        """Submitted batches of which rows are tried again, now or later, by identity."""

    @property
    def free(self) -> bool:
        """Whether a batch submitted now would not just queue up. For the submitter's thread, without the lock."""
        again = len(self.trying_again)
        return self.outstanding - again < self.capacity and again < MOST_TRYING_AGAIN

    def unpark(self, now_ns: int) -> None:
        """What is due for a further try waits for a thread like any other batch, before those that came later."""
        due = [job for due_ns, job in self.parked if due_ns <= now_ns]
        if due:
            self.parked = [(due_ns, job) for due_ns, job in self.parked if due_ns > now_ns]
            self.waiting.extendleft(reversed(due))

    def runnable(self) -> Job | None:
        """The next batch to run, taken out; None when there is none, or enough are running."""
        if not self.ready or self.running >= self.lane.runs:
            return None
        self.running += 1
        self.decoded -= 1
        return self.ready.popleft()

    def undecoded(self) -> Job | None:
        """A batch with a shard that nobody decodes yet."""
        # A loop in the caller would keep its variable, and so the last batch, alive while the thread waits.
        return next((job for job in self.opened if job.todo), None)

    def openable(self) -> Job | None:
        """The next batch to open, taken out; None when there is none, or enough are decoded."""
        if not self.waiting or self.decoded + self.running >= self.lane.runs + self.lane.ahead:
            return None
        self.decoded += 1
        return self.waiting.popleft()

    @property
    def able(self) -> bool:
        """Whether :meth:`runnable`, :meth:`undecoded` or :meth:`openable` would give a batch."""
        lane = self.lane
        return (
            (bool(self.ready) and self.running < lane.runs)
            or any(job.todo for job in self.opened)
            or (bool(self.waiting) and self.decoded + self.running < lane.runs + lane.ahead)
        )

    def __repr__(self) -> str:
        return (
            f"<Queue of lane {self.lane.name}: {len(self.waiting)} waiting, {self.decoded} decoded, "
            f"{self.running} running on {self.threads} threads, {len(self.parked)} parked>"
        )
