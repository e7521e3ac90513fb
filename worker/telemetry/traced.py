"""What is known of a traced record, and the spans that tell of it.

Attributes have the names of OpenTelemetry's conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/kafka/, 1.45); what those have no name for begins with
``streaminfer.``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from worker.batch import Batch
from worker.errors import Rejection
from worker.telemetry.spans import CONSUMER, INTERNAL, PRODUCER, Context, Link, Span

MESSAGE_CHARACTERS = 500
"""Of a dead letter's reason; the letter itself has all of it."""
Told = list[tuple[str, str | int | float | bool]]
"""Attributes of a span."""


@dataclass(frozen=True, slots=True)
class Here:
    """What spans say of this process."""

    group: str
    client_id: str
    worker_name: str
    """Stands for the pipeline where no pipeline took the record."""
    dead_letters: str
    """The topic of dead letters."""
    tells_keys: bool = True
    """Spans may carry the keys of records."""
    redact: Callable[[str], str] = str
    """Takes secrets out of a message."""


@dataclass(frozen=True, slots=True)
class TracedBatch:
    """A batch with traced records. Times are monotonic nanoseconds."""

    place: Link
    """Of its span, which begins a trace of its own."""
    name: str
    start_ns: int
    end_ns: int
    attributes: Told

    @classmethod
    def of(cls, batch: Batch) -> TracedBatch:
        """What is told of a batch that has come back from the engine."""
        ids = os.urandom(24)
        runs = sum(len(run.sizes) if run.sizes is not None else run.fragments is None for run in batch.runs)
        told: Told = [
            ("messaging.system", "kafka"),
            ("messaging.batch.message_count", len(batch)),
            ("streaminfer.pipeline", batch.route.name),
            *model_of(batch),
            ("streaminfer.batch.items", batch.items),
            ("streaminfer.batch.runs", runs),
        ]
        for run in batch.runs:
            for name, part in (run.steps or {}).items():
                told += [
                    (f"streaminfer.step.{name}.items", part.items),
                    (f"streaminfer.step.{name}.runs", part.runs),
                    (f"streaminfer.step.{name}.ms", part.us / 1000),
                ]
        place = Link(ids[:16], ids[16:])
        return cls(place, f"batch {batch.route.name}", batch.decode_started_ns, batch.finished_ns, told)


class Failure(NamedTuple):
    """Why a record became a dead letter."""

    reason: str
    stage: str
    message: str

    @classmethod
    def of(cls, why: Rejection, redact: Callable[[str], str]) -> Failure:
        """What spans tell of a rejection: a message may be of any length, and hold what UTF-8 cannot encode."""
        text = redact(why.message)[:MESSAGE_CHARACTERS]
        return cls(why.reason, why.stage, text.encode("utf-8", "replace").decode())


@dataclass(slots=True)
class Traced:
    """A traced record. Times are monotonic nanoseconds."""

    row: int
    """Of its slab."""
    parent: Context | None
    """None: its trace begins here."""
    state: str
    """The tracestate."""
    trace_id: bytes
    flags: int
    span_id: bytes
    send_id: bytes
    taken_ns: int
    left_ns: int
    """When its output went to the producer."""
    stages: Sequence[tuple[str, int]]
    """The stages it went through, one after the other, in microseconds; empty where no model answered it."""
    topic: str
    destination: str
    """Where its result goes; empty where no pipeline took it."""
    told: Told
    """Attributes of `process` that only this record has."""
    key: str | None
    body_bytes: int
    """Length of its result."""
    batch: TracedBatch | None
    """None where the record never was in one."""
    dropped: bool
    """It has no output."""
    why: Failure | None = None
    """Why it became a dead letter; known when its output is acknowledged."""

    @property
    def count(self) -> int:
        """Its spans: `process`, `send`, and the stages followed by `hold`."""
        return 1 + (not self.dropped) + len(self.stages) + bool(self.stages)


def model_of(batch: Batch) -> Told:
    """The model that answers a batch."""
    return [
        ("streaminfer.model.name", batch.servable.model_name),
        ("streaminfer.model.version", batch.servable.model_version),
    ]


