"""The sink of a worker whose results go to another cluster: a producer for each cluster, behind one set of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from worker.kafka.batch_sink import BatchSink
from worker.kafka.sink import KafkaSink, OnDelivery
from worker.sending import Sending

if TYPE_CHECKING:
    AnySink = KafkaSink | BatchSink


class SeveralSinks:
    """Sends each row to the cluster of its topic; the order of one topic is that of one producer.

    Args:
        home: of dead letters, on the cluster of the input.
        elsewhere: topic -> the sink of its cluster.
    """

    def __init__(self, home: AnySink, elsewhere: Mapping[str, AnySink]) -> None:
        self._home = home
        self._elsewhere = dict(elsewhere)
        self._others = list(dict.fromkeys(elsewhere.values()))

    @property
    def compiled(self) -> bool:
        """Whether results are sent by the compiled producer."""
        return all(isinstance(sink, BatchSink) for sink in self._others)

    @property
    def errors(self) -> Counter[str]:
        """Errors of all clients so far, by librdkafka's name of the code."""
        return sum((sink.errors for sink in (self._home, *self._others)), Counter())

    @property
    def last_error(self) -> str:
        """What the clients reported last of results, else of dead letters."""
        return next((each.last_error for each in (*self._others, self._home) if each.last_error), "")

    def _of(self, topic: str) -> AnySink:
        return self._elsewhere.get(topic, self._home)

    def send(self, sending: Sending, on_delivery: OnDelivery | None) -> int:
        """As :meth:`worker.kafka.sink.KafkaSink.send`."""
        return self._of(sending.topic).send(sending, on_delivery)

    def max_bytes(self, topic: str) -> int:
        return self._of(topic).max_bytes(topic)

    def needs_key(self, topic: str) -> bool:
        return self._of(topic).needs_key(topic)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Report what was acknowledged; the wait is for the results, which are most of it."""
        self._home.poll()
        for sink in self._others[1:]:
            sink.poll()
        self._others[0].poll(timeout_s)

    def purge(self) -> None:
        for sink in (self._home, *self._others):
            sink.purge()

    def close(self, budget_s: float) -> None:
        """Close every client, each within its share of the time."""
        sinks = (*self._others, self._home)
        for sink in sinks:
            sink.close(budget_s / len(sinks))
