"""The sink of results and dead letters: one producer, fed in the order of the input."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from worker.batch import Partition
from worker.errors import DeliveryFailed
from worker.kafka.properties import (
    DEFAULT_TOPIC_LIMIT,
    build,
    metrics_properties,
    producer_properties,
)
from worker.kafka.topics import Topics
from worker.sending import PartitionMode, Sending

if TYPE_CHECKING:
    from worker.settings import Settings

CHUNK_ROWS = 1000
"""Rows per ``produce_batch`` call. The call holds the interpreter lock until it returns."""

OnDelivery = Callable[..., None]
"""Called per row with (error or None, message or None), or with (error or None, None, number of rows)."""
log = structlog.get_logger(module=__name__)

QUIET_S = 10.0
"""Between two lines about lost metrics records."""


class Handle(Protocol):
    """The calls that every wrapper of a producer has."""

    def poll(self, timeout: float, /) -> Any: ...

    def flush(self, timeout: float, /) -> int: ...

    def purge(self) -> None: ...

    def close(self) -> Any: ...


ClientT = TypeVar("ClientT", bound=Handle)


class Outputs(Generic[ClientT]):
    """The base of every sink: the producer, the topics written to, and the errors that the client reported.

    Args:
        settings: the worker's settings.
        topics: the topics as the broker described them.
        transactional_id: set only with ``delivery: exactly_once``.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    client: Callable[[dict[str, Any]], ClientT]
    """Constructs a producer from its properties."""

    def __init__(self, settings: Settings, topics: Topics, transactional_id: str | None = None) -> None:
        self._topics = topics
        self.errors: Counter[str] = Counter()
        """Name of librdkafka's error code -> number of such errors so far."""
        self.last_error = ""
        """What the last error said."""
        self.fatal: str | None = None
        """Why the producer can never work again; None while it works. :meth:`renew` clears it."""
        self.transactional_id = transactional_id
        self._properties = producer_properties(settings, topics.limits, transactional_id)
        self._properties["error_cb"] = self._on_error
        self.producer: ClientT = build(type(self).client, self._properties)
        self._swapping = threading.Lock()
        """Held while the producer is polled or replaced: a producer must not be closed during a poll."""
        self._lent: set[ClientT] = set()
        """Producers that another thread is calling. The call may never return, so these are not closed either."""

    def max_bytes(self, topic: str) -> int:
        """Largest record, in bytes, that a topic accepts from this client."""
        return self._topics.limits.get(topic, DEFAULT_TOPIC_LIMIT)

    def needs_key(self, topic: str) -> bool:
        """Whether a topic refuses records without a key, as compacted topics do."""
        return topic in self._topics.compacted

    def partition(self, topic: str, source: Partition) -> int:
        """Partition for rows that are not placed by their key; see :data:`worker.sending.PartitionMode`."""
        return source.number % self._topics.partitions[topic]

    def poll(self, timeout_s: float = 0.0) -> None:
        """Report acknowledgements that have arrived; wait up to ``timeout_s`` for the first."""
        with self._swapping:
            try:
                self.producer.poll(timeout_s)
            except KafkaException as error:
                # a fatal error. librdkafka itself fails the queued rows, or the transaction.
                self._on_error(error.args[0])

    def flush(self, timeout_s: float) -> int:
        """Send every queued row and wait for the acknowledgements.

        Returns:
            The number of rows not acknowledged when the time was up.
        """
        return self.producer.flush(timeout_s)

    def purge(self) -> None:
        """Discard rows that are not acknowledged: the next :meth:`poll` calls ``on_delivery`` with an error for each."""
        self.producer.purge()

    @contextmanager
    def lend(self, producer: ClientT) -> Iterator[None]:
        """Mark the producer as in use while a thread other than the owner's calls it."""
        self._lent.add(producer)
        try:
            yield
        finally:
            self._lent.discard(producer)

    @property
    def lent(self) -> bool:
        """Whether another thread is calling the producer now; see :meth:`lend`."""
        return self.producer in self._lent

    def renew(self) -> None:
        """Replace the producer by a new one with the same properties; the old one is closed without a flush."""
        new = build(type(self).client, self._properties)
        with self._swapping:
            old, self.producer, self.fatal = self.producer, new, None
        if old not in self._lent:
            _let_go(old, 0.0)

    def close(self, budget_s: float) -> None:
        """Flush for at most ``budget_s``, discard the rest and close the client.

        A client that another thread is calling is left to the end of the process.
        """
        if self.lent:
            return
        with suppress(KafkaException):
            self.flush(budget_s)
        _let_go(self.producer, budget_s)

    def _refused(self, error: KafkaError, on_delivery: OnDelivery | None) -> None:
        if error.code() == KafkaError._FATAL:
            if on_delivery is None:
                self.poll()  # the row's error only says that the client is dead; poll() reports why
            if self.fatal is None:
                self._on_error(error)
        if on_delivery is None:
            why = (error.code() == KafkaError._FATAL and self.fatal) or error.str()
            raise DeliveryFailed("transaction", f"the producer refuses an output: {why}")
        on_delivery(error, None)

    def _on_error(self, error: KafkaError) -> None:
        self.errors[error.name()] += 1
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self.last_error:
            self.last_error = error.str()
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal = error.str()
        log.debug("client error", client="producer", code=error.name(), error=error.str())


