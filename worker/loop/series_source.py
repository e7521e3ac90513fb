"""A source whose records are samples of windows: it knows which record completes one, also after a hand-over.

It stands between the loop and the client. The loop sees ordinary records, each a :class:`worker.loop.series.Sample`.
Records that are read again only to rebuild windows never reach it. Every commit that passes here carries the marks from
which the next owner of the partition rebuilds them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from worker.batch import Columns, Partition, Span
from worker.errors import Reject
from worker.loop.budget import Claim
from worker.loop.membership import Listener, Log, Source
from worker.loop.openslab import rebased
from worker.loop.series import Marks, Rules, Sample, Series, with_marks
from worker.topics import ByTopic

SNAPSHOT_RECORDS = 2_000
"""Marks are noted each time so many records were read: a hand-over reads at most so many more again."""
SNAPSHOTS = 256
"""Marks that are kept of a partition, for positions that were not committed yet."""


class Reader(Protocol):
    """Reads samples; made for one pipeline. Called on the loop's thread."""

    def read(
        self, values: Sequence[bytes], keys: Sequence[bytes | None]
    ) -> list[tuple[Hashable, bytes] | Reject]:
        """The key and the sample of each record, or why it is none.

        Args:
            keys: of the records.
        """

    def key(self, key: bytes | None) -> Hashable | None:
        """The key that a tombstone resets; None if it resets none."""


class Client(Source, Protocol):
    """A source with the answers to its commits."""

    def confirmed(self) -> dict[Partition, int]: ...


class _State:
    """What is known of one owned partition."""

    def __init__(self, rules: Rules, marks: Marks, until: int) -> None:
        self.rules = rules
        self.until = until
        """Records before it are answered: they only rebuild windows."""
        self.series = Series(rules, marks)
        self.snapshots = [marks]
        """Ascending; the first one is where this owner began."""
        self.since = 0
        """Records read since the last snapshot."""

    def best(self, position: int) -> Marks:
        """The latest marks from which the windows at a position can be rebuilt."""
        return next((marks for marks in reversed(self.snapshots) if marks.at <= position), self.snapshots[0])

    def snapshot(self) -> None:
        """Note the marks of this moment."""
        self.since = 0
        if not self.series.complete or self.series.next_offset <= self.snapshots[-1].at:
            return
        self.snapshots.append(self.series.marks())
        if len(self.snapshots) > SNAPSHOTS:
            del self.snapshots[1]

    def back_to(self, position: int) -> int:
        """Read again from a position on; where to read from for that."""
        marks = self.best(position)
        while self.snapshots[-1].at > marks.at:
            self.snapshots.pop()
        self.series, self.until, self.since = Series(self.rules, marks), position, 0
        return min(marks.first, position)


