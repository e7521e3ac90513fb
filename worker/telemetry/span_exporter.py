"""Sends spans to a collector, on a thread of its own. Nothing waits for it: what does not fit is dropped and counted."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from worker.telemetry import logs
from worker.telemetry.spans import Span

EVERY_S = 1.0
"""Spans wait for company so long at most."""
REQUEST_SPANS = 256
"""A request is sent as soon as so many wait, and has a few more at most. Writing it takes 1 ms of the interpreter's lock, for
which the loop has to wait: a larger one would show in the latency of records."""
QUEUE_RECORDS = 2048
"""Most records whose spans wait: each takes 4 KB at most, which makes :data:`worker.settings.tracing.WAITING_BYTES`."""
PAUSES_S = (1.0, 2.0, 4.0)
"""Waits before a request is tried again that the collector could not take now."""
OUTCOMES = ("sent", "failed", "dropped_rate", "dropped_full")
"""What becomes of a span."""
LONGEST_PAUSE_S = 30.0
"""The longest wait that a collector may ask for."""

log = logs.get("worker")


class Parcel(Protocol):
    """Spans to be, in a form that costs the loop's thread little."""

    @property
    def count(self) -> int:
        """How many spans it stands for."""

    @property
    def size(self) -> int:
        """Of how many records."""

    def first(self, records: int) -> Parcel:
        """The part of it of the first records."""

    def spans(self) -> Sequence[Span]:
        """The spans; called on the exporter's thread."""


class Unsent(Exception):
    """A collector did not take a request.

    Args:
        again: it may take it later. after_s: not before so many seconds, where it said so.
    """

    def __init__(self, why: str, again: bool, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.again = again
        self.after_s = after_s


class Sender(Protocol):
    """Where spans go; the exporter's thread alone uses it."""

    def send(self, spans: Sequence[Span]) -> int:
        """Send spans in one request; returns how many of them the collector refused.

        Raises:
            Unsent: none of them arrived.
        """

    def close(self) -> None:
        """Let connections go."""


class SpanExporter:
    """See the module. :meth:`offer` is for the loop's thread, the rest for any.

    Args:
        sender: makes the requests; it is closed with the exporter.
        where: the collector, for the log.
    """

    def __init__(self, sender: Sender, where: str, every_s: float = EVERY_S) -> None:
        self._sender = sender
        self._where = where
        self._every_s = every_s
        self._changed = threading.Condition()
        self._queue: deque[Parcel] = deque()
        self._waiting = 0
        """Spans in the queue."""
        self._records = 0
        """Records in the queue."""
        self._sending = 0
        """Spans of the request that is under way."""
        self._closing = self._closed = False
        self._away = False
        self._counts = Counter(dict.fromkeys(OUTCOMES, 0))
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def offer(self, parcel: Parcel) -> None:
        """Take spans to be sent, or drop them where too many wait."""
        with self._changed:
            whole, room = parcel.count, 0 if self._closing else QUEUE_RECORDS - self._records
            if parcel.size > room:
                parcel = parcel.first(room)
                self._counts["dropped_full"] += whole - parcel.count
            if not parcel.size:
                return
            self._queue.append(parcel)
            self._waiting += parcel.count
            self._records += parcel.size
            if self._waiting >= REQUEST_SPANS:
                self._changed.notify_all()

    def drop(self, outcome: str, spans: int) -> None:
        """Count spans that were not made."""
        with self._changed:
            self._counts[outcome] += spans

    def counts(self) -> Counter[str]:
        """Spans by what became of them: each of ``OUTCOMES``."""
        with self._changed:
            return self._counts.copy()

    def close(self, budget_s: float) -> None:
        """Send what waits, so long at most; what is left then has failed. Later spans are dropped."""
        deadline = time.monotonic() + budget_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            if not self._closed:
                self._closed = True
                self._counts["failed"] += self._waiting + self._sending
                self._queue.clear()
                self._waiting = self._sending = 0

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self._closing and self._waiting == 0):
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting >= REQUEST_SPANS, self._every_s)
                parcels = self._taken()
            if parcels:
                self._sent(parcels)
        self._sender.close()

    def _taken(self) -> list[Parcel]:
        """The parcels of the next request."""
        parcels: list[Parcel] = []
        while self._queue and self._sending < REQUEST_SPANS:
            parcels.append(self._queue.popleft())
            self._sending += parcels[-1].count
            self._records -= parcels[-1].size
        self._waiting -= self._sending
        return parcels

    def _sent(self, parcels: list[Parcel]) -> None:
        """Send one request, and count what became of its spans."""
        refused, why = 0, None
        try:
            spans = [span for parcel in parcels for span in parcel.spans()]
            refused = self._deliver(spans)
        except Unsent as error:
            why = str(error)
        except Exception as error:  # a bug here must cost spans only, and be seen
            why = f"{type(error).__name__}: {error}"
        with self._changed:
            if self._closed:  # they are counted already
                return
            failed = self._sending if why is not None else min(refused, self._sending)
            self._counts["failed"] += failed
            self._counts["sent"] += self._sending - failed
            self._sending = 0
        self._tell(why)

    def _deliver(self, spans: Sequence[Span]) -> int:
        """Send the spans, again where that may help; returns how many the collector refused."""
        for pause_s in PAUSES_S:
            try:
                return self._sender.send(spans)
            except Unsent as error:
                if not error.again:
                    raise
                self._tell(str(error))
                pause_s = min(max(pause_s, error.after_s), LONGEST_PAUSE_S)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, pause_s):
                        break
        return self._sender.send(spans)

    def _tell(self, why: str | None) -> None:
        """Say once that the collector does not take spans, and once that it does again."""
        if why is not None and not self._away:
            log.warning("spans are not sent, records go on", collector=self._where, why=why)
        elif why is None and self._away:
            log.info("spans are sent again", collector=self._where)
        self._away = why is not None
