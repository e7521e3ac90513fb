"""From a released slab to records on their way: results in order, dead letters in their place.

Everything of one input partition is handed to the producer in the order of the input. A run of rows with the same
destination is one call; only rows that are dead letters or dropped are looked at one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from worker.batch import Batch, Headers, Partition, Route, Span, total_bytes
from worker.dead_letters.compose import compose
from worker.errors import DeadLetterLimit, Reject, Rejection
from worker.loop.epochs import Epochs
from worker.loop.laying import Sheet, sheet_of_batch, sheet_of_slab
from worker.loop.limit import DeadLetterRate
from worker.loop.slab import Slab
from worker.loop.tracing import Tracer
from worker.sending import PartitionMode, Sending
from worker.sizes import largest_wire_bytes, unbounded_bytes, wire_bytes
from worker.text import one_line

EVIDENCE_POLL_S = 0.01
"""Wait for the acknowledgements of the last dead letters before the worker stops."""


class Sink(Protocol):
    """Where outputs go."""

    def send(self, sending: Sending, on_delivery: Callable[..., None] | None) -> int:
        """Queue as many rows as fit, in order; returns how many were taken.

        Args:
            on_delivery: called as ``on_delivery(error, message)`` per row, or as
                ``on_delivery(error, None, rows)`` for several rows at once; ``error`` is None for a delivery. None:
                a transaction answers for the rows.

        Raises:
            DeliveryFailed: a row is refused for good and there is no ``on_delivery`` to tell.
        """

    def poll(self, timeout_s: float = 0.0) -> None: ...

    def max_bytes(self, topic: str) -> int:
        """Largest record that a topic takes from this client."""

    def needs_key(self, topic: str) -> bool:
        """Whether a topic refuses records without a key, as compacted ones do."""


ToldLetter = Callable[[str, str | None, Partition, int, Rejection], None]
"""Takes pipeline, model (``name@version``), partition, offset and the reason of a record that becomes a dead letter."""


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What every dead letter of this process says of the process."""

    topic: str
    task_id: str
    """client.id"""
    worker_name: str
    """Stands for the pipeline where no pipeline took the record."""
    redact: Callable[[str], str] = str
    """Takes secrets out of a message: custom code may say anything."""
    keeps_time: Callable[[int], bool] = lambda _timestamp_ms: True
    """Whether the topic takes a record of this timestamp now, and keeps it."""
    transactional: bool = False
    """A dead letter can be read only once its transaction is committed."""
    told: ToldLetter | None = None
    """Told of each dead letter, for people to see."""