class SeriesSource:
    """See the module, and :class:`worker.loop.membership.Source`.

    Args:
        source: the client.
        readers: topic -> how its samples are read, and the rules of its windows.
        claims: topic -> the bytes of its samples, in the byte budget.
        most_bytes: of the samples of one topic.
        committed: partition -> its committed position (None = it has none) and metadata. Raises if the broker does not answer.
    """

    def __init__(
        self,
        source: Client,
        readers: Mapping[str, tuple[Reader, Rules]],
        claims: Mapping[str, Claim],
        most_bytes: int,
        committed: Callable[[list[Partition]], Mapping[Partition, tuple[int | None, str]]],
        log: Log,
    ) -> None:
        self._source = source
        self._readers = ByTopic(readers)
        self.claims = ByTopic(claims)
        self._most_bytes = most_bytes
        self._committed = committed
        self._log = log
        self._states: dict[Partition, _State] = {}
        self._floors: dict[Partition, int] = {}
        """Positions to which a partition went back before anything of it was read."""

    # -- records -------------------------------------------------------------------------------------------

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        columns, spans = self._source.take(timeout_s, most, wanted_bytes)
        if not any(span.partition.topic in self._readers for span in spans):
            return columns, spans
        kept: list[Span] = []
        for span in spans:
            if span.partition.topic not in self._readers:
                kept.append(span)
            elif (state := self._begun(span.partition, columns.offsets[span.start])) is not None:
                kept += self._fed(columns, span, state)
        self._charge()
        if sum(span.stop - span.start for span in kept) == len(columns):
            return columns, spans
        rows = [row for span in kept for row in range(span.start, span.stop)]
        return (columns.select(rows) if rows else Columns()), rebased(kept)

    def _begun(self, partition: Partition, first: int) -> _State | None:
        """The state of a partition from which records came; None if these must be read again later.

        Args:
            first: the offset of the first of these records.
        """
        state = self._states.get(partition)
        if state is not None:
            return state
        start = self._start(partition, first)
        if start is None:
            self._source.seek({partition: first})
            return None
        position, metadata = start
        until = max(position, self._floors.pop(partition, 0))
        marks = Marks.parse(metadata) or Marks(position)
        if marks.at > position:  # somebody moved the committed position back
            marks = Marks(position)
        state = self._states[partition] = _State(self._readers[partition.topic][1], marks, until)
        if marks.first >= until:
            return state
        self._log.info(
            "windows_rebuilt",
            partition=f"{partition.topic}/{partition.number}",
            read_again=until - marks.first,
            incomplete=len(marks.offsets),
        )
        self._source.seek({partition: marks.first})
        return None

    def _start(self, partition: Partition, first: int) -> tuple[int, str] | None:
        """The committed position with its metadata; None while the broker does not tell."""
        found = self._source.starts([partition])
        if partition in found:
            return found[partition]
        try:
            position, metadata = self._committed([partition])[partition]
        except Exception as error:
            self._log.warning("windows_wait", error=str(error))
            return None
        return (first, "") if position is None else (position, metadata)

    def _fed(self, columns: Columns, span: Span, state: _State) -> Iterable[Span]:
        """Feed records to their windows, in order; the span of those that are to be answered."""
        reader = self._readers[span.partition.topic][0]
        rows = range(span.start, span.stop)
        values, keys = columns.values, columns.keys
        samples = [row for row in rows if values[row] is not None]
        read = dict(
            zip(
                samples,
                reader.read([values[row] or b"" for row in samples], [keys[row] for row in samples]),
                strict=True,
            )
        )
        series = state.series
        claim = self.claims[span.partition.topic]
        for row in rows:
            offset, found = columns.offsets[row], read.get(row)
            if found is None:
                key = reader.key(keys[row])
                if key is not None:
                    series.forget(key)
            else:
                values[row] = sample = Sample(values[row] or b"")
                if isinstance(found, Reject):
                    sample.refused = found
                else:
                    may_grow = claim.nbytes + series.nbytes < self._most_bytes
                    try:
                        sample.window = series.feed(offset, *found, may_grow)
                    except Reject as why:
                        sample.refused = why
            series.next_offset = offset + 1
        series.next_offset = span.next_offset
        state.since += len(rows)
        if state.since >= SNAPSHOT_RECORDS:
            state.snapshot()
        start = next((row for row in rows if columns.offsets[row] >= state.until), span.stop)
        if start < span.stop:
            yield Span(span.partition, start, span.stop, span.next_offset, span.epoch)

    def _charge(self) -> None:
        """Count the samples in the byte budget."""
        held = dict.fromkeys(self.claims, 0)
        for partition, state in self._states.items():
            held[self.claims.name(partition.topic) or ""] += state.series.nbytes
        for topic, claim in self.claims.items():
            claim.adjust(held[topic] - claim.nbytes)

    # -- positions -----------------------------------------------------------------------------------------

    def seek(self, positions: dict[Partition, int]) -> None:
        targets = {}
        for partition, position in positions.items():
            state = self._states.get(partition)
            if state is not None:
                targets[partition] = state.back_to(position)
            else:
                targets[partition] = position
                if partition.topic in self._readers:
                    self._floors[partition] = position
        self._charge()
        self._source.seek(targets)

    def annotated(
        self, positions: Mapping[Partition, int], notes: Mapping[Partition, str]
    ) -> dict[Partition, str]:
        """The metadata of a commit: these notes, with the marks of the partitions that have windows."""
        found = dict(notes)
        for partition, position in positions.items():
            state = self._states.get(partition)
            if state is not None:
                found[partition] = with_marks(notes.get(partition, ""), state.best(position))
            elif partition.topic in self._readers and partition not in self._floors:
                start = self._source.starts([partition]).get(partition)
                marks = Marks.parse(start[1]) if start is not None else None
                if marks is not None:
                    found[partition] = with_marks(notes.get(partition, ""), marks)
        return found

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]:
        return self._source.commit(positions, wait, self.annotated(positions, metadata))

    def confirmed(self) -> dict[Partition, int]:
        return self._source.confirmed()

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        return self._source.starts(partitions)

    # -- membership ----------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        self._source.subscribe(_Listening(listener, self._reset))

    def _reset(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._states.pop(partition, None)
            self._floors.pop(partition, None)
        self._charge()

    # -- as the client does --------------------------------------------------------------------------------

    @property
    def fatal(self) -> str | None:
        return self._source.fatal

    def pause(self, topics: Iterable[str]) -> None:
        self._source.pause(topics)

    def resume(self, topics: Iterable[str]) -> None:
        self._source.resume(topics)

    def close(self, timeout_s: float) -> None:
        self._source.close(timeout_s)


class _Listening:
    """Forgets the windows of partitions that come and go, around the loop's own listener."""

    def __init__(self, listener: Listener, reset: Callable[[Iterable[Partition]], None]) -> None:
        self._listener = listener
        self._reset = reset

    def on_assign(self, partitions: list[Partition]) -> None:
        self._reset(partitions)
        self._listener.on_assign(partitions)

    def on_revoke(self, partitions: list[Partition]) -> None:
        self._listener.on_revoke(partitions)
        self._reset(partitions)

    def on_lost(self, partitions: list[Partition]) -> None:
        self._listener.on_lost(partitions)
        self._reset(partitions)