@dataclass(frozen=True, slots=True)
class Settled:
    """The traced records of a slab whose outputs are acknowledged. A :class:`worker.telemetry.span_exporter.Parcel`."""

    records: Sequence[Traced]
    unix_ns: int
    """Unix time minus the monotonic clock, when the slab was taken."""
    ended_ns: int
    """Monotonic clock."""
    here: Here

    @property
    def size(self) -> int:
        return len(self.records)

    def first(self, records: int) -> Settled:
        """The part of it of the first records."""
        return replace(self, records=self.records[:records])

    @property
    def count(self) -> int:
        return sum(record.count for record in self.records) + len(self._batches())

    def spans(self) -> list[Span]:
        """The spans of the records, and one for each of their batches."""
        found = []
        for record in self.records:
            found += [self._process(record), *self._stages(record)]
            if not record.dropped:
                found.append(self._send(record))
        return found + [self._batch(batch) for batch in self._batches()]

    def _batches(self) -> list[TracedBatch]:
        return [*{id(each.batch): each.batch for each in self.records if each.batch is not None}.values()]

    def _process(self, record: Traced) -> Span:
        here, why, error = self.here, record.why, None
        told: Told = [
            ("messaging.system", "kafka"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.client.id", here.client_id),
            ("messaging.consumer.group.name", here.group),
            ("messaging.destination.name", record.topic),
            *record.told,
            *_keyed(record),
        ]
        if why is not None:
            error = f"{why.reason}: {why.message}"
            told += [("error.type", why.reason), ("streaminfer.stage", why.stage)]
        return Span(
            record.trace_id,
            record.span_id,
            record.parent.span_id if record.parent is not None else b"",
            f"process {record.topic}",
            CONSUMER,
            record.taken_ns + self.unix_ns,
            self.ended_ns + self.unix_ns,
            told,
            [record.batch.place] if record.batch is not None else (),
            error,
            record.flags,
            record.parent is not None,
            record.state,
        )

    def _stages(self, record: Traced) -> Iterator[Span]:
        """What the record went through, and how long it then waited for its turn to go out."""
        if not record.stages:
            return
        parts, at_ns = [], record.taken_ns
        for stage, us in record.stages:
            parts.append((stage, at_ns, at_ns + us * 1000))
            at_ns += us * 1000
        parts.append(("hold", at_ns, max(at_ns, record.left_ns)))
        ids = os.urandom(8 * len(parts))
        for number, (name, from_ns, to_ns) in enumerate(parts):
            yield Span(
                record.trace_id,
                ids[8 * number : 8 * number + 8],
                record.span_id,
                name,
                INTERNAL,
                from_ns + self.unix_ns,
                to_ns + self.unix_ns,
                flags=record.flags,
                state=record.state,
            )

    def _send(self, record: Traced) -> Span:
        letter = record.why is not None
        topic = self.here.dead_letters if letter else record.destination
        told: Told = [
            ("messaging.system", "kafka"),
            ("messaging.operation.name", "send"),
            ("messaging.operation.type", "send"),
            ("messaging.client.id", self.here.client_id),
            ("messaging.destination.name", topic),
            *_keyed(record),
        ]
        if not letter:
            told.append(("messaging.message.body.size", record.body_bytes))
        return Span(
            record.trace_id,
            record.send_id,
            record.span_id,
            f"send {topic}",
            PRODUCER,
            record.left_ns + self.unix_ns,
            self.ended_ns + self.unix_ns,
            told,
            flags=record.flags,
            state=record.state,
        )

    def _batch(self, batch: TracedBatch) -> Span:
        return Span(
            batch.place.trace_id,
            batch.place.span_id,
            b"",
            batch.name,
            INTERNAL,
            batch.start_ns + self.unix_ns,
            batch.end_ns + self.unix_ns,
            batch.attributes,
            [Link(each.trace_id, each.span_id) for each in self.records if each.batch is batch],
        )


def _keyed(record: Traced) -> Told:
    return [("messaging.kafka.message.key", record.key)] if record.key is not None else []
