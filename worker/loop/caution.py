"""Poison that kills the process: Kafka counts no deliveries, so the count is kept beside the committed position.

Before the first record of a partition is worked on, the unchanged position is committed with a note
``streaminfer;attempts=1;until=<offset>``. The first progress and every clean hand-over write the position without
one. Whoever finds the note knows that a process died with no progress since: the partition is then read
*cautiously* until that offset, one record at a time and nothing beside it in the whole process; before each such
record the position is committed with a note that names it (``at=<offset>``) and its count. Answers go out and
positions move at their usual intervals meanwhile: a record under caution costs one round trip, not three. So only
the record that kills collects attempts; neighbours that merely died with it do not, and those before it, which were
survived one at a time, are not noted again. At ``max_crashes`` attempts the record becomes a dead letter, undecoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from worker.batch import Partition

_NOTE = re.compile(r"streaminfer;attempts=(\d+);until=(\d+)(?:;at=(\d+))?")


@dataclass(frozen=True, slots=True)
class Note:
    """What the metadata of a committed position says of the first records behind it."""

    attempts: int
    """Times a process began to work on the first record from ``at`` on (this one included, once it has begun)."""
    until: int
    """Offset from which on the partition is read as usual again."""
    at: int = 0
    """Records before this offset were survived one at a time; 0 = those before the position."""

    @classmethod
    def parse(cls, metadata: str) -> Note | None:
        """The note in a commit's metadata; None where there is none (or somebody else's text)."""
        found = _NOTE.fullmatch(metadata)
        return cls(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None

    def __str__(self) -> str:
        return f"streaminfer;attempts={self.attempts};until={self.until}" + (
            f";at={self.at}" if self.at else ""
        )


class Caution:
    """Which records are worked on alone, and what every commit says of that.

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
        """Offset of the last record of each that this process began with: one life is one attempt. Kept also while the
        partition is another's: a hand-over whose commit failed leaves our attempt noted, and we live."""
        self._left: dict[Partition, Note] = {}
        """Partitions under caution no more -> what the broker should have of them until the position is there."""
        self._outdated: set[Partition] = set()
        """Partitions of which the broker's note is not ours: a record was survived since, or begun."""
        self._fresh: set[Partition] = set()
        """Partitions whose committed position carries this process' first note: no progress yet."""

    def __bool__(self) -> bool:
        return bool(self._notes or self._outdated)

    def __contains__(self, partition: object) -> bool:
        return partition in self._notes

    def covers(self, partition: Partition, offset: int) -> bool:
        """Whether this record is to be worked on alone."""
        note = self._notes.get(partition)
        return note is not None and offset < note.until

    def assigned(self, found: Mapping[Partition, tuple[int, str]]) -> dict[Partition, str]:
        """Partitions that became ours, each with its position and the metadata found there.

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
        """These are not ours any more."""
        for partition in partitions:
            self._notes.pop(partition, None)
            self._left.pop(partition, None)
            self._outdated.discard(partition)
            self._fresh.discard(partition)

    def attempts(self, partition: Partition, offset: int) -> int:
        """Which attempt it would be to work on this record, which is under caution; 0 = it was survived before.

        At ``max_crashes`` the record has had its chances.
        """
        note = self._notes[partition]
        if offset < note.at:
            return 0
        return max(1, note.attempts + (self._begun.get(partition) != offset))

    def begin(self, partition: Partition, offset: int) -> None:
        """This record is about to be worked on; the broker is to be told first (:meth:`notes`)."""
        attempts = self.attempts(partition, offset)
        if attempts:
            self._begun[partition] = offset
            self._notes[partition] = replace(self._notes[partition], attempts=attempts, at=offset)
            self._outdated.add(partition)

    @property
    def outdated(self) -> bool:
        """Whether the broker has to hear something before anything is worked on.

        That a record is begun; or that others were survived, which would else be charged with a death they had no
        part in.
        """
        return bool(self._outdated)

    def notes(self) -> dict[Partition, str]:
        """What the broker must hear before anything is worked on."""
        told, self._outdated = self._outdated, set()
        return {p: str(self._notes.get(p) or self._left.get(p) or "") for p in told}

    def survived(self, partition: Partition, next_offset: int) -> None:
        """The record before this offset was worked on alone, and we live."""
        note = self._notes.get(partition)
        if note is None or next_offset <= note.at:
            return
        self._outdated.add(partition)
        if next_offset >= note.until:
            del self._notes[partition]
            # as for a partition that has just become ours there
            self._left[partition] = Note(1, next_offset + self._reach[partition.topic], next_offset)
        else:
            self._notes[partition] = Note(0, note.until, next_offset)

    def resumed(self, positions: Mapping[Partition, int]) -> None:
        """Reading goes on from these positions after a rewind: what lies before them counts no attempts any more.

        A transaction of unknown outcome may have moved them, and its answer never came to :meth:`metadata`.
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
        """What goes with a commit of these positions: progress takes the note away, or on to the next record."""
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

    def unmoved(self, partitions: Iterable[Partition]) -> set[Partition]:
        """Those of these partitions that carry our first note still: a clean hand-over takes it away."""
        return self._fresh.intersection(partitions)
