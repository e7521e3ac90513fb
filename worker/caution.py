"""Poison that kills the process: Kafka counts no deliveries, so the count is kept beside the committed position.

Before the first record of a partition is worked on, the unchanged position is committed with a note
``streaminfer;attempts=1;until=<offset>``. The first progress and every clean hand-over write the position without
one. Whoever finds the note knows that a process died with no progress since: the partition is then read
*cautiously*, one record in flight in the whole process and each committed, until that offset; before each such
record its count goes up. So only the record that kills collects attempts; neighbours that merely died with it do
not. At ``max_crashes`` attempts the record becomes a dead letter, undecoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from worker.batch import Partition

_NOTE = re.compile(r"streaminfer;attempts=(\d+);until=(\d+)")


@dataclass(frozen=True, slots=True)
class Note:
    """What the metadata of a committed position says of the record at that position."""

    attempts: int
    """Times a process began to work on it (this one included, once it has begun)."""
    until: int
    """Offset from which on the partition is read as usual again."""

    @classmethod
    def parse(cls, metadata: str) -> Note | None:
        """The note in a commit's metadata; None where there is none (or somebody else's text)."""
        found = _NOTE.fullmatch(metadata)
        return cls(int(found[1]), int(found[2])) if found else None

    def __str__(self) -> str:
        return f"streaminfer;attempts={self.attempts};until={self.until}"


class Caution:
    """Which partitions are read one record at a time, and what every commit says of that.

    Args:
        reach: offsets beyond the position a dead process may have had in flight: twice its largest slab.
        max_crashes: attempts at which a record is given up.
    """

    def __init__(self, reach: int, max_crashes: int) -> None:
        self.max_crashes = max_crashes
        self._reach = reach
        self._notes: dict[Partition, Note] = {}
        """Partitions under caution."""
        self._fresh: set[Partition] = set()
        """Partitions whose committed position carries this process' first note: no progress yet."""

    def __bool__(self) -> bool:
        return bool(self._notes)

    def __contains__(self, partition: object) -> bool:
        return partition in self._notes

    def assigned(self, found: Mapping[Partition, tuple[int, str]]) -> dict[Partition, str]:
        """Partitions that became ours, each with its position and the metadata found there.

        Returns:
            The notes to commit now, with the positions unchanged: one per partition without an earlier one.
        """
        notes: dict[Partition, str] = {}
        for partition, (position, metadata) in found.items():
            note = Note.parse(metadata)
            if note is not None:
                self._notes[partition] = note
            else:
                self._fresh.add(partition)
                notes[partition] = str(Note(1, position + self._reach))
        return notes

    def dropped(self, partitions: Iterable[Partition]) -> None:
        """These are not ours any more."""
        for partition in partitions:
            self._notes.pop(partition, None)
            self._fresh.discard(partition)

    def attempt(self, partition: Partition) -> Note:
        """The record at the position of this partition under caution is about to be worked on.

        Returns:
            The note to commit first; at ``max_crashes`` attempts the record has had its chances.
        """
        note = self._notes[partition]
        self._notes[partition] = note = replace(note, attempts=note.attempts + 1)
        return note

    def metadata(self, positions: Mapping[Partition, int]) -> dict[Partition, str]:
        """What goes with a commit of these positions: progress takes the note away, or on to the next record."""
        kept: dict[Partition, str] = {}
        for partition, position in positions.items():
            self._fresh.discard(partition)
            note = self._notes.get(partition)
            if note is None:
                continue
            if position >= note.until:
                del self._notes[partition]
                continue
            self._notes[partition] = note = Note(0, note.until)
            kept[partition] = str(note)
        return kept

    def unmoved(self, partitions: Iterable[Partition]) -> set[Partition]:
        """Those of these partitions that carry our first note still: a clean hand-over takes it away."""
        return self._fresh.intersection(partitions)
