"""Records that kill the process. Kafka counts no deliveries, so the count is kept beside the committed position.

Before a process works on the first record of a partition, it commits the unchanged position with a note
``streaminfer;attempts=1;until=<offset>``. The first progress and every clean hand-over commit the position without a
note. So a process that finds the note knows that another one died and had made no progress. It then reads the partition
*cautiously* until that offset: one record at a time, and nothing beside it in the whole process. Before each such record
it commits the position with a note that names the record (``at=<offset>``) and counts the attempt.

Meanwhile answers go out and positions move at their usual intervals, so that a record under caution costs one round
trip and not three. Only the record that kills collects attempts. Records that were in flight beside it do not, and
records before it, which were survived one at a time, are not noted again. At ``max_crashes`` attempts the record becomes
a dead letter and is not decoded.

An end that this process or its operator chose is no death: a drain over its budget, a second signal, exit 4 and exit 7
take the attempt back. A batch time-out counts as an attempt, and the note says so (``why=timeout``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from worker.batch import Partition

_NOTE = re.compile(
    r"streaminfer;attempts=(\d+);until=(\d+)(?:;at=(\d+))?(;why=timeout)?(?:;series=.*)?", re.DOTALL
)
"""The marks of :mod:`worker.loop.series` may stand behind it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the metadata of a committed position says about the first records behind it."""

    attempts: int
    """How often a process began to work on the first record from ``at`` on. This process counts once it has begun."""
    until: int
    """Offset from which on the partition is read as usual again."""
    at: int = 0
    """Records before this offset were survived one at a time; 0 = those before the position."""
    timed_out: bool = False
    """The last attempt ended because a batch took longer than ``limits.batch_timeout_s``."""

    @classmethod
    def parse(cls, metadata: str) -> Note | None:
        """The note in a commit's metadata; None when there is none, or when the text is somebody else's."""
        found = _NOTE.fullmatch(metadata)
        return cls(int(found[1]), int(found[2]), int(found[3] or 0), bool(found[4])) if found else None

    def __str__(self) -> str:
        at, why = f";at={self.at}" * (self.at > 0), ";why=timeout" * self.timed_out
        return f"streaminfer;attempts={self.attempts};until={self.until}{at}{why}"


class Caution:
    """Which records are worked on alone, and what every commit says about that.

    Args:
        reach: per topic how many offsets beyond the position a dead process may have had in flight: twice the
            largest slab of the topic's intake.
        max_crashes: attempts at which a record is given up.
    """

    def __init__(self, reach: Mapping[str, int], max_crashes: int) -> None:
        self.max_crashes = max_crashes
        self._reach = reach
        self._notes: dict[Partition, Note] = {}
        """Partitions under caution."""
        self._begun: dict[Partition, int] = {}
        """Per partition the offset of the last record that this process began under caution: one process makes one attempt.
        It is kept while another process has the partition: when the commit of a hand-over failed, our attempt stays
        noted although we live."""
        self._left: dict[Partition, Note] = {}
        """Partitions that are not under caution any more -> the note that the broker should keep until their position
        reaches it."""
        self._outdated: set[Partition] = set()
        """Partitions whose note at the broker is out of date: a record was survived or begun since."""
        self._fresh: set[Partition] = set()
        """Partitions whose committed position carries this process's first note: no progress yet."""

    def __bool__(self) -> bool:
        return bool(self._notes or self._outdated)

    def __contains__(self, partition: object) -> bool:
        return partition in self._notes

    def covers(self, partition: Partition, offset: int) -> bool:
        """Whether this record is to be worked on alone."""
        note = self._notes.get(partition)
        return note is not None and offset < note.until

    def assigned(self, found: Mapping[Partition, tuple[int, str]]) -> dict[Partition, str]:
        """These partitions are ours now, each with its committed position and the metadata found there.

        Returns:
            The notes to commit now, with the positions unchanged: one per partition without an earlier one.
        """
        notes: dict[Partition, str] = {}
        for partition, (position, metadata) in found.items():
            note = Note.parse(metadata)
            if note is not None:
                self._notes[partition] = replace(note, at=note.at or position)
            else:
                self._fresh.add(partition)
                notes[partition] = str(Note(1, position + self._reach[partition.topic]))
        return notes

    def dropped(self, partitions: Iterable[Partition]) -> None:
        """These partitions are not ours any more."""
        for partition in partitions:
            self._notes.pop(partition, None)
            self._left.pop(partition, None)
            self._outdated.discard(partition)
            self._fresh.discard(partition)

    def attempts(self, partition: Partition, offset: int) -> int:
        """The number of the attempt that working on this record under caution would be; 0 = it was survived before.

        At ``max_crashes`` the record is given up.
        """
        note = self._notes[partition]
        if offset < note.at:
            return 0
        return max(1, note.attempts + (self._begun.get(partition) != offset))

    def begin(self, partition: Partition, offset: int) -> None:
        """This record is about to be worked on. The notes must be committed first (:meth:`notes`)."""
        attempts = self.attempts(partition, offset)
        if attempts:
            self._begun[partition] = offset
            note = self._notes[partition]
            self._notes[partition] = replace(note, attempts=attempts, at=offset, timed_out=False)
            self._outdated.add(partition)

    @property
    def outdated(self) -> bool:
        """Whether notes must be committed before anything is worked on.

        A record is about to begin; or other records were survived, and would otherwise be charged with a death that they
        had no part in.
        """
        return bool(self._outdated)

    def notes(self) -> dict[Partition, str]:
        """The notes to commit before anything is worked on."""
        told, self._outdated = self._outdated, set()
        return {p: str(self._notes.get(p) or self._left.get(p) or "") for p in told}

    def survived(self, partition: Partition, next_offset: int) -> None:
        """The record before this offset was worked on alone, and the process lives."""
        note = self._notes.get(partition)
        if note is None or next_offset <= note.at:
            return
        self._outdated.add(partition)
        if next_offset >= note.until:
            del self._notes[partition]
            # The same note as for a partition that has just become ours at this offset.
            self._left[partition] = Note(1, next_offset + self._reach[partition.topic], next_offset)
        else:
            self._notes[partition] = Note(0, note.until, next_offset)

    def resumed(self, positions: Mapping[Partition, int]) -> None:
        """Reading goes on from these positions after a rewind: records before them count no attempts any more.

        A transaction of unknown outcome may have moved the positions without a call of :meth:`metadata`.
        """
        for partition, position in positions.items():
            note = self._notes.get(partition)
            if note is None or position <= note.at:
                continue
            if position >= note.until:
                del self._notes[partition]
            else:
                self._notes[partition] = Note(0, note.until, position)

    def metadata(self, positions: Mapping[Partition, int]) -> dict[Partition, str]:
        """The metadata for a commit of these positions: progress removes the note, or moves it to the next record."""
        kept: dict[Partition, str] = {}
        for partition, position in positions.items():
            self._fresh.discard(partition)
            self._outdated.discard(partition)
            note = self._notes.get(partition) or self._left.get(partition)
            if note is None:
                continue
            if partition in self._left and position >= note.at:
                del self._left[partition]
                continue
            if position > note.at:  # a record was given up and has its dead letter
                note = Note(0, note.until, position)
            if position < note.until:
                kept[partition] = str(note)
        return kept

    def timed_out(self, partition: Partition, offset: int) -> bool:
        """Whether the last attempt at this record, which is under caution, ended by the batch time-out."""
        return self._notes[partition].timed_out

    def forgiven(self, partitions: Iterable[Partition]) -> dict[Partition, str]:
        """What to commit beside the positions of partitions under caution when this process ends by choice.

        Only an unexplained death counts: the attempt that this process began and did not survive is taken back.
        """
        notes = {}
        for partition in partitions:
            note = self._notes.get(partition)
            if note is not None and note.attempts and self._begun.get(partition) == note.at:
                self._notes[partition] = replace(note, attempts=note.attempts - 1)
                notes[partition] = str(self._notes[partition])
        return notes

    def overdue(self, positions: Mapping[Partition, int]) -> dict[Partition, str]:
        """What to commit when a batch is past its time-out and may end the process: the attempt counts, with why.

        Args:
            positions: where the next owner of each owned partition would go on reading.
        """
        notes = {}
        for partition, position in positions.items():
            note = self._notes.get(partition)
            if note is not None and self._begun.get(partition) == note.at:
                notes[partition] = str(replace(note, timed_out=True))
            elif note is None and partition in self._fresh:
                until = position + self._reach[partition.topic]
                notes[partition] = str(Note(1, until, timed_out=True))
        return notes

    def unmoved(self, partitions: Iterable[Partition]) -> set[Partition]:
        """The partitions among these that still carry our first note, which a clean hand-over removes."""
        return self._fresh.intersection(partitions)
