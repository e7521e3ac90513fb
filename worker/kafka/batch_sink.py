"""The sink for the compiled producer, which takes and acknowledges rows in batches.

confluent-kafka's Python binding takes a dict per row and calls back per row; that costs more than the sending itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker.kafka.batch_producer import BatchProducer, available
from worker.kafka.sink import CHUNK_ROWS, KafkaSink, OnDelivery, Outputs
from worker.kafka.topics import Topics
from worker.sending import Sending

if TYPE_CHECKING:
    from worker.settings import Settings

FLUSH_STEP_S = 0.01


def open_sink(
    settings: Settings, topics: Topics, transactional_id: str | None = None
) -> KafkaSink | BatchSink:
    """The sink for these settings: :class:`BatchSink` if the compiled producer exists and supports the settings.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """
    mechanism = settings.kafka.get("sasl.mechanisms", "")
    if mechanism.upper() != "OAUTHBEARER" and available():
        return BatchSink(settings, topics, transactional_id)
    return KafkaSink(settings, topics, transactional_id)


class BatchSink(Outputs[BatchProducer]):
    """The producer of results and dead letters; sends and acknowledges as :class:`KafkaSink` does.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    client = BatchProducer

    def send(self, sending: Sending, on_delivery: OnDelivery | None) -> int:
        """Queue as many rows as fit, in order; see :meth:`KafkaSink.send`.

        ``on_delivery`` is called with a number of delivered rows, and at once for a row that is refused for good.
        """
        assert on_delivery is None or self.transactional_id is None, "a commit answers for every row"
        place = sending.topic, self.partition(sending.topic, sending.source), sending.mode != "input"
        sent = 0
        for start in range(0, len(sending), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            part = [*sending.values[rows]], [*sending.keys[rows]]
            headed = None if sending.headers is None else sending.headers[rows]
            taken, refused = self.producer.send(place, *part, headed, sending.timestamp_ms, on_delivery)
            sent += taken
            for error in refused:
                self._refused(error, on_delivery)
            if taken < len(part[0]):
                break
        return sent

    def flush(self, timeout_s: float) -> int:
        """Send every queued row and wait for the acknowledgements; see :meth:`Outputs.flush`."""
        deadline = time.monotonic() + timeout_s
        while (waiting := self.producer.flush(0.0)) and time.monotonic() < deadline:
            self.producer.flush(FLUSH_STEP_S)
            self.poll()
        return waiting