class Outbox:
    """Outputs of released slabs that the producer has not taken yet; empty unless the producer's queue is full.

    Args:
        tracer: gives results their trace context; None: they keep what was copied from their records.
    """

    def __init__(
        self, sink: Sink, letterhead: Letterhead, limit: DeadLetterRate, tracer: Tracer | None = None
    ) -> None:
        self._sink = sink
        self._letterhead = letterhead
        self.limit = limit
        """When too many records are bad."""
        self._tracer = tracer
        self._queue: deque[tuple[Slab, Sending]] = deque()
        self._evidence: list[Sending] = []
        """Dead letters of the slab that tripped the limit; nothing else of it is published."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, slab: Slab, epochs: Epochs) -> int:
        """Plan everything the slab publishes, in order; returns the bytes of its values.

        Raises:
            DeadLetterLimit: too many of the last records are bad; nothing of this slab is published, except by
                :meth:`leave_evidence`.
        """
        sheet = sheet_of_slab(slab, epochs)
        if self._tracer is not None:
            self._tracer.leaving(slab, sheet, None)
        nbytes = self._publish(slab, sheet)
        slab.receipt.planned = True
        slab.rejected, slab.dropped = sheet.outcomes.rejected, sheet.outcomes.dropped
        slab.batches = []
        return nbytes

    def add_batch(self, batch: Batch, epochs: Epochs) -> int:
        """Plan what one batch publishes, before its slab's turn (``order: none``); else as :meth:`add`."""
        slab = cast("Slab", batch.slab)
        slab.early.update(batch.rows)
        sheet = sheet_of_batch(batch, epochs)
        if self._tracer is not None:
            self._tracer.leaving(slab, sheet, batch)
        return self._publish(slab, sheet)

    def push(self, on_delivery: Callable[[Slab], Callable[..., None] | None]) -> list[Slab]:
        """Hand over what the producer takes; returns the slabs of which it has every output now."""
        handed: list[Slab] = []
        while self._queue:
            slab, sending = self._queue[0]
            rows = len(sending)
            if sending.source not in slab.turn.ends:  # revoked, lost or rewound meanwhile
                slab.receipt.withdraw(rows)
            else:
                taken = self._sink.send(sending, on_delivery(slab))
                slab.receipt.took(taken)
                if taken < rows:
                    sending.advance(taken)
                    break
            self._queue.popleft()
            if slab.receipt.handed_over:
                handed.append(slab)
        return handed

    def clear(self) -> list[Slab]:
        """Forget what was not handed over; returns the slabs that this cuts short."""
        cut: dict[Slab, None] = {}
        for slab, sending in self._queue:
            slab.receipt.withdraw(len(sending))
            if slab.receipt.planned:
                cut[slab] = None
        self._queue.clear()
        return list(cut)

    def leave_evidence(self, over: Callable[[], bool]) -> str:
        """After :class:`DeadLetterLimit`: publish the dead letters that tripped the limit, and wait for them.

        Their records are not committed and will be read again, so with transactions nothing is published: a reader
        would see those dead letters twice.

        Args:
            over: whether the time is up in which acknowledgements are waited for.

        Returns:
            Where the dead letters are, for the user.
        """
        topic, letters = self._letterhead.topic, len(self._evidence)
        if self._letterhead.transactional:
            return f"{letters} of them are not in {topic}, because their transaction was not committed"
        delivered = answered = 0

        def reported(error: object, _message: object, rows: int = 1) -> None:
            nonlocal delivered, answered
            answered += rows
            delivered += rows if error is None else 0

        waiting = deque(self._evidence)
        while answered < letters and not over():
            while waiting and self._sink.send(waiting[0], reported):
                waiting.popleft()
            self._sink.poll(EVIDENCE_POLL_S)
        if delivered < letters:
            return f"{letters - delivered} of them could not be delivered to {topic}"
        return f"they are in {topic}"

    # -- planning ----------------------------------------------------------------------------------------

    def _publish(self, slab: Slab, sheet: Sheet) -> int:
        self._refuse_unpublishable(sheet)
        trip = self.limit.count(sheet)
        if trip is not None:
            rows = ((span, row) for span in sheet.spans for row in range(span.start, span.stop))
            self._evidence = [
                self._letter(sheet, span, row, self._why(sheet, row))
                for span, row in rows
                if row <= trip.row and row in sheet.outcomes.rejected
            ]
            raise DeadLetterLimit(trip.sentence)
        nbytes = 0
        for sending in self._plan(sheet):
            slab.receipt.expect(len(sending))
            slab.receipt.kept_bytes += unbounded_bytes(sending.keys, sending.headers)
            nbytes += total_bytes(sending.values)
            self._queue.append((slab, sending))
        return nbytes

    def _plan(self, sheet: Sheet) -> Iterator[Sending]:
        outcomes = sheet.outcomes
        special = sorted({*outcomes.rejected, *outcomes.dropped})
        for span in sheet.spans:
            row = span.start
            for other in [r for r in special if span.start <= r < span.stop] if special else ():
                yield from self._results(sheet, span, row, other)
                if other in outcomes.rejected:
                    yield from self._dead_letter(sheet, span, other)
                row = other + 1
            yield from self._results(sheet, span, row, span.stop)

    def _results(self, sheet: Sheet, span: Span, start: int, stop: int) -> Iterator[Sending]:
        """Rows ``start..stop`` are results (or tombstones passed on): one sending per run of rows of one route."""
        outcomes = sheet.outcomes
        while start < stop:
            route = sheet.routes[start]
            assert route is not None, "a record that no pipeline takes is a dead letter"
            end = stop if sheet.one_route else _run_of_one_route(sheet.routes, start, stop)
            headers = outcomes.headers[start:end] if outcomes.headers is not None else None
            yield Sending(
                route.destination.topic,
                span.partition,
                sheet.columns.keys[start:end],
                outcomes.bodies[start:end],
                headers if headers is not None and any(headers) else None,
                route.destination.partition,
            )
            start = end

    def _dead_letter(self, sheet: Sheet, span: Span, row: int) -> Iterator[Sending]:
        """The dead letter of a row and, with ``output.errors``, the error on the output topic."""
        why, route, columns = self._why(sheet, row), sheet.routes[row], sheet.columns
        yield self._letter(sheet, span, row, why)
        if route is not None and route.destination.errors:
            to = route.destination
            try:
                body, headers = route.envelope.error(columns, row, why)
            except Reject:  # custom code cannot wrap it
                return
            key = columns.keys[row]
            # An error that its topic would refuse stays out: the dead letter has said it already.
            if self._refusal(to.topic, key, body, headers) is None:
                parts = [key], [body], [headers] if headers else None
                yield Sending(to.topic, span.partition, *parts, to.partition)

    def _why(self, sheet: Sheet, row: int) -> Rejection:
        why = sheet.outcomes.rejected[row]
        return replace(why, message=one_line(self._letterhead.redact(why.message)))

    def _letter(self, sheet: Sheet, span: Span, row: int, why: Rejection) -> Sending:
        head, route = self._letterhead, sheet.routes[row]
        name, model = head.worker_name, None
        mode: PartitionMode = "key"
        if route is not None:
            name, model, mode = route.name, sheet.servable_of(row, route).label, route.destination.partition
        if head.told is not None:
            head.told(name, model, span.partition, sheet.columns.offsets[row], why)
        letter = compose(
            sheet.columns,
            row,
            why,
            name,
            head.task_id,
            model,
            self._sink.max_bytes(head.topic),
            head.keeps_time,
            self._sink.needs_key(head.topic),
        )
        columns = [letter.key], [letter.value], [letter.headers]
        # A letter whose key was made for it goes where it would go without one.
        place: PartitionMode = "input" if letter.key_added else mode
        return Sending(head.topic, span.partition, *columns, place, letter.timestamp_ms)

    def _refuse_unpublishable(self, sheet: Sheet) -> None:
        """An output that its topic would refuse becomes a dead letter: the refusal would come again for ever."""
        outcomes, keys = sheet.outcomes, sheet.columns.keys
        routes = sheet.routes[:1] if sheet.one_route else set(sheet.routes)
        topics = {route.destination.topic for route in routes if route is not None}
        keyless = any(map(self._sink.needs_key, topics)) and None in keys
        limit = min(map(self._sink.max_bytes, topics), default=None)
        if limit is None:
            return
        if not keyless and largest_wire_bytes(keys, outcomes.bodies, outcomes.headers) <= limit:
            return
        for row in (row for span in sheet.spans for row in range(span.start, span.stop)):
            if row in outcomes.rejected or row in outcomes.dropped:
                continue
            route = sheet.routes[row]
            assert route is not None, "a record that no pipeline takes is a dead letter"
            headers = outcomes.headers[row] if outcomes.headers else None
            refusal = self._refusal(route.destination.topic, keys[row], outcomes.bodies[row], headers)
            if refusal is not None:
                outcomes.rejected[row] = Rejection.of(refusal, "publish", self)
                outcomes.bodies[row] = None

    def _refusal(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers | None
    ) -> Reject | None:
        """Why a topic would refuse this output; None when it takes it."""
        size, limit = wire_bytes(key, value, headers), self._sink.max_bytes(topic)
        if size > limit:
            return Reject(
                f"the result has {size} bytes, topic {topic} takes at most {limit} "
                "(max.message.bytes of the topic, or kafka.message.max.bytes)",
                "too_large_output",
            )
        if key is None and self._sink.needs_key(topic):
            return Reject(
                f"the record has no key, and topic {topic} is compacted: it takes records with a key only"
            )
        return None


def _run_of_one_route(routes: Sequence[Route | None], start: int, stop: int) -> int:
    """Where the run of rows of one route that begins at ``start`` ends."""
    route = routes[start]
    return next((row for row in range(start + 1, stop) if routes[row] is not route), stop)
