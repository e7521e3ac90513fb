"""Windows over the records of a partition: which record completes one, and what is needed to go on after a hand-over.

Each key of a partition has a list of samples. A record that makes it ``size`` long completes a window; the oldest ``hop``
samples then go. Nothing but the records decides: the same records give the same windows, wherever reading began.

What a process knows is in memory only. To go on, the next one needs to know with which records the incomplete windows
begin. These offsets are *marks*. They fit into the metadata of a committed position (:class:`Marks`). The next process reads
from the first mark on, ignores every record before a key's own mark, and answers nothing below the committed position.
"""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from worker.errors import Reject

SAMPLE_BYTES = 120
"""Memory of a sample beside its bytes: the objects around it."""
_NOTE = re.compile(r";series=([0-9]{1,19})(?:\+([0-9]{1,19}):([A-Za-z0-9_-]{0,4096}))?;")
"""It has an end of its own: the Python client reads metadata as a C string, though its end has no NUL, and so what stands
behind it in memory, too."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``input.window``."""

    size: int
    hop: int
    keys: int
    """Most incomplete windows of one partition."""
    within: int
    """A window that is incomplete so many offsets after its first record is given up."""


@dataclass(frozen=True, slots=True)
class Marks:
    """With which records the windows begin that are incomplete once every record before ``at`` is read."""

    at: int
    offsets: tuple[int, ...] = ()
    """Ascending."""

    @property
    def first(self) -> int:
        """Where to read from, to have every incomplete window."""
        return self.offsets[0] if self.offsets else self.at

    def __str__(self) -> str:
        """As a part of a commit's metadata."""
        if not self.offsets:
            return f";series={self.at};"
        gaps = bytearray()
        before = self.offsets[0]
        for offset in self.offsets[1:]:
            gap, before = offset - before, offset
            while gap >= 0x80:
                gaps.append(gap & 0x7F | 0x80)
                gap >>= 7
            gaps.append(gap)
        text = base64.urlsafe_b64encode(gaps).decode().rstrip("=")
        return f";series={self.at}+{self.at - self.offsets[0]}:{text};"

    @classmethod
    def parse(cls, metadata: str) -> Marks | None:
        """The marks in a commit's metadata; None where there are none, or where another program wrote something like them."""
        found = _NOTE.search(metadata)
        if found is None:
            return None
        try:
            marks = cls._read(found)
        except ValueError:
            return None
        return marks if str(marks) == found[0] else None

    @classmethod
    def _read(cls, found: re.Match[str]) -> Marks:
        """The marks in a text of the right form.

        Raises:
            ValueError: it is no text that a worker writes.
        """
        at = int(found[1])
        if found[2] is None:
            return cls(at)
        offsets, gap, shift = [at - int(found[2])], 0, 0
        for byte in base64.urlsafe_b64decode(found[3] + "=" * (-len(found[3]) % 4)):
            gap |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                offsets.append(offsets[-1] + gap)
                gap = shift = 0
        return cls(at, tuple(offsets))


def with_marks(note: str, marks: Marks) -> str:
    """The metadata of a commit that has a note of :mod:`worker.loop.caution`, or none, and marks."""
    return f"{note or 'streaminfer'}{marks}"


class Series:
    """The samples of one partition.

    Args:
        marks: where the windows begin that are incomplete before ``marks.at``.
    """

    def __init__(self, rules: Rules, marks: Marks) -> None:
        self.nbytes = 0
        """Memory of its samples."""
        self.next_offset = marks.first
        """Every record before it is read."""
        self._rules = rules
        self._known = marks.at
        """Before this offset only marked records begin a window."""
        self._marked = set(marks.offsets)
        self._samples: dict[Hashable, deque[tuple[int, bytes]]] = {}

    def feed(
        self, offset: int, key: Hashable, sample: bytes, may_grow: bool = True
    ) -> tuple[bytes, ...] | None:
        """Add a sample; the window that it completes, oldest sample first, or None.

        Args:
            may_grow: there is memory for another key.

        Raises:
            Reject: ``invalid``: too many windows are incomplete.
        """
        samples = self._samples.get(key)
        if samples is not None and offset - samples[0][0] > self._rules.within:
            self.forget(key)
            samples = None
        if samples is None:
            if offset < self._known and offset not in self._marked:
                return None
            samples = self._begin(offset, key, may_grow)
        samples.append((offset, sample))
        self.nbytes += len(sample) + SAMPLE_BYTES
        if len(samples) < self._rules.size:
            return None
        window = tuple(each for _, each in samples)
        for _ in range(self._rules.hop):
            self._drop_first(samples)
        if not samples:
            del self._samples[key]
        return window

    def forget(self, key: Hashable) -> None:
        """The key's samples count no more: the next one begins a window."""
        samples = self._samples.pop(key, ())
        self.nbytes -= sum(len(sample) + SAMPLE_BYTES for _, sample in samples)

    def marks(self) -> Marks:
        """With which records the incomplete windows begin, as of ``next_offset``; windows that are too old are given up."""
        self._give_up(self.next_offset)
        return Marks(self.next_offset, tuple(sorted(samples[0][0] for samples in self._samples.values())))

    @property
    def complete(self) -> bool:
        """Whether every record before the marks' offset is read again."""
        return self.next_offset >= self._known

    def _begin(self, offset: int, key: Hashable, may_grow: bool) -> deque[tuple[int, bytes]]:
        if len(self._samples) >= self._rules.keys:
            self._give_up(offset)
            if len(self._samples) >= self._rules.keys:
                raise Reject(
                    f"{len(self._samples)} windows of this partition are incomplete, as many as input.window.keys allows"
                )
        if not may_grow:
            raise Reject("the samples of incomplete windows take a quarter of limits.in_flight_bytes")
        samples = self._samples[key] = deque()
        return samples

    def _give_up(self, offset: int) -> None:
        oldest = offset - self._rules.within
        for key in [key for key, samples in self._samples.items() if samples[0][0] < oldest]:
            self.forget(key)

    def _drop_first(self, samples: deque[tuple[int, bytes]]) -> None:
        self.nbytes -= len(samples.popleft()[1]) + SAMPLE_BYTES


class Sample(bytes):
    """A record's value as it was read, with what it is for the windows of its pipeline."""

    window: tuple[bytes, ...] | None = None
    """The samples of the window that it completes, oldest first; None if it completes none."""
    refused: Reject | None = None
    """Why it is no sample."""
