"""What is counted, and when: every record once when it is taken and once when it has ended.

The loop tells accounts of slabs and batches; accounts tell every observer in the metrics' terms. Work here is per slab
and per batch; rows are looked at one by one only where one is out of the ordinary.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from worker.batch import Batch, Route, Span, total_bytes
from worker.loop.epochs import Epochs
from worker.loop.keep import LeftOut
from worker.loop.slab import Slab
from worker.loop.tracing import Tracer


class Observer(Protocol):
    """Told of what happens to records, on the loop's thread: per slab or batch, never per record.

    ``pipeline`` is the route's name; for records that no route takes it is the worker's.
    """

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None:
        """Records are in flight from now on; ``nbytes`` of values."""

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None:
        """Records have ended: acknowledged, or without an output (``dropped``). ``version``: of the model."""

    def skipped(self, pipeline: str, records: int) -> None:
        """Records that ``input.keep`` leaves out; each of them is also counted as dropped."""

    def sent(self, nbytes: int) -> None:
        """So many bytes of values are planned for the producer."""

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1, version: str = "") -> None: ...

    def batch(self, pipeline: str, batch: Batch) -> None:
        """A batch is back from the pool, with its runs and their stages."""

    def hold_us(self, pipeline: str, us: Any, records: int = 1) -> None:
        """Microseconds from finished to released."""

    def publish_us(self, pipeline: str, us: Any, records: int = 1) -> None:
        """Microseconds from released to acknowledged."""

    def rebalance(self) -> None: ...

    def rewind(self, cause: str) -> None: ...

    def loop(self, section: str, seconds: float) -> None:
        """Time that the loop's thread spent in one section of its turn."""


