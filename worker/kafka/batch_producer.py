"""The compiled producer (:mod:`worker.native`) with the method names of confluent-kafka's Python binding.

It uses the same copy of librdkafka as the consumer, through librdkafka's public C interface.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition, libversion

from worker import native
from worker.batch import Headers
from worker.errors import ConfigError
from worker.kafka.library import library

LEVELS = (*[logging.CRITICAL] * 3, logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
"""Python's logging level for each syslog level that librdkafka uses."""


def available() -> bool:
    """Whether the compiled producer and a matching librdkafka exist."""
    return _handle() is not None


class BatchProducer:
    """A producer that takes and acknowledges rows in batches. With a ``transactional.id`` it gives no receipts.

    Args:
        properties: as ``confluent_kafka.Producer`` takes them, with ``logger`` and ``error_cb``.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        texts = dict(properties)
        self._logger: logging.Logger = texts.pop("logger")
        self._on_error: Callable[[KafkaError], None] = texts.pop("error_cb")
        assert native.producer is not None
        try:
            self._client: Any = native.producer.Producer(_handle(), _as_text(texts))
        except ValueError as error:
            raise ConfigError(f"kafka: {error}") from None
        self._name: str = self._client.name()

    def send(
        self,
        place: tuple[str, int, bool],
        values: list[bytes | None],
        keys: list[bytes | None],
        headers: Sequence[Headers | None] | None,
        timestamp_ms: int,
        receipt: Callable[..., None] | None,
    ) -> tuple[int, list[KafkaError]]:
        """Queue rows in order until the queue is full.

        Args:
            place: topic, partition, and whether a row with a key is placed by the key instead.
            timestamp_ms: Unix milliseconds for every row; requires headers. 0 = the time of sending.
            receipt: called by :meth:`poll` with (error or None, None, number of rows).

        Returns:
            How many rows were taken, and one error for each of these that librdkafka refuses for good.
        """
        if headers is None:
            assert not timestamp_ms, "a timestamp needs headers"
            taken, refused = self._client.send(*place, values, keys, receipt)
        else:
            taken, refused = self._client.send_headed(*place, values, keys, [*headers], timestamp_ms, receipt)
        return taken, [_error(code) for _row, code in refused]

    def poll(self, timeout_s: float = 0.0) -> None:
        """Handle the events that have arrived (receipts, errors, log lines); wait up to ``timeout_s`` for the first."""
        for kind, *event in self._client.poll(int(timeout_s * 1000)):
            if kind == "rows":
                receipt, rows, code = event
                receipt(_error(code) if code else None, None, rows)
            elif kind == "error":
                self._on_error(KafkaError(*event))
            else:
                level, facility, text = event
                self._logger.log(LEVELS[level], "%s [%s] %s", facility, self._name, text)

    def flush(self, timeout_s: float) -> int:
        """Send every queued row now, and return how many rows still wait for a receipt.

        Only :meth:`poll` hands out receipts: a row counts as waiting until then.
        """
        deadline = time.monotonic() + timeout_s
        while (waiting := self._client.waiting()) and time.monotonic() < deadline:
            self._client.hurry()
        return int(waiting)

    def purge(self) -> None:
        """Discard rows that are not acknowledged."""
        self._client.purge()

    def close(self) -> None:
        """Close the client and wait for its threads.

        Raises:
            RuntimeError: another thread is calling the client.
        """
        self._client.close()

    # -- transactions: the calls of confluent_kafka.Producer; each may raise KafkaException ---------------

    def init_transactions(self, timeout_s: float) -> None:
        _raise(self._client.init_transactions(int(timeout_s * 1000)))

    def begin_transaction(self) -> None:
        _raise(self._client.begin_transaction())

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: bytes, timeout_s: float
    ) -> None:
        offsets = [(each.topic, each.partition, each.offset, each.metadata or "") for each in positions]
        _raise(self._client.send_offsets(offsets, group_metadata, int(timeout_s * 1000)))

    def commit_transaction(self, timeout_s: float) -> None:
        _raise(self._client.commit_transaction(int(timeout_s * 1000)))

    def abort_transaction(self, timeout_s: float) -> None:
        _raise(self._client.abort_transaction(int(timeout_s * 1000)))


def _raise(refusal: tuple[int, str, bool, bool, bool] | None) -> None:
    if refusal is not None:
        raise KafkaException(KafkaError(*refusal))


def _handle() -> int | None:
    """Handle of the librdkafka that the consumer uses; None without a compiled producer or a matching library."""
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
