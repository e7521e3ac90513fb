"""Joins the results and the labels of one partition, whichever come first, and counts each result once.

**What is committed decides what is counted.** A result is counted when the committed position passes it, and never before:
the position of a results topic is that of its oldest result that still waits, and what lies before it is published together
with the position, in one transaction. So nothing else has to survive a crash. Whoever reads on from there joins the same
pairs again, because labels are read again from a place before every label that these results have had.

Labels have no order of their own to be counted in. What is counted of them at once (duplicates, late ones) is counted only
from the offset on that an earlier process has not read (`Mark.read`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worker.scoring.checkpoints import Checkpoints
from worker.scoring.compare import Answer, Compared, Comparer
from worker.scoring.line import Line, Recent
from worker.scoring.tally import Tally

GIVEN_UP = "given up"
UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is committed of one topic's partition."""

    position: int
    """Where to read on."""
    read: int = 0
    """The offset behind the last record that was read when this was committed."""
    waits: int = 0
    """Of labels: those before this offset are settled, even if they are read again."""


class Group(NamedTuple):
    """What is counted together: one version of a pipeline's model in one window of time."""

    pipeline: str
    version: str
    start_ms: int
    """Unix milliseconds at which the window begins."""


@dataclass(slots=True)
class Book:
    """The tallies of one group."""

    group: Group
    live: Tally = field(default_factory=Tally)
    """Every result that has an outcome, those included that a result which waits holds back."""
    due: Tally = field(default_factory=Tally)
    """What has passed and was not taken yet."""
    held: int = 0
    """Results that have not passed."""


class _Joined(NamedTuple):
    """How a result found its label."""

    compared: Compared
    delay_ms: int


