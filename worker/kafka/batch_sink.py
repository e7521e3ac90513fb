"""Where outputs go when nothing of them needs a transaction: a producer that is fed and acknowledged by the batch.

The client's Python binding takes a dict per row and calls back per row, which costs more than sending it. The compiled
producer (:mod:`worker.native`) drives the same library through its public C interface with neither.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, libversion

from worker import native
from worker.batch import Headers, Partition
from worker.errors import ConfigError
from worker.kafka.library import library
from worker.kafka.properties import producer_properties
from worker.kafka.sink import CHUNK_ROWS, KafkaSink, OnDelivery, Outputs
from worker.kafka.topics import Topics

if TYPE_CHECKING:
    from worker.settings import Settings

LEVELS = (*[logging.CRITICAL] * 3, logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
"""By syslog level, as the library counts."""


def open_sink(
    settings: Settings, topics: Topics, transactional_id: str | None = None
) -> KafkaSink | BatchSink:
    """The sink for these settings: by the batch where the compiled producer is there and can do all they ask for.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """
    mechanism = settings.kafka.get("sasl.mechanisms", settings.kafka.get("sasl.mechanism", ""))
    if transactional_id is None and mechanism.upper() != "OAUTHBEARER" and _handle() is not None:
        return BatchSink(settings, topics)
    return KafkaSink(settings, topics, transactional_id)


class BatchSink(Outputs):
    """The producer of results and dead letters, at least once; sends and acknowledges as :class:`KafkaSink` does.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(self, settings: Settings, topics: Topics) -> None:
        super().__init__(topics)
        properties = producer_properties(settings, topics.limits)
        self._logger: logging.Logger = properties.pop("logger")
        assert native.producer is not None
        try:
            self._producer: Any = native.producer.Producer(_handle(), _as_text(properties))
        except ValueError as error:
            raise ConfigError(f"kafka: {error}") from None
        self._name: str = self._producer.name()

    def send(
        self,
        topic: str,
        source: Partition,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers | None] | None,
        mode: str,
        on_delivery: OnDelivery | None,
        timestamp_ms: int = 0,
    ) -> int:
        """Queue as many rows as fit, in order; see :meth:`KafkaSink.send`.

        ``on_delivery`` hears of acknowledgements in numbers of rows, and of a row that is refused at once.
        """
        place = topic, self.partition(topic, source), mode != "input"
        sent = 0
        for start in range(0, len(values), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            part = [*values[rows]], [*keys[rows]]
            if headers is None:
                assert not timestamp_ms, "a timestamp needs headers"
                taken, refused = self._producer.send(*place, *part, on_delivery)
            else:
                headed = [*headers[rows]]
                taken, refused = self._producer.send_headed(*place, *part, headed, timestamp_ms, on_delivery)
            sent += taken
            for _row, code in refused:
                self._refused(_error(code), on_delivery)
            if taken < len(part[0]):
                break
        return sent

    def poll(self, timeout_s: float = 0.0) -> None:
        """Serve acknowledgements that have arrived, waiting for one up to ``timeout_s``."""
        for kind, *event in self._producer.poll(int(timeout_s * 1000)):
            if kind == "rows":
                on_delivery, rows, code = event
                on_delivery(_error(code) if code else None, None, rows)
            elif kind == "error":
                self._on_error(KafkaError(*event))
            else:
                level, facility, text = event
                self._logger.log(LEVELS[level], "%s [%s] %s", facility, self._name, text)

    def flush(self, timeout_s: float) -> int:
        """Send everything and wait for the acknowledgements; returns how many rows are still without one."""
        deadline = time.monotonic() + timeout_s
        while (waiting := self._producer.waiting()) and time.monotonic() < deadline:
            self._producer.hurry()
            self.poll()
        return int(waiting)

    def purge(self) -> None:
        """Give up what is not acknowledged: ``on_delivery`` hears of it in the next :meth:`poll`."""
        self._producer.purge()

    def close(self, budget_s: float) -> None:
        """Flush within the budget, give up the rest, end the client, on a thread of its own: it may have to wait."""
        self.flush(budget_s)

        def close() -> None:
            with suppress(RuntimeError):
                self._producer.purge()
                self._producer.close()

        closing = threading.Thread(target=close, name="producer-close", daemon=True)
        closing.start()
        closing.join(budget_s)


def _handle() -> int | None:
    """Of the very library the consumer runs on; None where there is no compiled producer, or it is not to be found."""
    rdkafka = library() if native.producer is not None else None
    if rdkafka is None or rdkafka.rd_kafka_version() != libversion()[1]:
        return None
    return int(rdkafka._handle)


def _as_text(properties: dict[str, Any]) -> dict[str, str]:
    """Properties as the library's own interface takes them."""
    texts = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in properties.items()
    }
    return {**texts, "log.queue": "true"}


def _error(code: int) -> KafkaError:
    return KafkaError(code, fatal=code == KafkaError._FATAL)
