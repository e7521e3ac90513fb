"""Records that need something from outside (a payload in a store, a schema) wait here, before the open slab.

The records of a partition leave in order, as soon as everything before them is here; other partitions do not wait for
them. Calls to the outside run on I/O threads, so many at once as :attr:`worker.outside.Outside.concurrency` says. The
memory of a payload is taken from the byte budget before the payload is read: usual sizes in advance, larger ones when
the call has told their size. If the budget is full of payloads that wait behind one that does not fit, the youngest of
them are given up and fetched again later, so that the oldest always comes through.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from worker.batch import Columns, Partition, Route, Span
from worker.errors import Reject, Rejection
from worker.loop.awaited import Awaited, Waits
from worker.loop.budget import Share
from worker.loop.epochs import Epochs
from worker.loop.io_threads import Back, Calls
from worker.loop.line import Asked, Record, columns_of, spans_of
from worker.outside import Away, NotYet, Outside, Sized

PAUSE_S, LONGEST_PAUSE_S, LONGEST_NOT_YET_S = 0.1, 2.0, 0.5
"""First pause before a thing is asked for again; each further one is twice as long, up to the second figure, or to the
third one where the answer was that the thing is not there yet."""
AHEAD = 2
"""Calls that are handed to the I/O threads, as a multiple of those that run at once."""
FIRST_SIZE = 256 << 10
"""Bytes that a payload is taken to have before any was seen."""


def _nothing_known(columns: Columns) -> bool:
    """An outside that cannot tell for a whole take: each record is looked at."""
    return False


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


class Fetching:
    """See the module. The loop's thread alone uses it.

    Args:
        outsides: whom the records of each route need, in the order in which they are asked.
        calls: runs calls on I/O threads, as many at once as the outsides allow.
        share: the byte budget of the intake.
        log: told when someone outside is away, and when it is back.
        clock_ns: monotonic nanoseconds. wall_ms: Unix milliseconds.
    """

    def __init__(
        self,
        outsides: Mapping[Route, Sequence[Outside]],
        calls: Calls,
        share: Share,
        log: Log,
        clock_ns: Callable[[], int],
        wall_ms: Callable[[], float],
    ) -> None:
        at_once = max(outside.concurrency for chain in outsides.values() for outside in chain)
        self.most_calls = AHEAD * at_once
        """Calls under way or next in line: while the loop is busy with a batch, the I/O threads go on with these."""
        self.claim = share.claim()
        """Holds the bytes of the records that wait, of payloads that are here, and of payloads being read."""
        self.starved = False
        """The oldest payload that waits for bytes does not fit, and nothing of this intake can make room."""
        self._outsides = outsides
        self._here = [
            getattr(outside, "here", _nothing_known) for chain in outsides.values() for outside in chain
        ]
        self._calls = calls
        self._share = share
        self._clock_ns = clock_ns
        self._wall_ms = wall_ms
        self._awaited = Awaited(log, clock_ns, wall_ms)
        self._lines: dict[Partition, deque[Record]] = {}
        self._records = self._serial = 0
        self._due: list[tuple[int, Record]] = []
        """To be asked for now, the oldest record first."""
        self._parked: list[tuple[int, int, Record]] = []
        """To be asked for later, by the monotonic time."""
        self._sized: list[tuple[int, Record]] = []
        """Payloads that wait for bytes, the oldest first."""
        self._together: dict[tuple[Outside, object], Asked] = {}
        """Shared needs that are asked for, or will be."""
        self._active = self._reserved = 0
        """Calls under way, and the bytes that they may fill."""
        self._usual = FIRST_SIZE

    def __len__(self) -> int:
        return self._records

    @property
    def active(self) -> bool:
        """Whether a call is under way: its end is worth waiting for."""
        return self._active > 0

    def __repr__(self) -> str:
        return (
            f"<Fetching {self._records} records, {self._active} calls under way, {self.claim.nbytes} bytes>"
        )

    def passes(self, columns: Columns) -> bool:
        """Whether a take needs nothing and has nobody to wait for, so that it may go to the open slab as it is."""
        return not self._records and all(here(columns) for here in self._here)

    # -- records that come and go --------------------------------------------------------------------------

    def append(
        self,
        columns: Columns,
        spans: list[Span],
        routes: Sequence[Route | None],
        deadlines_ms: Mapping[int, float],
        now_ns: int,
    ) -> None:
        """Add a take.

        Args:
            routes: of each row.
            deadlines_ms: Unix milliseconds, of the rows that have one; a record past it is not asked for any more.
            now_ns: monotonic nanoseconds.
        """
        for span in spans:
            line = self._lines.setdefault(span.partition, deque())
            for row in range(span.start, span.stop):
                self._serial += 1
                record = Record.of(columns, row, span, self._serial, now_ns)
                record.deadline_ms = deadlines_ms.get(row)
                self.claim.adjust(record.held_bytes)
                line.append(record)
                self._records += 1
                route = routes[row]
                if route is not None and record.is_ordinary(route.max_bytes):
                    record.chain = self._outsides.get(route, ())
                self._advance(record)

    def discard(self, epochs: Epochs) -> None:
        """Forget the records that are not ours any more."""
        self._forget(lambda record: epochs.of(record.partition) != record.epoch)

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions' records."""
        self._forget(lambda record: record.partition in partitions)

    def clear(self) -> None:
        """Forget everything; the calls under way end by themselves."""
        self._forget(lambda record: True)

    def turn(self, room_bytes: Callable[[], int], in_flight: bool) -> tuple[Columns, list[Span]]:
        """Go on with what has come back, and ask for more.

        Args:
            room_bytes: bytes that payloads may still take.
            in_flight: slabs are in flight, of this intake or others.

        Returns:
            The records that may be worked on now, in the order of their partitions.
        """
        for back in self._calls.back():
            self._active -= 1
            self._settle(back)
        self._grant(room_bytes, in_flight)
        self._ask(room_bytes)
        return self._leave()

    def waits(self) -> dict[Partition, Waits]:
        """What each partition waits for that has records here."""
        return {partition: self._awaited.of(line[0]) for partition, line in self._lines.items() if line}

    # -- one record -----------------------------------------------------------------------------------------

    def _advance(self, record: Record) -> None:
        """See what the record needs next; when nothing is left, it is ready."""
        now_ns = self._clock_ns()
        while record.step < len(record.chain):
            outside = record.chain[record.step]
            if record.deadline_ms is not None and record.deadline_ms < self._wall_ms():
                break  # admission will find it expired
            try:
                need = outside.need(record.payload, record.headers)
            except Reject as error:
                record.rejection = Rejection.of(error, "fetch", outside)
                break
            if need is not None:
                record.began_ns = record.began_ns or now_ns
                self._want(record, Asked(outside, need, record))
                return
            record.step += 1
        record.ready, record.ended_ns = True, now_ns

    def _want(self, record: Record, asked: Asked) -> None:
        if asked.outside.shared:
            asked = self._together.setdefault((asked.outside, asked.need), asked)
            if asked.record is not record:
                asked.others.append(record)
                record.asked = asked
                return
        record.asked = asked
        heapq.heappush(self._due, (record.serial, record))

    def _ask(self, room_bytes: Callable[[], int]) -> None:
        """Start calls, the oldest record's first."""
        now_ns = self._clock_ns()
        while self._parked and self._parked[0][0] <= now_ns:
            _, serial, record = heapq.heappop(self._parked)
            heapq.heappush(self._due, (serial, record))
        while self._due and self._active < self.most_calls:
            _, record = heapq.heappop(self._due)
            asked = record.asked
            if asked is None or asked.record is not record or (record.gone and not asked.others):
                self._unshare(asked)
                continue
            if record.deadline_ms is not None and record.deadline_ms < self._wall_ms() and not asked.others:
                self._unshare(asked)
                record.asked, record.ready, record.ended_ns = None, True, now_ns
                continue
            in_advance = not asked.outside.shared and not self.starved and room_bytes() >= self._usual
            allowed = self._usual if in_advance else 0
            self._start(asked, allowed, partial(asked.outside.ask, asked.need, allowed))

    def _start(self, asked: Asked, nbytes: int, call: Callable[[], Any]) -> None:
        """Start a call that may fill so many bytes."""
        self._active += 1
        self._reserve(asked, nbytes)
        self._calls.start(asked, call)

    def _reserve(self, asked: Asked, nbytes: int) -> None:
        self.claim.adjust(nbytes - asked.reserved)
        self._reserved += nbytes - asked.reserved
        asked.reserved = nbytes

    def _grant(self, room_bytes: Callable[[], int], in_flight: bool) -> None:
        """Give bytes to the payloads whose size is known, the oldest first."""
        self.starved = False
        while self._sized:
            _, record = self._sized[0]
            asked = record.asked
            assert asked is not None
            assert asked.sized is not None
            nbytes = asked.sized.nbytes
            # Nothing of this intake is on its way to an answer: no byte will come back by itself.
            stuck = self._share.held == self.claim.nbytes
            while stuck and room_bytes() < nbytes and self._give_up_one(record):
                pass
            # With nothing in flight one record may go whatever it costs: that it fits at all was checked at start.
            if room_bytes() < nbytes and (not stuck or in_flight or self._reserved):
                self.starved = stuck
                return
            heapq.heappop(self._sized)
            read, asked.sized = asked.sized.read, None
            self._start(asked, nbytes, read)

    def _give_up_one(self, needy: Record) -> bool:
        """Let the youngest payload go that is here and waits behind another record; it is fetched again later."""
        here = [
            record
            for line in self._lines.values()
            for record in line
            if record.fetched_bytes and record.serial > needy.serial
        ]
        if not here:
            return False
        record = max(here, key=lambda record: record.serial)
        self.claim.adjust(-record.fetched_bytes)
        record.begin_again()
        self._advance(record)
        return True

    def _settle(self, back: Back) -> None:
        """A call has ended."""
        asked: Asked = back.job
        record, error, result = asked.record, back.error, back.result
        self._reserve(asked, 0)
        if isinstance(error, Away | NotYet):
            self._again(asked, error)
            return
        if error is not None and not isinstance(error, Reject):
            raise error
        self._awaited.answered(asked.need.place)
        if isinstance(result, Sized):
            if record.gone:
                result.close()
            else:
                asked.sized = result
                heapq.heappush(self._sized, (record.serial, record))
            return
        self._unshare(asked)
        for waiting in (record, *asked.others):
            if waiting.gone:
                continue
            waiting.asked = None
            if isinstance(error, Reject):
                waiting.rejection = Rejection.of(error, "fetch", asked.outside)
                waiting.ready, waiting.ended_ns = True, self._clock_ns()
                continue
            if isinstance(result, bytes):
                self._took(waiting, result)
            waiting.step += 1
            self._advance(waiting)

    def _took(self, record: Record, payload: bytes) -> None:
        self.claim.adjust(len(payload) - record.fetched_bytes)
        record.payload, record.fetched_bytes = payload, len(payload)
        # Falls slowly, so that one small payload among large ones does not cost the next large one a wait.
        self._usual = max(len(payload) + len(payload) // 4, self._usual - self._usual // 64)

    def _again(self, asked: Asked, error: Away | NotYet) -> None:
        """The thing is not to be had now: ask later, or reject the record when that took too long."""
        now_ns, record = self._clock_ns(), asked.record
        asked.tries += 1
        if isinstance(error, Away):
            self._awaited.away(asked.need, str(error))
            longest_s = LONGEST_PAUSE_S
            asked.missing_ns = 0  # an outage says nothing of what appears: that time begins anew
        else:
            self._awaited.answered(asked.need.place)
            asked.missing_ns = asked.missing_ns or now_ns
            asked.missed += 1
            left_s = error.within_s - (now_ns - asked.missing_ns) / 1e9
            if left_s <= 0 or (error.tries is not None and asked.missed >= error.tries):
                self._settle(Back(asked, error=error.reject))
                return
            longest_s = min(LONGEST_NOT_YET_S, left_s)
        if record.gone and not asked.others:
            self._unshare(asked)
            return
        pause_s = min(PAUSE_S * 2 ** min(asked.tries - 1, 10), longest_s)
        heapq.heappush(self._parked, (now_ns + int(pause_s * 1e9), record.serial, record))

    def _unshare(self, asked: Asked | None) -> None:
        if asked is not None and self._together.get((asked.outside, asked.need)) is asked:
            del self._together[asked.outside, asked.need]

    # -- leaving --------------------------------------------------------------------------------------------

    def _leave(self) -> tuple[Columns, list[Span]]:
        """Take out the records that are ready and have nothing before them."""
        found: list[Record] = []
        for line in self._lines.values():
            while line and line[0].ready:
                found.append(line.popleft())
        if not found:
            return Columns(), []
        self._records -= len(found)
        self.claim.adjust(-sum(record.held_bytes + record.fetched_bytes for record in found))
        return columns_of(found), [*spans_of(found)]

    def _forget(self, goes: Callable[[Record], bool]) -> None:
        for partition, line in [*self._lines.items()]:
            gone = [record for record in line if goes(record)]
            if not gone:
                continue
            self._lines[partition] = deque(record for record in line if not goes(record))
            for record in gone:
                self._let_go(record)
        self._sized = [(serial, record) for serial, record in self._sized if not record.gone]
        heapq.heapify(self._sized)
        if not self._sized:
            self.starved = False  # else the other intakes would hold back for nothing
        self._lines = {partition: line for partition, line in self._lines.items() if line}

    def _let_go(self, record: Record) -> None:
        """The bytes of a call that is under way stay in the budget until it has ended."""
        record.gone = True
        self._records -= 1
        self.claim.adjust(-record.held_bytes - record.fetched_bytes)
        asked, record.payload, record.fetched_bytes = record.asked, None, 0
        if asked is not None and asked.sized is not None:
            asked.sized.close()
            asked.sized = None
