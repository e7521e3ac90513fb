"""Which records are traced, and what their results carry.

A record is looked at twice, on the loop's thread: when its output is about to go, and when that is acknowledged. Its
spans are made later, on the exporter's thread (:mod:`worker.telemetry.traced`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from worker.batch import Batch, Envelope, Headers, Outcomes, Run
from worker.batch import Span as Rows
from worker.settings.tracing import Tracing
from worker.telemetry.span_exporter import SpanExporter
from worker.telemetry.spans import (
    IS_SAMPLED,
    NO_CONTEXT,
    SAMPLED,
    TRACEPARENT,
    TRACESTATE,
    Context,
    parsed,
    sampling,
    traceparent,
    tracestate,
    written,
)
from worker.telemetry.traced import Failure, Here, Settled, Traced, TracedBatch, model_of

if TYPE_CHECKING:
    from worker.loop.laying import Sheet
    from worker.loop.slab import Slab

KEY_BYTES = 256
"""A longer key of a record is not told."""
MOST_PASS_BY = 1e18
"""Rows between two that are drawn; only a ratio near zero comes so far."""
NOT_HERE = frozenset({"broker", "total"})
"""Stages of a result that are no part of the time that its record spends here."""


class Bucket:
    """Lets so many through per second, and at most as many at once.

    Args:
        clock_ns: monotonic nanoseconds.
    """

    def __init__(self, per_s: int, clock_ns: Callable[[], int]) -> None:
        self._per_s = per_s
        self._clock_ns = clock_ns
        self._left = float(per_s)
        self._filled_ns = clock_ns()

    def take(self, wanted: int) -> int:
        """How many of so many may go through now."""
        now_ns = self._clock_ns()
        self._left = min(self._per_s, self._left + (now_ns - self._filled_ns) / 1e9 * self._per_s)
        self._filled_ns = now_ns
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted


class Draw:
    """Chooses each row with the same probability: instead of one draw for each row, one for each that is chosen.

    Args:
        ratio: the probability.
    """

    def __init__(self, ratio: float, random: Random) -> None:
        self._ratio = ratio
        self._random = random
        self._pass_by = self._gap()
        """Rows until the next one that is chosen."""

    def rows(self, count: int) -> list[int]:
        """The chosen ones of the next rows."""
        if self._ratio >= 1:
            return [*range(count)]
        if self._ratio <= 0:
            return []
        chosen = []
        while self._pass_by < count:
            chosen.append(self._pass_by)
            self._pass_by += 1 + self._gap()
        self._pass_by -= count
        return chosen

    def _gap(self) -> int:
        """Rows before the next one that is chosen: geometrically distributed."""
        if not 0 < self._ratio < 1:
            return 0
        return int(min(math.log(1 - self._random.random()) / math.log1p(-self._ratio), MOST_PASS_BY))


class RecordTracer:
    """See the module, and :class:`worker.loop.tracing.Tracer`.

    Args:
        clock_ns: monotonic nanoseconds.
        random: chooses records that have no traceparent.
    """

    def __init__(
        self,
        tracing: Tracing,
        exporter: SpanExporter,
        here: Here,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        random: Random | None = None,
    ) -> None:
        self._exporter = exporter
        self._here = here
        self._clock_ns = clock_ns
        self._random = random or Random()
        self.follow(tracing)

    def follow(self, tracing: Tracing) -> None:
        """From the next records on, choose those to trace, and how many of them, as this says."""
        self._everything = tracing.everything
        self._draw = Draw(tracing.ratio, self._random) if tracing.ratio is not None else None
        self._bucket = Bucket(tracing.max_per_s, self._clock_ns)

    def leaving(self, slab: Slab, sheet: Sheet, batch: Batch | None) -> None:
        """See :class:`worker.loop.tracing.Tracer`."""
        rows = _within(self._chosen(sheet.columns.headers), sheet.spans, len(sheet.columns))
        if not rows:
            return
        batches = [batch] if batch is not None else slab.batches
        granted = self._bucket.take(len(rows))
        if granted < len(rows):
            over = rows[granted:]
            self._exporter.drop("dropped_rate", _spans(sheet.outcomes, over, batches, batch is not None))
        now_ns, known = self._clock_ns(), dict[int, TracedBatch]()
        for row in rows[:granted]:
            its, place = (batch, row) if batch is not None else _batch_of(batches, row)
            traced = self._traced(slab, sheet, row, its, place, now_ns)
            if its is not None:
                if id(its) not in known:
                    known[id(its)] = TracedBatch.of(its)
                traced.batch = known[id(its)]
            slab.traced.append(traced)
            route = sheet.routes[row]
            if route is not None and not traced.dropped and row not in sheet.outcomes.rejected:
                _lead_on(sheet.outcomes, row, traced, route.envelope)

    def settled(self, slab: Slab, spans: Sequence[Rows]) -> None:
        """See :class:`worker.loop.tracing.Tracer`."""
        records = [each for each in slab.traced if any(span.start <= each.row < span.stop for span in spans)]
        slab.traced = []
        for record in records:  # an output may have been refused since
            why = slab.rejected.get(record.row)
            record.why = Failure.of(why, self._here.redact) if why is not None else None
            record.dropped = why is None and record.row in slab.dropped
        if records:
            unix_ns = round(slab.taken_ms * 1e6) - slab.taken_ns
            self._exporter.offer(Settled(records, unix_ns, self._clock_ns(), self._here))

    def _chosen(self, headers: Sequence[Headers | None]) -> list[int]:
        """Rows that are to be traced, in order: with a sampled traceparent, or drawn. The cost is by the column."""
        drawn = self._draw.rows(len(headers)) if self._draw is not None else []
        if self._everything or not any(headers):
            return drawn
        codes = sampling(headers)
        sampled = np.flatnonzero(np.frombuffer(codes, np.uint8) == IS_SAMPLED).tolist()
        rootless = [row for row in drawn if codes[row] == NO_CONTEXT]
        return sorted(sampled + rootless) if rootless else sampled

    def _traced(
        self, slab: Slab, sheet: Sheet, row: int, batch: Batch | None, place: int, now_ns: int
    ) -> Traced:
        """What is known of a row of the sheet, which is the row ``place`` of ``batch`` if a batch had it."""
        columns, outcomes, route = sheet.columns, sheet.outcomes, sheet.routes[row]
        headers, value = columns.headers[row], columns.values[row]
        parent, ids = parsed(traceparent(headers)), os.urandom(32)
        slab_row = row if batch is None else batch.rows[place]
        late_us = slab.late_us[slab_row] if slab.late_us else 0
        topic, number = columns.partitions[row]
        return Traced(
            slab_row,
            parent,
            tracestate(headers) if parent is not None else "",
            ids[:16] if parent is None else parent.trace_id,
            SAMPLED if parent is None else parent.flags | SAMPLED,
            ids[16:24],
            ids[24:],
            slab.taken_ns + late_us * 1000,
            now_ns,
            _stages(outcomes, row, batch, place),
            topic,
            route.destination.topic if route is not None else "",
            [
                ("messaging.destination.partition.id", str(number)),
                ("messaging.kafka.offset", columns.offsets[row]),
                ("messaging.message.body.size", len(value or b"")),
                *([("messaging.kafka.message.tombstone", True)] if value is None else []),
                ("streaminfer.pipeline", route.name if route is not None else self._here.worker_name),
                *(model_of(batch) if batch is not None else []),
            ],
            self._key(columns.keys[row]),
            len(outcomes.bodies[row] or b""),
            None,
            row in outcomes.dropped,
        )

    def _key(self, key: bytes | None) -> str | None:
        if key is None or len(key) > KEY_BYTES or not self._here.tells_keys:
            return None
        try:
            return key.decode()
        except UnicodeDecodeError:
            return None


def _within(rows: list[int], spans: Sequence[Rows], count: int) -> list[int]:
    """Those of some rows that are in spans; ``count`` is how many rows there are in all."""
    if not rows or sum(span.stop - span.start for span in spans) == count:
        return rows
    ours = np.zeros(count, bool)
    for span in spans:
        ours[span.start : span.stop] = True
    chosen = np.array(rows)
    found: list[int] = chosen[ours[chosen]].tolist()
    return found


def _batch_of(batches: Sequence[Batch], row: int) -> tuple[Batch | None, int]:
    """The batch that has a row of the slab, and which of its rows that is."""
    for batch in batches:
        if row in batch.rows:
            return batch, batch.rows.index(row)
    return None, row


def _run_of(batch: Batch, place: int) -> tuple[Run, int] | None:
    """The run that answered a row of a batch, and which of its rows that is."""
    for run in batch.runs:
        its = place
        if run.places is not None:
            if place not in run.places:
                continue
            its = run.places.index(place)
        if its in run.rows:
            return run, run.rows.index(its)
    return None


def _stages(outcomes: Outcomes, row: int, batch: Batch | None, place: int) -> list[tuple[str, int]]:
    """The stages of an answered row, in microseconds."""
    if batch is None or row in outcomes.rejected or row in outcomes.dropped:
        return []
    found = _run_of(batch, place)
    if found is None:
        return []
    run, at = found
    return [
        (stage, us if isinstance(us, int) else int(us[at]))
        for stage, us in run.stages_us.items()
        if stage not in NOT_HERE
    ]


def _spans(outcomes: Outcomes, rows: Sequence[int], batches: Sequence[Batch], whole: bool) -> int:
    """How many spans some records would have had, by the rules of :attr:`worker.telemetry.traced.Traced.count`.

    Args:
        whole: all of the rows are of the one batch.
    """
    answered = next((2 + len(run.stages_us.keys() - NOT_HERE) for batch in batches for run in batch.runs), 1)
    special = outcomes.rejected or outcomes.dropped
    if not special and (whole or len(outcomes.bodies) == sum(map(len, batches))):
        return len(rows) * (1 + answered)
    inside = range(len(outcomes.bodies)) if whole else {row for batch in batches for row in batch.rows}
    count = 0
    for row in rows:
        if row in outcomes.dropped:
            count += 1
        elif row in outcomes.rejected or row not in inside:
            count += 2
        else:
            count += 1 + answered
    return count


def _lead_on(outcomes: Outcomes, row: int, traced: Traced, envelope: Envelope) -> None:
    """Whoever reads the result goes on from its send span, where results carry the trace context."""
    if not envelope.copies_trace:
        return
    if outcomes.headers is None:
        outcomes.headers = [None] * len(outcomes.bodies)
    # The state of a trace that begins here is not that of the one that the record seemed to have.
    replaced = (TRACEPARENT,) if traced.parent is not None else (TRACEPARENT, TRACESTATE)
    kept = [(name, value) for name, value in outcomes.headers[row] or () if name not in replaced]
    context = Context(traced.trace_id, traced.send_id, traced.flags)
    outcomes.headers[row] = [*kept, (TRACEPARENT, written(context))]