class KafkaSink(Outputs[Producer]):
    """The producer of results and dead letters, through confluent-kafka's Python binding."""

    client = Producer

    def send(self, sending: Sending, on_delivery: OnDelivery | None) -> int:
        """Queue as many rows as fit, in order.

        Args:
            sending: its topic is one of the topics given at construction.
            on_delivery: called once per queued row inside later calls of :meth:`poll`. For a row that librdkafka
                refuses for good it is called at once, with an error. None: the transaction acknowledges the rows.

        Returns:
            How many rows were accepted. The others did not fit: the caller must send them again before any
            other row.

        Raises:
            DeliveryFailed: a row is refused for good and there is no ``on_delivery``.
        """
        partition = self.partition(sending.topic, sending.source)
        sent = 0
        for start, stop, by_key in _stretches(sending.keys, sending.mode):
            to = -1 if by_key else partition
            if sending.headers is None:
                assert not sending.timestamp_ms, "produce_batch takes no timestamps"
                accepted = self._send_plain(sending, start, stop, to, on_delivery)
            else:
                accepted = self._send_headed(sending, start, stop, to, on_delivery)
            sent += accepted
            if accepted < stop - start:
                break
        return sent

    def _send_plain(
        self, sending: Sending, start: int, stop: int, partition: int, on_delivery: OnDelivery | None
    ) -> int:
        """Queue rows without headers, one call per chunk."""
        options: dict[str, Any] = {} if on_delivery is None else {"on_delivery": on_delivery}
        sent = 0
        for first in range(start, stop, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, stop)
            rows = _messages(sending.values[first:last], sending.keys[first:last])
            accepted = self.producer.produce_batch(sending.topic, rows, partition=partition, **options)
            if accepted < len(rows):
                # The queue is full from some row on. Rows refused for another reason may lie before it.
                accepted = 0
                for row in rows:
                    error: KafkaError | None = row.get("_error")
                    if error is not None and error.code() == KafkaError._QUEUE_FULL:
                        return sent + accepted
                    if error is not None:
                        self._refused(error, on_delivery)
                    accepted += 1
            sent += accepted
        return sent

    def _send_headed(
        self, sending: Sending, start: int, stop: int, partition: int, on_delivery: OnDelivery | None
    ) -> int:
        """Queue rows with headers, one call per row: ``produce_batch`` silently drops headers."""
        assert sending.headers is not None
        produce = self.producer.produce
        options: dict[str, Any] = {} if on_delivery is None else {"on_delivery": on_delivery}
        if sending.timestamp_ms:
            options["timestamp"] = sending.timestamp_ms
        for row in range(start, stop):
            headers = sending.headers[row]
            headed = {**options, "headers": headers} if headers else options
            try:
                produce(sending.topic, sending.values[row], sending.keys[row], partition, **headed)
            except BufferError:
                return row - start
            except KafkaException as error:
                self._refused(error.args[0], on_delivery)
        return stop - start


class MetricsProducer:
    """A small separate producer for the metrics topic: it may lose a record and never blocks the worker.

    Args:
        settings: whose properties it uses.
        clock: seconds; tells when losses were last logged.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._producer = build(Producer, metrics_properties(settings))
        self._clock = clock
        self._lost = 0
        """Records lost since the log last said so."""
        self._quiet_until_s = 0.0

    def send(self, topic: str, key: bytes | str, value: bytes) -> None:
        self._producer.poll(0)
        try:
            self._producer.produce(topic, value, key, on_delivery=self._on_delivery)
        except (BufferError, KafkaException) as error:
            self._lose(str(error))

    def close(self, budget_s: float) -> None:
        """Send queued records for at most ``budget_s``, then close the client."""
        left = self._producer.flush(budget_s) + self._lost
        self._quiet_until_s = math.inf  # those that are thrown away with the client are in this line
        if left:
            log.warning("metrics records could not be sent in time", records=left)
        _let_go(self._producer, budget_s)

    def _on_delivery(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self._lose(error.str())

    def _lose(self, why: str) -> None:
        """Count a lost record; an outage loses one in each interval, and one line in ten seconds is enough."""
        self._lost += 1
        if self._clock() >= self._quiet_until_s:
            log.warning("metrics records were lost", records=self._lost, error=why)
            self._lost, self._quiet_until_s = 0, self._clock() + QUIET_S


def _messages(values: Sequence[bytes | None], keys: Sequence[bytes | None]) -> list[dict[str, Any]]:
    """Rows as ``produce_batch`` takes them. A dict without a key costs less than half as much to make."""
    if keys.count(None) == len(keys):
        return [{"value": value} for value in values]
    return [{"value": value, "key": key} for value, key in zip(values, keys, strict=True)]


def _stretches(keys: Sequence[bytes | None], mode: PartitionMode) -> Iterator[tuple[int, int, bool]]:
    """Runs of neighbouring rows that are placed in the same way: (start, stop, whether by key), in order."""
    rows, keyless = len(keys), keys.count(None)
    if mode == "input" or keyless in (0, rows):
        yield 0, rows, mode != "input" and keyless == 0
        return
    start = 0
    while start < rows:
        by_key = keys[start] is not None
        stop = start + 1
        while stop < rows and (keys[stop] is not None) == by_key:
            stop += 1
        yield start, stop, by_key
        start = stop


def _let_go(producer: Handle, budget_s: float) -> None:
    """Close a client on a separate thread, because its ``close`` waits for the broker without a limit."""

    def close() -> None:
        # a producer with a fatal error raises it again here; a producer in use cannot be closed
        with suppress(KafkaException, RuntimeError):
            producer.purge()
            producer.close()

    closing = threading.Thread(target=close, name="producer-close", daemon=True)
    closing.start()
    closing.join(budget_s)
