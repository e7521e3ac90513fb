"""All intakes of a replica: which topics belong to which, who holds back for whom, which topics are fetched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

from worker.batch import Columns, Partition, Span
from worker.loop.admission import Rollout
from worker.loop.awaited import Waits
from worker.loop.caution import Caution
from worker.loop.epochs import Epochs
from worker.loop.intake import Intake
from worker.loop.keep import LeftOut
from worker.loop.openslab import rebased
from worker.loop.turns import NO_RUSH, Rush, Turns, ranked
from worker.loop.what_now import IntakeView
from worker.topics import ByTopic, Topics

HELD_EXCUSED_S = 600.0
"""An intake that is held for longer than this stands like any other."""


class Fetching(Protocol):
    """The part of a source that decides what is fetched."""

    def pause(self, topics: Iterable[str]) -> None:
        """Stop fetching these topics, partitions assigned later included. Throws away what was fetched of them."""

    def resume(self, topics: Iterable[str]) -> None: ...


class Intakes:
    """See the module. The loop's thread alone uses it."""

    def __init__(self, intakes: Sequence[Intake], source: Fetching) -> None:
        self._by_topic = ByTopic({topic: intake for intake in intakes for topic in intake.topics})
        self._in_turn = list(intakes)
        """Whoever went last comes last."""
        self.ranked = ranked(intake.priority for intake in intakes)
        """They have unlike priorities."""
        self._turns: Turns[Intake] = Turns(lambda intake: intake.priority)
        self._fetching = [intake.fetching for intake in intakes if intake.fetching is not None]
        self._source = source

    def __iter__(self) -> Iterator[Intake]:
        """All of them, the most important ones first; of equals, whoever has not gone for longest."""
        return iter(self._turns.order(self._in_turn) if self.ranked else self._in_turn[:])

    def __len__(self) -> int:
        return len(self._in_turn)

    def __getitem__(self, topic: str) -> Intake:
        return self._by_topic[topic]

    # -- records on their way in ---------------------------------------------------------------------------

    def append(
        self, columns: Columns, spans: list[Span], now_ns: int, now_ms: float, thin: bool
    ) -> Iterator[LeftOut]:
        """Divide a take among the open slabs; see :meth:`Intake.append`."""
        for intake, part, ours in distribute(columns, spans, self._by_topic):
            yield from intake.append(part, ours, now_ns, now_ms, thin)

    def discard(self, epochs: Epochs) -> None:
        """Forget the records that are not submitted and not ours any more."""
        for intake in self._in_turn:
            intake.open.discard(epochs)
        for fetching in self._fetching:
            fetching.discard(epochs)

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions' records that are not submitted."""
        for intake in self._in_turn:
            intake.open.drop(partitions)
        for fetching in self._fetching:
            fetching.drop(partitions)

    def close(self) -> None:
        """Take nothing more, and forget what is not submitted."""
        for intake in self._in_turn:
            intake.open.clear()
            self._source.pause(intake.topics)
        for fetching in self._fetching:
            fetching.clear()

    # -- what records need from outside ----------------------------------------------------------------------

    def fetch(self, now_ns: int, now_ms: float, in_flight: bool, thin: bool) -> Iterator[LeftOut]:
        """Go on with what records need from outside; those that have it join the open slabs. See :meth:`Intake.fetch`."""
        if self._fetching:
            for intake in self._in_turn:
                yield from intake.fetch(now_ns, now_ms, in_flight, thin)

    def held(self, now_ns: int, partitions: Iterable[Partition]) -> dict[Partition, Waits]:
        """What these partitions wait for, as far as their intake is held.

        Args:
            now_ns: monotonic nanoseconds.
        """
        since_s = {intake: s for intake in self._in_turn if (s := intake.held_s(now_ns)) is not None}
        if not since_s:
            return {}
        return {
            partition: Waits(None, "for a model of a rollout", False, since_s[intake] <= HELD_EXCUSED_S)
            for partition in partitions
            if (intake := self._by_topic[partition.topic]) in since_s
        }

    @property
    def asking(self) -> bool:
        """Whether a call to the outside is under way."""
        return any(fetching.active for fetching in self._fetching)

    def waits(self) -> dict[Partition, Waits]:
        """What partitions wait for outside."""
        found: dict[Partition, Waits] = {}
        for fetching in self._fetching:
            found |= fetching.waits()
        return found

    # -- whose turn it is ----------------------------------------------------------------------------------

    def claimant(self, caution: Caution) -> Intake | None:
        """The intake for which the others hold back: its next record must be alone, or needs bytes they hold."""
        if len(self._in_turn) == 1:
            return None
        for intake in self._in_turn:
            if intake.held:
                continue
            if intake.hungry() or (caution and len(intake.open) and caution.covers(*intake.open.first)):
                return intake
        return None

    def went(self, intake: Intake) -> None:
        """A slab of this intake was closed: its equals come first now."""
        if len(self._in_turn) > 1:
            self._in_turn.remove(intake)
            self._in_turn.append(intake)
            if self.ranked:
                self._turns.went(intake, [other for other in self._in_turn[:-1] if len(other.open)])

    def rush(self, due: Callable[[Intake], bool], brought: bool) -> Rush:
        """Who lets whom go first in one turn of the loop, where whatever goes keeps everybody else waiting.

        The client gives the records of a topic in long stretches. So while takes still bring records, those of the intake
        that went last may only be behind others, and the less important ones let it go first even if it has none.

        Args:
            due: whether an intake would go if it were the only one.
            brought: the last take brought records.
        """
        if not self.ranked:
            return NO_RUSH
        ahead = self._in_turn[-1].priority if brought else -1
        return Rush((intake.priority for intake in self._in_turn if due(intake)), ahead)

    def views(
        self, intakes: Iterable[Intake], rush: Rush, look: Callable[[Intake], IntakeView]
    ) -> list[IntakeView]:
        """What the intakes look like at the start of a turn, and who of them lets others go first."""
        found = []
        for intake in intakes:
            view = look(intake)
            if self.yields(intake, rush.first):
                view = view._replace(yields=True)
            elif view.due:
                rush.went(intake)
            found.append(view)
        return found

    def yields(self, intake: Intake, to: int) -> bool:
        """Whether an intake lets one of this priority go before it, because its own turn has not come."""
        return intake.priority < to and not self._turns.come(intake)

    # -- what is fetched -----------------------------------------------------------------------------------

    @property
    def paused(self) -> frozenset[str]:
        """Topics that are not fetched because their intake is full; for any thread."""
        return Topics(chain.from_iterable(each.topics for each in self._in_turn if each.paused))

    def steer(self, intake: Intake, view: IntakeView) -> None:
        """Pause the topics of an intake that is full, resume them when it has room again.

        A pause is put off for as long as possible: the client throws away what it has fetched, and with a model slower
        than the fetching it would fetch everything many times. An intake that is held is full in this sense.
        """
        if intake.held:
            if not intake.paused:
                self._source.pause(intake.topics)
                intake.paused = True
        elif intake.paused:
            if view.may_submit and view.room and intake.relaxed():
                self._source.resume(intake.topics)
                intake.paused = False
        elif (view.yields or not view.due) and intake.full():
            self._source.pause(intake.topics)
            intake.paused = True

    def wanted(self) -> tuple[int, int]:
        """How many records and bytes a take may bring.

        Any topic that is fetched may fill the whole take. So the intake with the fewest free bytes bounds it.
        """
        if len(self._in_turn) == 1:
            (only,) = self._in_turn
            return max(only.room(), 1), max(only.free_for_payloads, 1)
        fetched = [intake for intake in self._in_turn if not intake.paused]
        most = max((intake.room() for intake in fetched), default=1)
        free = min((intake.free_for_payloads for intake in fetched), default=1)
        return max(most, 1), max(free, 1)


def groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Rollouts whose routes share topics or may do so, directly or through others; members and groups are in file order."""
    parts: list[list[int]] = []
    for index, rollout in enumerate(rollouts):
        topics = Topics(rollout.route.topics)
        touching = [part for part in parts if any(topics.touches(rollouts[i].route.topics) for i in part)]
        parts = [part for part in parts if part not in touching]
        parts.append(sorted(chain([index], *touching)))
    return [[rollouts[index] for index in part] for part in sorted(parts)]


def distribute(
    columns: Columns, spans: list[Span], intakes: Mapping[str, Intake]
) -> Iterator[tuple[Intake, Columns, list[Span]]]:
    """A take, divided among the intakes of its topics; work is per span.

    Args:
        intakes: by topic.
    """
    parts: dict[Intake, list[Span]] = {}
    for span in spans:
        parts.setdefault(intakes[span.partition.topic], []).append(span)
    if len(parts) == 1:
        yield next(iter(parts)), columns, spans
        return
    for intake, ours in parts.items():
        start, stop = ours[0].start, ours[-1].stop
        together = stop - start == sum(span.stop - span.start for span in ours)
        rows: Sequence[int] = (
            range(start, stop) if together else [row for s in ours for row in range(s.start, s.stop)]
        )
        yield intake, columns.select(rows), rebased(ours)
