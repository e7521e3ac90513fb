"""What a shadow answers, on its way to ``rollout.topic``: results like any other, and never in the way of those that count.

They have a producer of their own, outside transactions. It sends each result at least once and for as long as it takes;
where its queue is full, because the broker is away, the results of that moment are left out and counted. Positions are
committed without them: what a process had not sent when it died is not sent by anybody.
"""

from __future__ import annotations

from typing import Any

import structlog
from confluent_kafka import KafkaException, Producer

from worker.batch import Batch
from worker.kafka.properties import build, producer_properties
from worker.settings import Settings

QUEUE_KBYTES = 32 << 10
LOG_EVERY = 1000
"""Results that are left out, for each log line."""

log = structlog.get_logger()


class ShadowResults:
    """See the module. Shadows' threads call :meth:`publish`.

    Args:
        producer: a client's producer.
    """

    def __init__(self, producer: Any) -> None:
        self.left_out = 0
        """Results that did not fit the queue."""
        self._producer = producer

    def publish(self, topic: str, batch: Batch) -> None:
        """Send the results of a batch; records that the candidate refused have none."""
        outcomes, columns = batch.outcomes, batch.columns
        assert outcomes is not None
        by_input = batch.route.destination.partition == "input"
        for row, body in enumerate(outcomes.bodies):
            if body is None or row in outcomes.rejected or row in outcomes.dropped:
                continue
            more: dict[str, Any] = {"key": columns.keys[row]}
            if outcomes.headers is not None and outcomes.headers[row]:
                more["headers"] = outcomes.headers[row]
            if by_input:
                more["partition"] = columns.partitions[row].number
            self._send(topic, body, more)
        self._producer.poll(0)

    def _send(self, topic: str, body: bytes, more: dict[str, Any]) -> None:
        try:
            self._producer.produce(topic, body, **more)
        except (BufferError, KafkaException) as error:
            if self.left_out % LOG_EVERY == 0:
                log.warning(
                    "results of a shadow are left out", topic=topic, so_far=self.left_out, error=str(error)
                )
            self.left_out += 1

    def close(self, budget_s: float) -> None:
        """Send what is queued, for so long at most."""
        if left := self._producer.flush(budget_s):
            log.warning("results of a shadow could not be sent in time", records=left)


def open_shadow_results(settings: Settings) -> ShadowResults:
    """A client for the results of all shadows of a process."""
    properties = producer_properties(settings) | {"queue.buffering.max.kbytes": QUEUE_KBYTES}
    return ShadowResults(build(Producer, properties))
