"""From a released slab to records on their way: results in order, dead letters in their place.

Within one input partition everything is handed to the producer in the order of the input. A run of rows with
the same destination is one call; only rows out of the ordinary are looked at one by one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol, cast

from worker.batch import Batch, Headers, Outcomes, Route, Span, largest_bytes, total_bytes
from worker.dead_letters.compose import RECORD_OVERHEAD_BYTES, compose, one_line
from worker.errors import DeadLetterLimit, Reject, Rejection
from worker.loop.window import Epochs, Slab
from worker.sending import PartitionMode, Sending


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
        """``max.message.bytes`` of a topic."""


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What every dead letter of this process says of the process."""

    topic: str
    task_id: str
    """client.id"""
    worker_name: str
    """Stands for the pipeline where no pipeline took the record."""
    redact: Callable[[str], str] = str
    """Takes secrets out of a message: own code may say anything."""
    keeps_time: Callable[[int], bool] = lambda _timestamp_ms: True
    """Whether the topic takes a record of this timestamp now, and keeps it."""


class Outbox:
    """Outputs of released slabs the producer has not taken yet; empty unless its queue is full."""

    def __init__(self, sink: Sink, letterhead: Letterhead, limit: DeadLetterRate) -> None:
        self._sink = sink
        self._letterhead = letterhead
        self._limit = limit
        self._queue: deque[tuple[Slab, Sending]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, slab: Slab, epochs: Epochs) -> int:
        """Plan everything the slab publishes, in order; returns the bytes of its values.

        Raises:
            DeadLetterLimit: too many of the last records are bad; nothing of this slab is published.
        """
        outcomes = lay_out(slab)
        spans = slab.live_spans(epochs)
        self._refuse_oversize(slab, spans, outcomes)
        if slab.early:
            spans = list(_within(spans, set(range(len(slab.columns))) - slab.early))
        nbytes = self._publish(slab, spans, outcomes)
        slab.receipt.planned = True
        slab.rejected, slab.dropped = outcomes.rejected, outcomes.dropped
        slab.batches = []
        return nbytes

    def add_batch(self, batch: Batch, epochs: Epochs) -> int:
        """Plan what one batch publishes, before its slab's turn (``order: none``); else as :meth:`add`."""
        slab = cast("Slab", batch.slab)
        slab.early.update(batch.rows)
        part = Outcomes.empty(len(slab.columns))
        _lay_in(part, batch)
        spans = list(_within(slab.live_spans(epochs), set(batch.rows)))
        self._refuse_oversize(slab, spans, part)
        return self._publish(slab, spans, part)

    def _publish(self, slab: Slab, spans: list[Span], outcomes: Outcomes) -> int:
        self._limit.check(slab, spans, outcomes)
        nbytes = 0
        for sending in self._plan(slab, spans, outcomes):
            slab.receipt.expect(len(sending))
            nbytes += total_bytes(sending.values)
            self._queue.append((slab, sending))
        return nbytes

    def push(self, on_delivery: Callable[[Slab], Callable[..., None] | None]) -> list[Slab]:
        """Hand over what the producer takes; returns the slabs whose every output it has now."""
        handed: list[Slab] = []
        while self._queue:
            slab, sending = self._queue[0]
            rows = len(sending)
            if sending.source not in slab.ends:  # revoked, lost or rewound meanwhile: not ours to publish
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
        """Forget what was not handed over; returns the slabs this cuts short."""
        cut: dict[Slab, None] = {}
        for slab, sending in self._queue:
            slab.receipt.withdraw(len(sending))
            if slab.receipt.planned:
                cut[slab] = None
        self._queue.clear()
        return list(cut)

    # -- planning ----------------------------------------------------------------------------------------

    def _plan(self, slab: Slab, spans: list[Span], outcomes: Outcomes) -> Iterator[Sending]:
        special = sorted({*outcomes.rejected, *outcomes.dropped})
        for span in spans:
            row = span.start
            for odd in [r for r in special if span.start <= r < span.stop] if special else ():
                yield from self._results(slab, span, outcomes, row, odd)
                if odd in outcomes.rejected:
                    yield from self._dead_letter(slab, span, outcomes, odd)
                row = odd + 1
            yield from self._results(slab, span, outcomes, row, span.stop)

    def _results(
        self, slab: Slab, span: Span, outcomes: Outcomes, start: int, stop: int
    ) -> Iterator[Sending]:
        """Rows ``start..stop`` are results (or tombstones passed on): one send per stretch of one pipeline."""
        while start < stop:
            route = slab.routes[start]
            assert route is not None, "a record that no pipeline takes is a dead letter"
            end = stop if slab.one_route else _stretch(slab.routes, start, stop)
            headers = outcomes.headers[start:end] if outcomes.headers is not None else None
            yield Sending(
                route.destination.topic,
                span.partition,
                slab.columns.keys[start:end],
                outcomes.bodies[start:end],
                headers if headers is not None and any(headers) else None,
                route.destination.partition,
            )
            start = end

    def _dead_letter(self, slab: Slab, span: Span, outcomes: Outcomes, row: int) -> Iterator[Sending]:
        head, route = self._letterhead, slab.routes[row]
        name, model = head.worker_name, None
        mode: PartitionMode = "key"
        if route is not None:
            name, model, mode = route.name, slab.servables[route].label, route.destination.partition
        why = outcomes.rejected[row]
        why = replace(why, message=one_line(head.redact(why.message)))
        letter = compose(
            slab.columns,
            row,
            why,
            name,
            head.task_id,
            model,
            self._sink.max_bytes(head.topic),
            head.keeps_time,
        )
        yield Sending(
            head.topic,
            span.partition,
            [letter.key],
            [letter.value],
            [letter.headers],
            mode,
            letter.timestamp_ms,
        )
        if route is not None and route.destination.errors:
            body = route.envelope.error_body(slab.columns, row, why)
            key, headers = slab.columns.keys[row], route.envelope.headers(slab.columns, row)
            # an error its topic would refuse stays out: the dead letter has said it already
            if _record_bytes(key, body, headers) <= self._sink.max_bytes(route.destination.topic):
                columns = [key], [body], [headers] if headers else None
                yield Sending(route.destination.topic, span.partition, *columns, mode)

    def _refuse_oversize(self, slab: Slab, spans: list[Span], outcomes: Outcomes) -> None:
        """An output its topic would refuse is a dead letter: the broker's refusal would come again for ever."""
        routes = slab.routes[:1] if slab.one_route else set(slab.routes)
        limits = {
            r.destination.topic: self._sink.max_bytes(r.destination.topic) for r in routes if r is not None
        }
        headers = outcomes.headers
        largest = largest_bytes(outcomes.bodies)
        longest_key = largest_bytes(slab.columns.keys)
        most_headers = max(map(_headers_bytes, filter(None, headers)), default=0) if headers else 0
        if largest + longest_key + most_headers + RECORD_OVERHEAD_BYTES <= min(
            limits.values(), default=largest
        ):
            return
        for row in (row for span in spans for row in range(span.start, span.stop)):
            if row in outcomes.rejected or row in outcomes.dropped:
                continue
            route = slab.routes[row]
            assert route is not None, "a record that no route takes is rejected already"
            topic = route.destination.topic
            key, body = slab.columns.keys[row], outcomes.bodies[row]
            size = _record_bytes(key, body, headers[row] if headers else None)
            if size > limits[topic]:
                message = (
                    f"the result has {size} bytes, max.message.bytes of topic {topic} is {limits[topic]}"
                )
                outcomes.rejected[row] = Rejection.of(Reject(message, "too_large_output"), "publish", self)
                outcomes.bodies[row] = None


