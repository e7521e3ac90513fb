"""All partitions that one process scores: records go to the joiner of their partition, figures and positions come out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from worker.scoring import notes, records
from worker.scoring.compare import Comparer
from worker.scoring.joiner import Group, Joiner, Mark, merged
from worker.scoring.reading import Reader, Rules, Unreadable
from worker.scoring.records import Before, Totals
from worker.scoring.tally import Tally

HELD_TIMES = 4
"""So many times ``labels.max_pending`` may be kept: a result that waits holds back those behind it, which take less."""
WINDOWS_KEPT = 144
"""Windows of each partition that are shown alone."""
REMEMBERED_SHARE = 8
"""An eighth of ``labels.max_pending`` settled ids are remembered by all partitions together."""
REPEAT_S = 30.0
"""A record of one kind that cannot be read is logged once in this time."""

log = structlog.get_logger(module=__name__)


class Message(Protocol):
    """A record as the client gives it."""

    def topic(self) -> str: ...

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def timestamp(self) -> tuple[int, int]: ...

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...


@dataclass(frozen=True)
class Bounds:
    """Settings of the join."""

    wait_ms: int
    window_ms: int
    max_pending: int


@dataclass(frozen=True)
class Due:
    """What is to be published and committed of one partition, together or not at all."""

    number: int
    value: bytes | None
    """The quality record; None: nothing has been counted."""
    results: Mapping[str, Mark]
    """By topic."""
    labels: Mark
    last: str
    """Place of the last quality record before this one."""

    def commits(self, labels_topic: str, place: str | None) -> dict[str, tuple[int, str]]:
        """Topic -> (position, note).

        Args:
            place: of this quality record; None where there is none.
        """
        last = self.last if place is None else place
        found = {topic: (mark.position, notes.written(mark, "")) for topic, mark in self.results.items()}
        return {**found, labels_topic: (self.labels.position, notes.written(self.labels, last))}


class _Owned:
    """One partition."""

    def __init__(self, joiner: Joiner, counts: Counter[str], last: str) -> None:
        self.joiner = joiner
        self.counts = counts
        """Everything that was counted beside pairs, from the first process on."""
        self.last = last
        self.shown: Any = None
        """What the last record showed as live."""
        self.offered: Any = None
        """The marks that were last to be committed."""


class Scorer:
    """See the module.

    Args:
        worker: describes this process in quality records.
    """

    def __init__(self, rules: Rules, bounds: Bounds, worker: Mapping[str, Any]) -> None:
        self.rules = rules
        self._topics = {topic: index for index, topic in enumerate(rules.results)}
        self._bounds = bounds
        self._worker = worker
        self._comparer = Comparer()
        self._reader = Reader(rules, self._comparer)
        self._owned: dict[int, _Owned] = {}
        self._told: dict[str, float] = {}
        self.crowded = False
        """Whether too much is held, so that what can be published should be now."""

    # -- partitions ----------------------------------------------------------------------------------------------

    def remembered(self, partitions: int) -> int:
        """How many settled ids of each of so many partitions are remembered, to know what comes twice."""
        return max(1_000, self._bounds.max_pending // REMEMBERED_SHARE // max(1, partitions))

    def start(self, topic: str, position: int, remembered: int) -> int:
        """Where to read a topic from that is committed at a position: so many records earlier.

        Labels are read from their position, unless a label may have results in several topics.
        """
        if topic == self.rules.labels and len(self._topics) == 1:
            return position
        return max(0, position - remembered)

    def own(
        self,
        number: int,
        committed: Mapping[str, tuple[Mark, str]],
        starts: Mapping[str, int],
        before: Before,
        remembered: int,
    ) -> None:
        """A partition is ours from now on.

        Args:
            committed: topic -> what is committed, and the place that its note names.
            starts: topic -> where it is read from.
            before: what was counted of it.
            remembered: how many settled ids of it are remembered.
        """
        labels, last = committed[self.rules.labels]
        joiner = Joiner(
            [committed[topic][0] for topic in self._topics],
            labels,
            self._comparer,
            wait_ms=self._bounds.wait_ms,
            window_ms=self._bounds.window_ms,
            remembered=remembered,
            starts=[starts[topic] for topic in (*self._topics, self.rules.labels)],
            settled=before.settled,
        )
        self._owned[number] = _Owned(joiner, before.counts, last)

    def disown(self) -> None:
        """No partition is ours any more."""
        self._owned.clear()

    # -- records -------------------------------------------------------------------------------------------------

    def take(self, messages: Iterable[Message]) -> None:
        """Join these records, in the order of their partitions."""
        for message in messages:
            owned = self._owned.get(message.partition())
            if owned is None:
                continue
            topic = self._topics.get(message.topic())
            if topic is None:
                self._label(owned.joiner, message)
            else:
                self._result(owned.joiner, topic, message)
        for owned in self._owned.values():
            owned.joiner.checkpoint()
        self._bound()

    def position(self, topic: str, number: int) -> int:
        """The offset behind the last record that was read of a partition of ours."""
        joiner = self._owned[number].joiner
        index = self._topics.get(topic)
        return (joiner.labels if index is None else joiner.lines[index]).next

    def ended(self, topic: str, number: int, offset: int) -> None:
        """A partition was read to this offset, where it ends now."""
        if owned := self._owned.get(number):
            owned.joiner.ended(self._topics.get(topic, len(self._topics)), offset)

    def ahead(self, number: int, ended: Callable[[str], bool]) -> list[str]:
        """Topics whose partition must not be read now: labels before the results that were counted earlier, or what is
        ahead of the others while much waits for these.

        Args:
            ended: whether the partition of a topic was read to its end.
        """
        owned = self._owned.get(number)
        labels = self.rules.labels
        if owned is None:
            return []
        joiner = owned.joiner
        if joiner.remembering:
            return [labels]
        if ended(labels) or all(map(ended, self._topics)):
            return []
        if joiner.pending < self._bounds.max_pending / (2 * len(self._owned)):
            return []
        results_ms = max(joiner.times_ms[:-1])
        return [labels] if joiner.times_ms[-1] > results_ms else [*self._topics]

    def expiring(self, number: int, now_ms: int) -> bool:
        """Whether something of the partition may have waited for too long."""
        owned = self._owned.get(number)
        before_ms = now_ms - self._bounds.wait_ms
        return owned is not None and any(
            line.waiting_since(before_ms, 1) for line in (*owned.joiner.lines, owned.joiner.labels)
        )

    def expire(self, number: int, now_ms: int, ended: Callable[[str], bool]) -> None:
        """Give up what has waited for too long: by the clock where a topic ends, else by the records that were read."""
        joiner = self._owned[number].joiner
        clocks = [
            now_ms if ended(topic) else min(now_ms, joiner.times_ms[index])
            for index, topic in enumerate((*self._topics, self.rules.labels))
        ]
        joiner.expire(labels_ms=clocks[-1], results_ms=min(clocks[:-1]))

    def _result(self, joiner: Joiner, topic: int, message: Message) -> None:
        time_ms = max(0, message.timestamp()[1])
        offset = message.offset()
        try:
            read = self._reader.result(message.topic(), message.key(), message.value())
        except Unreadable as why:
            joiner.unreadable(topic, offset, time_ms, why.what)
            self._tell(why, message)
            return
        joiner.add_result(topic, offset, time_ms, read.key, read.pipeline, read.version, read.answer)

    def _label(self, joiner: Joiner, message: Message) -> None:
        time_ms = max(0, message.timestamp()[1])
        offset = message.offset()
        try:
            read = self._reader.label(message.key(), message.value(), message.headers())
        except Unreadable as why:
            joiner.unreadable(len(self._topics), offset, time_ms, why.what)
            self._tell(why, message)
            return
        joiner.add_label(offset, time_ms, read.key, read.truth)

    def _tell(self, why: Unreadable, message: Message) -> None:
        now_s = time.monotonic()
        if why.what in ("results_other", "results_unanswered") or now_s < self._told.get(why.what, 0.0):
            return
        self._told[why.what] = now_s + REPEAT_S
        place = f"{message.topic()}/{message.partition()}/{message.offset()}"
        log.warning("a record is not scored", record=str(place), why=str(why))

    def _bound(self) -> None:
        """Give up the oldest where more waits than may."""
        self.crowded = False
        joiners = [owned.joiner for owned in self._owned.values()]
        most = self._bounds.max_pending
        if (over := sum(joiner.pending for joiner in joiners) - most) > 0:
            max(joiners, key=lambda joiner: joiner.pending).shed(over)
        if sum(joiner.held for joiner in joiners) > HELD_TIMES * most:
            crowded = max(joiners, key=lambda joiner: joiner.held)
            crowded.shed(1 + crowded.pending // 100, held=True)
            self.crowded = True

    # -- figures -------------------------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[Due]:
        """What is to be published and committed now of the partitions of which that has changed.

        Whoever calls this publishes it, or disowns the partitions: it is not offered again.
        """
        found = []
        for number, owned in self._owned.items():
            joiner = owned.joiner
            results, labels = joiner.positions()
            taken, counts = joiner.take()
            owned.counts.update(counts)
            joiner.forget_windows(WINDOWS_KEPT)
            live = {key: (tally.results, tally.labelled) for key, tally in joiner.totals().items()}
            value = None
            if taken or counts or live != owned.shown:
                owned.shown = live
                head = {
                    "type": records.TYPE,
                    "schema": 1,
                    "time_ms": now_ms,
                    "window_s": self._bounds.window_ms / 1000,
                    "worker": self._worker,
                    "partition": number,
                }
                value = records.record(head, joiner, taken, counts, owned.counts, self._bounds.window_ms)
            marks = (tuple(results), labels)
            if value is not None or marks != owned.offered:
                of_topics = dict(zip(self._topics, results, strict=True))
                found.append(Due(number, value, of_topics, labels, owned.last))
            owned.offered = marks
        return found

    def published(self, places: Mapping[int, str]) -> None:
        """The quality records of these partitions are there.

        Args:
            places: partition -> ``partition/offset`` of the metrics topic.
        """
        for number, place in places.items():
            if owned := self._owned.get(number):
                owned.last = place

    def totals(self) -> Totals:
        """(pipeline, version) -> everything that was counted of our partitions, and what is known but not yet counted."""
        return merged(owned.joiner.totals() for owned in self._owned.values())

    def windows(self) -> dict[Group, Tally]:
        """The newest windows of our partitions together, oldest first."""
        found: dict[Group, Tally] = {}
        for owned in self._owned.values():
            for group, book in owned.joiner.books.items():
                if book.live.results:
                    found.setdefault(group, Tally()).merge(book.live)
        return dict(sorted(found.items(), key=lambda item: (item[0].start_ms, item[0])))

    def counts(self) -> Counter[str]:
        """What was counted beside pairs, by kind."""
        found: Counter[str] = Counter()
        for owned in self._owned.values():
            found.update(owned.counts)
            found.update(owned.joiner.counts)
        return +found

    def waiting(self) -> tuple[int, int]:
        """(results, labels) that wait."""
        joiners = [owned.joiner for owned in self._owned.values()]
        results = sum(len(line.waiting) for joiner in joiners for line in joiner.lines)
        return results, sum(len(joiner.labels.waiting) for joiner in joiners)