class Joiner:
    """See the module.

    Args:
        results: what is committed of the partition of each results topic.
        labels: what is committed of that of the labels topic.
        wait_ms: how far a label's time may be from its result's.
        window_ms: length of a window.
        remembered: how many settled ids are remembered, so that what comes twice is known.
        starts: where each results topic and, last, the labels are read from: at or before the committed position. What
            lies between is only remembered.
        settled: (pipeline, version) -> what was counted before; it is counted on.
    """

    def __init__(
        self,
        results: Sequence[Mark],
        labels: Mark,
        comparer: Comparer,
        *,
        wait_ms: int,
        window_ms: int,
        remembered: int = 100_000,
        starts: Sequence[int] | None = None,
        settled: dict[tuple[str, str], Tally] | None = None,
    ) -> None:
        self._marks = results
        self._label_mark = labels
        self._comparer = comparer
        self._wait_ms = wait_ms
        self._window_ms = window_ms
        starts = starts or [mark.position for mark in (*results, labels)]
        self.lines = [Line(start) for start in starts[:-1]]
        self.labels = Line(starts[-1])
        self._done = [Recent(remembered) for _ in results]
        """Of each results topic: id -> time of the result, negative if it was given up while its label could come."""
        self._had = Recent(remembered)
        """Id -> (truth, time, offset) of labels that found a result."""
        self.books: dict[Group, Book] = {}
        self.settled = settled or {}
        """(pipeline, version) -> everything that was counted, from the first process on."""
        self._base = merged([self.settled])
        """(pipeline, version) -> what was counted before this process, and windows that are no longer kept alone."""
        self.counts: Counter[str] = Counter()
        """What happened to labels and results beside the pairs, since it was last taken."""
        self._checkpoints = Checkpoints([mark.position for mark in results], labels.position)
        self.times_ms = [0] * (len(results) + 1)
        """Newest time that was read of each results topic, and last of the labels."""

    @property
    def pending(self) -> int:
        """Results and labels that wait."""
        return sum(len(line.waiting) for line in self.lines) + len(self.labels.waiting)

    @property
    def remembering(self) -> bool:
        """Whether results that were counted before are still to be read: labels must not be read meanwhile."""
        return any(line.next < mark.position for line, mark in zip(self.lines, self._marks, strict=True))

    @property
    def held(self) -> int:
        """Results and labels that are kept: those that wait, and those that wait behind them to be counted."""
        return sum(len(line) for line in self.lines) + len(self.labels)

    # -- records -------------------------------------------------------------------------------------------------

    def add_result(
        self, topic: int, offset: int, time_ms: int, key: bytes, pipeline: str, version: str, answer: Answer
    ) -> None:
        """One result.

        Args:
            topic: index of its topic.
            time_ms: its timestamp, Unix milliseconds.
            key: what its label must carry.
        """
        line = self.lines[topic]
        self.see(topic, offset, time_ms)
        mark = self._marks[topic]
        if key in line.waiting or self._done[topic].get(key) is not None:
            self.counts["results_duplicate"] += offset >= max(mark.read, mark.position)
            return
        if offset < mark.position:
            self._remember(topic, key, time_ms)
            return
        start_ms = time_ms - time_ms % self._window_ms
        book = self._book(Group(pipeline, version, start_ms))
        book.held += 1
        line.add(key, offset, time_ms, answer, book)
        if (number := self.labels.waiting.get(key)) is not None:
            label_offset, label_ms, truth, _ = self.labels.entry(number)
            if abs(label_ms - time_ms) <= self._wait_ms:
                self._pair(topic, key, truth, label_ms)
                self.labels.settle(key, True)
                self._had.put(key, (truth, label_ms, label_offset))
        elif len(self.lines) > 1 and (had := self._had.get(key)) is not None:
            truth, label_ms, label_offset = had
            if abs(label_ms - time_ms) <= self._wait_ms:
                self._pair(topic, key, truth, label_ms)
                self._checkpoints.again(label_offset)

    def add_label(self, offset: int, time_ms: int, key: bytes, truth: Any) -> None:
        """One label.

        Args:
            time_ms: its timestamp, Unix milliseconds.
            key: says which result it belongs to.
            truth: its value.
        """
        self.see(len(self.lines), offset, time_ms)
        known = self._had.get(key) is not None
        if key in self.labels.waiting:
            self._label_count("duplicate", offset)
            return
        found = early = False
        for topic, line in enumerate(self.lines):
            number = line.waiting.get(key)
            if number is not None:
                if abs(time_ms - line.entry(number)[1]) <= self._wait_ms:
                    found = True
                    self._pair(topic, key, truth, time_ms)
                else:
                    early = early or time_ms < line.entry(number)[1]
        if found or (offset < self._label_mark.position and not known):
            self._had.put(key, (truth, time_ms, offset))
            return
        done = [known for known in (each.get(key) for each in self._done) if known is not None]
        if known:
            self._label_count("duplicate", offset)
        elif done:
            self._had.put(key, (truth, time_ms, offset))  # another topic's result may still need it
            late = all(known < 0 or time_ms - known > self._wait_ms for known in done)
            self._label_count("late" if late else "duplicate", offset)
        elif any(key in line.waiting for line in self.lines) and not early:
            self._label_count("late", offset)
        else:
            self.labels.add(key, offset, time_ms, truth)

    def see(self, topic: int, offset: int, time_ms: int) -> None:
        """A record was read, whatever it is; ``topic`` behind the results topics is that of the labels."""
        line = self.lines[topic] if topic < len(self.lines) else self.labels
        line.next = offset + 1
        if time_ms > self.times_ms[topic]:
            self.times_ms[topic] = time_ms

    def unreadable(self, topic: int, offset: int, time_ms: int, what: str) -> None:
        """A record that is no result or no label, and what it counts as."""
        self.see(topic, offset, time_ms)
        read = self._label_mark.read
        if topic < len(self.lines):
            read = max(self._marks[topic].read, self._marks[topic].position)
        self.counts[what] += offset >= read

    def ended(self, topic: int, offset: int) -> None:
        """Up to this offset there is nothing more: it may lie behind marks of transactions."""
        line = self.lines[topic] if topic < len(self.lines) else self.labels
        line.next = max(line.next, offset)

    # -- the end of waiting --------------------------------------------------------------------------------------

    def expire(self, labels_ms: int, results_ms: int) -> None:
        """Give up what has waited for too long.

        Args:
            labels_ms: no label before this time will come any more, Unix milliseconds.
            results_ms: no result before this time will come.
        """
        for topic, line in enumerate(self.lines):
            for key, number in line.waiting_since(labels_ms - self._wait_ms):
                self._give_up(topic, key, number, UNLABELLED)
        for key, number in self.labels.waiting_since(results_ms - self._wait_ms):
            self._give_up_label(key, number, "labels_unmatched")

    def shed(self, count: int, held: bool = False) -> None:
        """Give up so many of those that wait, oldest first by their time, because memory is bounded.

        Args:
            held: only results count, because they hold back those behind them.
        """
        lines = self.lines if held else [*self.lines, self.labels]
        waiting = [
            (line.entry(number)[1], topic, key, number)
            for topic, line in enumerate(lines)
            for key, number in line.oldest_waiting(count)
        ]
        for _, topic, key, number in sorted(waiting)[:count]:
            if topic < len(self.lines):
                self._give_up(topic, key, number, GIVEN_UP)
            else:
                self._give_up_label(key, number, "labels_given_up")

    def _give_up(self, topic: int, key: bytes, number: int, outcome: str) -> None:
        book = self.lines[topic].entry(number)[3]
        self.lines[topic].settle(key, outcome)
        self._done[topic].put(key, -1)
        _count(book.live, outcome)

    def _give_up_label(self, key: bytes, number: int, what: str) -> None:
        offset = self.labels.entry(number)[0]
        self.labels.settle(key, False)
        self.counts[what] += offset >= self._label_mark.waits

    # -- what is committed and counted ---------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Remember where results and labels are now; to be called every now and then."""
        self._checkpoints.add([line.next for line in self.lines], self.labels.oldest)

    def positions(self) -> tuple[list[Mark], Mark]:
        """What may be committed now: of each results topic, and of the labels."""
        at = [max(line.oldest, mark.position) for line, mark in zip(self.lines, self._marks, strict=True)]
        oldest = self.labels.oldest
        labels = max(self._label_mark.position, min(self._checkpoints.labels_from(at), oldest))
        reads = [max(line.next, mark.read) for line, mark in zip(self.lines, self._marks, strict=True)]
        marks = [Mark(*pair) for pair in zip(at, reads, strict=True)]
        read = max(self.labels.next, self._label_mark.read)
        return marks, Mark(labels, read, max(oldest, self._label_mark.waits))

    def take(self) -> tuple[dict[Group, Tally], Counter[str]]:
        """What is counted with the positions of now, and was not before."""
        for line in self.lines:
            for book, outcome in line.passing():
                book.held -= 1
                if isinstance(outcome, str):
                    _count(book.due, outcome)
                else:
                    _count_pair(book.due, outcome)
        for _ in self.labels.passing():
            pass
        taken = {}
        for group, book in self.books.items():
            if book.due.results:
                taken[group], book.due = book.due, Tally()
                self.settled.setdefault(group[:2], Tally()).merge(taken[group])
        counts, self.counts = +self.counts, Counter()
        return taken, counts

    def forget_windows(self, most: int) -> None:
        """Keep only the newest windows alone; the others go into `base`."""
        by_age = sorted(self.books, key=lambda group: group.start_ms)
        for group in by_age[: max(0, len(by_age) - most)]:
            book = self.books[group]
            if not book.held and not book.due.results:
                self._base.setdefault(group[:2], Tally()).merge(book.live)
                del self.books[group]

    def totals(self) -> dict[tuple[str, str], Tally]:
        """(pipeline, version) -> everything that was counted of it, and what is known but not yet counted."""
        found: dict[tuple[str, str], Tally] = {}
        live = ((group[:2], book.live) for group, book in self.books.items())
        for key, tally in (*self._base.items(), *live):
            found.setdefault(key, Tally()).merge(tally)
        return found

    def _remember(self, topic: int, key: bytes, time_ms: int) -> None:
        """A result that was counted before is read again: a label of it no longer waits."""
        self._done[topic].put(key, time_ms)
        number = self.labels.waiting.get(key)
        if number is not None:
            offset, label_ms, truth, _ = self.labels.entry(number)
            self.labels.settle(key, True)
            self._label_count("late" if label_ms - time_ms > self._wait_ms else "duplicate", offset)
            self._had.put(key, (truth, label_ms, offset))

    # -- parts ---------------------------------------------------------------------------------------------------

    def _book(self, group: Group) -> Book:
        book = self.books.get(group)
        if book is None:
            book = self.books[group] = Book(group)
        return book

    def _pair(self, topic: int, key: bytes, truth: Any, label_ms: int) -> None:
        line = self.lines[topic]
        _, time_ms, answer, book = line.entry(line.waiting[key])
        joined = _Joined(self._comparer.compare(answer, truth), label_ms - time_ms)
        line.settle(key, joined)
        self._done[topic].put(key, time_ms)
        _count_pair(book.live, joined)

    def _label_count(self, what: str, offset: int) -> None:
        self.counts[f"labels_{what}"] += offset >= self._label_mark.read


def merged(tallies: Iterable[dict[tuple[str, str], Tally]]) -> dict[tuple[str, str], Tally]:
    """The totals of several partitions together."""
    found: dict[tuple[str, str], Tally] = {}
    for each in tallies:
        for key, tally in each.items():
            found.setdefault(key, Tally()).merge(tally)
    return found


def _count(tally: Tally, outcome: str) -> None:
    tally.results += 1
    if outcome == UNLABELLED:
        tally.unlabelled += 1
    else:
        tally.given_up += 1


def _count_pair(tally: Tally, joined: _Joined) -> None:
    tally.results += 1
    tally.labelled += 1
    tally.add_delay(joined.delay_ms)
    joined.compared.into(tally)