class DeadLetterRate:
    """Stops the worker when too many of the last records are bad: a bad deploy is not bad data.

    Args:
        ratio: share of dead letters at which to stop. of_last: over how many records.
        from_seen: records to have seen before anything is judged.
    """

    def __init__(self, ratio: float, of_last: int, from_seen: int = 100) -> None:
        self._ratio = ratio
        self._of_last = of_last
        self._from_seen = from_seen
        self._seen = 0
        self._bad: deque[int] = deque()
        """Running numbers of the bad records among the last ``of_last``."""

    def check(self, slab: Slab, spans: list[Span], outcomes: Outcomes) -> None:
        """Count a slab's live rows.

        Raises:
            DeadLetterLimit: the share was reached somewhere in it.
        """
        for span in spans:
            before, self._seen = self._seen, self._seen + span.stop - span.start
            first = before + 1 - span.start
            # the share only ever rises at a bad record, or where judging begins
            moments: dict[int, Rejection | None] = {
                first + row: why for row, why in outcomes.rejected.items() if span.start <= row < span.stop
            }
            if before < self._from_seen <= self._seen:
                moments.setdefault(self._from_seen, None)
            for seen in sorted(moments):
                why = moments[seen]
                if why is not None:
                    self._bad.append(seen)
                self._judge(seen, why)

    def _judge(self, seen: int, last: Rejection | None) -> None:
        while self._bad and self._bad[0] <= seen - self._of_last:
            self._bad.popleft()
        looked_at = min(seen, self._of_last)
        if seen >= self._from_seen and len(self._bad) >= self._ratio * looked_at > 0:
            reason = f" (the last one: {last.reason}, {last.message})" if last else ""
            raise DeadLetterLimit(
                f"{len(self._bad)} of the last {looked_at} records are dead letters, "
                f"dead_letter.stop_after.ratio is {self._ratio}{reason}; nothing more was committed"
            )


