"""Whether records get answered: the one watch that looks at partitions.

A partition progresses when its *acknowledged* position moves: the records before it are answered for good. Reading a
record is no progress, and neither is waiting, however good the reason: a dead output ends in a full window, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.batch import Batch, Partition

if TYPE_CHECKING:
    from worker.kafka.ends import Reach
    from worker.loop.awaited import Waits
    from worker.loop.slab import Slab
    from worker.loop.window import Window


@dataclass(frozen=True, slots=True)
class PartitionView:
    """One assigned partition, as seen at one moment."""

    position: int | None
    """Next offset that is not acknowledged (over offsets that hold no record); None while nothing is known."""
    end: int | None
    """Behind the last record there is; None while it is not known."""
    in_flight: Hashable = None
    """A mark that changes whenever a batch or an output of the partition moves; None: nothing of it is in flight."""
    queued: bool = False
    """What is in flight waits for the pool, behind batches of others."""
    paused: bool = False
    """We do not fetch the partition, because we hold as much as we may."""
    waits: str = "to be read"
    """What it waits for, for people."""
    away: bool = False
    """It waits for someone outside who is away."""
    held: bool = False
    """It is held back on purpose, and not for too long."""

    @property
    def behind(self) -> bool:
        """Whether records exist that are not acknowledged."""
        return self.end is not None and (self.position or 0) < self.end


def views(
    window: Window,
    oldest: Batch | None,
    reach: Mapping[Partition, Reach],
    paused: Collection[str],
    outside: Mapping[Partition, Waits] | None = None,
) -> dict[Partition, PartitionView]:
    """The assigned partitions as they are now; for the loop's thread.

    Args:
        oldest: the batch that the pool has worked on for longest.
        reach: how far each partition was read and how far it goes.
        paused: topics that we do not fetch now.
        outside: what partitions wait for before their records can be decoded.
    """
    found = {}
    for partition, read in reach.items():
        position = window.position(partition)
        if position is None:
            position = read.start  # nothing is acknowledged yet
        passed = (
            position + read.unreadable if position is not None and position == read.position else position
        )
        slab = window.oldest(partition)
        view = PartitionView(passed, read.end if read.end >= 0 else None, paused=partition.topic in paused)
        if slab is not None:
            turn, receipt = slab.turn, slab.receipt
            view = replace(
                view,
                in_flight=(id(slab), turn.waiting_for, turn.blocked_by, receipt.taken, receipt.answered),
                queued=turn.waiting_for > 0 and (oldest is None or oldest.slab is not slab),
                waits=_waits(slab),
            )
        if outside and (waits := outside.get(partition)) is not None:
            mark = view.in_flight if waits.held else waits.mark
            view = replace(view, in_flight=mark, waits=waits.sentence, away=waits.away, held=waits.held)
        found[partition] = view
    return found


def _waits(slab: Slab) -> str:
    if slab.turn.waiting_for:
        return f"for {slab.turn.waiting_for} batches of the model"
    if slab.turn.blocked_by:
        return "for records of other partitions that were taken earlier"
    return f"for {slab.receipt.unanswered} outputs to be acknowledged"


@dataclass(frozen=True, slots=True)
class Reading:
    """All assigned partitions at one moment."""

    partitions: Mapping[Partition, PartitionView]
    brokers: bool = True
    """Whether any broker can be reached. While none can, nobody progresses, and that is not the worker's fault."""


@dataclass(slots=True)
class _Seen:
    """A partition when it last moved."""

    mark: tuple[int | None, Hashable]
    end: int | None
    at_s: float
    """Later than that while it has an excuse."""


class Progress:
    """A partition whose lag grows while nothing of it moves.

    Each partition counts for itself: a busy one does not excuse another. There are four excuses:

    - No broker can be reached.
    - It waits for someone outside, such as a store, who is away.
    - It is held back until a replica has the model of a rollout.
    - It waits for its turn: what is in flight of it is queued for the pool, or nothing is and we have paused it
      lately. For such a partition the movement of any other one counts, too.

    A partition *stands* after ``stall_s``, which `standing` tells to whoever asks. `stuck` answers ``GRACE_S`` later.

    Args:
        stall_s: ``limits.stall_s``.
        read: the present state; called by every look.
        clock: seconds that the process was awake.
    """

    GRACE_S = 5.0

    def __init__(self, stall_s: float, read: Callable[[], Reading], clock: Callable[[], float]) -> None:
        self.stall_s = stall_s
        self._read = read
        self._clock = clock
        self._seen: dict[Partition, _Seen] = {}
        self._moved_s = clock()
        """When anything of any partition moved."""
        self._paused_s: dict[Partition, float] = {}
        self._standing: str | None = None

    def standing(self) -> str | None:
        """What the last look found; for threads that only want to show it."""
        return self._standing

    def stuck(self) -> str | None:
        """Look now; None while everything moves, has an excuse or has nothing to do."""
        self._standing, stood_s = self._look()
        return self._standing if stood_s > self.stall_s + self.GRACE_S else None

    def _look(self) -> tuple[str | None, float]:
        """The partition that has stood for longest, as a sentence, and for how long."""
        reading, now = self._read(), self._clock()
        for gone in self._seen.keys() - reading.partitions.keys():
            del self._seen[gone]
            self._paused_s.pop(gone, None)
        for partition, view in reading.partitions.items():
            if view.paused:
                self._paused_s[partition] = now
            seen = self._seen.get(partition)
            if seen is None or seen.mark != (view.position, view.in_flight):
                self._moved_s = now
                self._seen[partition] = _Seen((view.position, view.in_flight), view.end, now)
        worst: tuple[str | None, float] = (None, 0.0)
        for partition, view in reading.partitions.items():
            seen = self._seen[partition]
            if not view.behind or not reading.brokers or view.away or view.held:
                seen.end, seen.at_s = view.end, now
            elif self._waits_its_turn(partition, view, now):
                seen.at_s = max(seen.at_s, self._moved_s)
            stood_s = now - seen.at_s
            if stood_s > max(self.stall_s, worst[1]) and (view.end or 0) > (seen.end or 0):
                worst = (
                    (
                        f"{partition.topic}/{partition.number} has stood at {view.position} for {stood_s:.0f} s while its "
                        f"end went from {seen.end} to {view.end}; it waits {view.waits} "
                        f"(limits.stall_s is {self.stall_s:g})"
                    ),
                    stood_s,
                )
        return worst

    def _waits_its_turn(self, partition: Partition, view: PartitionView, now: float) -> bool:
        if view.in_flight is None:
            return now - self._paused_s.get(partition, float("-inf")) <= self.stall_s
        return view.queued