class Accounts:
    """See the module.

    Args:
        observers: each is told of everything, in this order.
        worker_name: counts the records that no route takes.
        clock_ns: monotonic nanoseconds.
        tracer: told of slabs that have ended.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        worker_name: str,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self.worker_name = worker_name
        self._observers = tuple(observers)
        self._clock_ns = clock_ns

    def taken(self, slab: Slab) -> None:
        """The slab is closed: its records are in flight."""
        values = slab.columns.values
        if slab.one_route:
            self._taken(self._name(slab.routes[0]), len(values), total_bytes(values))
            return
        for batch in slab.batches:
            self._taken(batch.route.name, len(batch), total_bytes(batch.columns.values))
        for row in set(range(len(values))).difference(*(batch.rows for batch in slab.batches)):
            self._taken(self._name(slab.routes[row]), 1, len(values[row] or b""))

    def returned(self, batch: Batch) -> None:
        """The batch is back from the pool."""
        for observer in self._observers:
            observer.batch(batch.route.name, batch)

    def released(self, slab: Slab) -> None:
        """The slab's turn has come."""
        for batch in slab.batches:
            hold_us = max(0, (slab.released_ns - batch.finished_ns) // 1000)
            for observer in self._observers:
                observer.hold_us(batch.route.name, hold_us, len(batch))

    def left_out(self, told: LeftOut) -> None:
        """Records were taken, and ``input.keep`` leaves them out."""
        name = told.route.name
        for observer in self._observers:
            observer.skipped(name, told.records)
            if told.gone:
                observer.taken(name, told.gone, told.nbytes)
                observer.counted(name, dropped=told.gone)

    def sent(self, nbytes: int) -> None:
        for observer in self._observers:
            observer.sent(nbytes)

    def ended(self, slab: Slab, epochs: Epochs) -> None:
        """Every output of the slab is acknowledged, or the slab was given up."""
        # Records that were revoked, lost or rewound since are answered by whoever reads them next: they are dropped.
        committed = slab.receipt.committed
        spans = slab.live_spans(epochs) if committed is None else committed
        if slab.traced and self._tracer is not None:
            self._tracer.settled(slab, spans)
        counts = tally(slab, spans, self.worker_name)
        publish_us = (self._clock_ns() - slab.released_ns) // 1000
        for observer in self._observers:
            for (name, version), count in counts.ok.items():
                observer.counted(name, ok=count, version=version)
                observer.publish_us(name, publish_us, count)
            for (name, version), count in counts.dead_letter.items():
                observer.counted(name, dead_letter=count, version=version)
            for name, count in counts.dropped.items():
                observer.counted(name, dropped=count)
            for (name, reason, stage, version), count in counts.errors.items():
                observer.error(name, reason, stage, count, version)

    def rebalance(self) -> None:
        for observer in self._observers:
            observer.rebalance()

    def rewind(self, cause: str) -> None:
        for observer in self._observers:
            observer.rewind(cause)

    def timed(self, section: str) -> Timed:
        """Count the time inside as one section of the loop."""
        return Timed(section, self._clock_ns, self._observers)

    def _taken(self, name: str, records: int, nbytes: int) -> None:
        for observer in self._observers:
            observer.taken(name, records, nbytes)

    def _name(self, route: Route | None) -> str:
        return route.name if route is not None else self.worker_name


class Timed:
    """A stretch of the loop's time. A generator in its place would cost twice as much, several times a turn."""

    __slots__ = ("_clock_ns", "_observers", "_section", "_started_ns")

    def __init__(self, section: str, clock_ns: Callable[[], int], observers: Sequence[Observer]) -> None:
        self._section = section
        self._clock_ns = clock_ns
        self._observers = observers
        self._started_ns = 0

    def __enter__(self) -> None:
        self._started_ns = self._clock_ns()

    def __exit__(self, *_error: object) -> None:
        seconds = (self._clock_ns() - self._started_ns) / 1e9
        for observer in self._observers:
            observer.loop(self._section, seconds)


@dataclass(slots=True)
class Tally:
    """How a slab's records ended, by pipeline name and model version."""

    ok: Counter[tuple[str, str]]
    """(pipeline, version); no version where no pipeline took the record."""
    dead_letter: Counter[tuple[str, str]]
    """As above."""
    dropped: Counter[str]
    """By pipeline."""
    errors: Counter[tuple[str, str, str, str]]
    """(pipeline, reason, stage, version)"""


def tally(slab: Slab, spans: list[Span], worker_name: str) -> Tally:
    """Count the records of a slab that has ended.

    Args:
        spans: the records that are still ours. Every other record was given back to Kafka and is counted as dropped.
        worker_name: stands for the pipeline where no route took the record.
    """

    def name(row: int) -> str:
        route = slab.routes[row]
        return route.name if route is not None else worker_name

    def whose(route: Route | None) -> tuple[str, str]:
        """The pipeline and the version of a route's rows that no candidate answers."""
        if route is None:
            return worker_name, ""
        return route.name, slab.servables[route].model_version

    def answered(row: int) -> tuple[str, str]:
        """The pipeline and the version of one row."""
        by = slab.others.get(row)
        return (name(row), by.model_version) if by is not None else whose(slab.routes[row])

    live = sum(span.stop - span.start for span in spans)
    routes = slab.routes
    by_route = Counter(
        {routes[0]: live}
        if slab.one_route
        else chain.from_iterable(routes[span.start : span.stop] for span in spans)
    )
    ok: Counter[tuple[str, str]] = Counter()
    for route, count in by_route.items():
        ok[whose(route)] += count
    others = slab.others
    if others and live < len(routes):
        alive = {row for span in spans for row in range(span.start, span.stop)}
        others = {row: servable for row, servable in others.items() if row in alive}
    theirs = Counter(zip(map(routes.__getitem__, others), others.values(), strict=True))
    for (route, servable), count in theirs.items():
        ok[whose(route)] -= count
        ok[whose(route)[0], servable.model_version] += count
    counts = Tally(ok, Counter(), Counter(), Counter())
    if live < len(slab.routes):
        alive = {row for span in spans for row in range(span.start, span.stop)}
        counts.dropped.update(name(row) for row in range(len(slab.routes)) if row not in alive)
    for row in {*slab.rejected, *slab.dropped}:
        if not any(span.start <= row < span.stop for span in spans):
            continue
        its = answered(row)
        counts.ok[its] -= 1
        if row in slab.rejected:
            why = slab.rejected[row]
            counts.dead_letter[its] += 1
            counts.errors[its[0], why.reason, why.stage, its[1]] += 1
        else:
            counts.dropped[name(row)] += 1
    return counts