def lay_out(slab: Slab) -> Outcomes:
    """The outcomes of all rows in slab order; the batch's own where one batch is the whole slab."""
    rows = len(slab.columns)
    if slab.settled is None and len(slab.batches) == 1 and len(slab.batches[0]) == rows:
        outcomes = slab.batches[0].outcomes
        assert outcomes is not None
        return outcomes
    whole = Outcomes.empty(rows)
    if slab.settled is not None:
        whole.bodies = slab.settled.bodies[:rows]
        whole.headers = slab.settled.headers[:rows] if slab.settled.headers is not None else None
        whole.rejected = {row: why for row, why in slab.settled.rejected.items() if row < rows}
        whole.dropped = {row for row in slab.settled.dropped if row < rows}
    for batch in slab.batches:
        _lay_in(whole, batch)
    return whole


def _lay_in(whole: Outcomes, batch: Batch) -> None:
    part = batch.outcomes
    assert part is not None
    if isinstance(batch.rows, range):
        whole.bodies[batch.rows.start : batch.rows.stop] = part.bodies
    else:
        for row, body in zip(batch.rows, part.bodies, strict=True):
            whole.bodies[row] = body
    if part.headers is not None:
        if whole.headers is None:
            whole.headers = [None] * len(whole.bodies)
        for row, headers in zip(batch.rows, part.headers, strict=True):
            whole.headers[row] = headers
    for index, rejection in part.rejected.items():
        whole.rejected[batch.rows[index]] = rejection
    for index in part.dropped:
        whole.dropped.add(batch.rows[index])


@dataclass(slots=True)
class Tally:
    """How a slab's records ended, by pipeline name."""

    ok: Counter[str]
    dead_letter: Counter[str]
    dropped: Counter[str]
    errors: Counter[tuple[str, str, str]]
    """(pipeline, reason, stage)"""


def tally(slab: Slab, spans: list[Span], worker_name: str) -> Tally:
    """Count a settled slab's records.

    Args:
        spans: what is still ours; every other record was given back to Kafka and counts as dropped here.
        worker_name: stands for the pipeline where no pipeline took the record.
    """

    def name(row: int) -> str:
        route = slab.routes[row]
        return route.name if route is not None else worker_name

    live = sum(span.stop - span.start for span in spans)
    rows = (row for span in spans for row in range(span.start, span.stop))
    ok = Counter({name(0): live}) if slab.one_route else Counter(map(name, rows))
    counts = Tally(ok, Counter(), Counter(), Counter())
    if live < len(slab.routes):
        alive = {row for span in spans for row in range(span.start, span.stop)}
        counts.dropped.update(name(row) for row in range(len(slab.routes)) if row not in alive)
    for row in {*slab.rejected, *slab.dropped}:
        if not any(span.start <= row < span.stop for span in spans):
            continue
        counts.ok[name(row)] -= 1
        if row in slab.rejected:
            why = slab.rejected[row]
            counts.dead_letter[name(row)] += 1
            counts.errors[name(row), why.reason, why.stage] += 1
        else:
            counts.dropped[name(row)] += 1
    return counts


def _within(spans: list[Span], rows: Set[int]) -> Iterator[Span]:
    """The parts of spans whose rows are all among ``rows``."""
    for span in spans:
        start = None
        for row in range(span.start, span.stop + 1):
            inside = row < span.stop and row in rows
            if inside and start is None:
                start = row
            elif not inside and start is not None:
                yield replace(span, start=start, stop=row)
                start = None


def _stretch(routes: Sequence[Route | None], start: int, stop: int) -> int:
    """Where the run of rows of one pipeline that begins at ``start`` ends."""
    route = routes[start]
    return next((row for row in range(start + 1, stop) if routes[row] is not route), stop)


def _record_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """What a record takes of its topic's ``max.message.bytes``, generously."""
    return len(key or b"") + len(value or b"") + _headers_bytes(headers or []) + RECORD_OVERHEAD_BYTES


def _headers_bytes(headers: Headers) -> int:
    return sum(10 + len(name) + len(value or b"") for name, value in headers)
