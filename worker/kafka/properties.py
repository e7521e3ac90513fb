"""Client properties: what the worker needs, what the user adds, and which client each is for.

A property that the user sets overrides the worker's. The settings refuse properties that would break a promise.
"""

from __future__ import annotations

import difflib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer, ShareConsumer

from worker.errors import ConfigError, Mistake, StartError
from worker.kafka.clusters import clusters_of
from worker.kafka.library import known_properties, property_fault
from worker.settings.checks import TRANSACTION_TIMEOUT_MS
from worker.shortage import shortage
from worker.topics import is_pattern

if TYPE_CHECKING:
    from worker.settings import Settings

DEFAULT_TOPIC_LIMIT = 1_048_588
"""Kafka's default for a topic's ``max.message.bytes``, in bytes; assumed if the topic's value cannot be read."""
SMALLEST_CLIENT_LIMIT, LARGEST_CLIENT_LIMIT = 1_000_000, 1_000_000_000
"""Range of the producer's ``message.max.bytes`` in this worker; the upper end is librdkafka's limit."""
LARGEST_RESPONSE = 1_000_000_000
"""A record larger than the prefetch arrives whole, and the client must accept it before the worker can refuse it.
The bytes ``HTTP``, read as a length, exceed this value: so the client notices if the port belongs to an HTTP server."""
LARGEST_INT = 2_147_483_647
"""librdkafka's limit for the producer's queue, in KiB."""
LARGEST_FETCH = 900_000_000
"""In bytes; a response holds a little more."""
BATCH_BYTES = 1_000_000
SOCKET_TIMEOUT_MS = 10_000
"""librdkafka's default is one minute. If a request for a topic's leader reaches a broker that is shutting down, it
blocks the next request for that time. With transactions the client itself uses about the value given here
(a little less than ``transaction.timeout.ms``)."""
STATISTICS_MS = 1_000
"""Interval of the consumer's statistics, which show in which partitions a transaction is open. They cost a few
milliseconds of CPU for a hundred partitions."""
NEW_TOPICS_MS = 10_000
"""How often a client whose ``input.topics`` has a pattern looks for topics that it matches (classic protocol)."""
MEMBERSHIP = (
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
)
"""Properties that only a member of a consumer group needs."""
REPEAT_S = 30.0
LINES_KEPT = 200

_Client = TypeVar("_Client")


class Client(Protocol):
    """Name and connection of a client: the worker's settings, or the options of a command."""

    @property
    def name(self) -> str: ...

    @property
    def kafka(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Connection:
    """The client of a command, from its command line."""

    name: str
    kafka: dict[str, str]
    """librdkafka properties, ``bootstrap.servers`` among them."""


def consumer_properties(settings: Settings, embedded: bool = False) -> dict[str, Any]:
    """Properties of the worker's consumer.

    Args:
        embedded: the broker is librdkafka's own. It answers an empty fetch only after the whole
            ``fetch.wait.max.ms``, while a real broker answers as soon as there are data, and with it every rebalance
            lasts almost a session timeout.
    """
    # librdkafka starts a fetch while its queue is below the limit, and the fetch adds up to one response.
    # With half of the budget for each, both together stay within it.
    half = min(max(settings.limits.prefetch_bytes // 2, 1024), LARGEST_FETCH)
    ours: dict[str, Any] = {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",  # the source decides; librdkafka's default would skip to the end
        "allow.auto.create.topics": False,
        "max.poll.interval.ms": 300_000,
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,  # bounds a synchronous commit while the broker is away
        "queued.min.messages": 100_000,
        "queued.max.messages.kbytes": half // 1024,
        "fetch.max.bytes": half,
        # librdkafka refuses a fetch size below this value; a consumer uses the value for nothing else
        "message.max.bytes": min(half, SMALLEST_CLIENT_LIMIT),
        "receive.message.max.bytes": LARGEST_RESPONSE,
        "fetch.queue.backoff.ms": 2,  # the default of 1000 stalls a fast worker with a small queue
        "fetch.wait.max.ms": 2 if embedded else 100,
        "statistics.interval.ms": STATISTICS_MS,
    }
    if any(map(is_pattern, (topic for each in settings.pipelines.values() for topic in each.input.topics))):
        ours["topic.metadata.refresh.interval.ms"] = NEW_TOPICS_MS
    if settings.kafka.get("group.protocol", "classic").lower() != "consumer":
        # with the consumer protocol the broker decides these, and a client that sets one cannot be constructed
        ours["partition.assignment.strategy"] = "cooperative-sticky"
        ours["session.timeout.ms"] = 3_000 if embedded else 10_000
        # members learn of a rebalance with a heartbeat, and the rebalance waits for the last member
        ours["heartbeat.interval.ms"] = 500 if embedded else 1_000
    return {**_common(settings), **ours, **_users(settings, "C")}


def share_properties(settings: Settings) -> dict[str, Any]:
    """Properties of the worker's consumer in a share group, whose other settings the broker keeps."""
    half = min(max(settings.limits.prefetch_bytes // 2, 1024), LARGEST_FETCH)
    ours: dict[str, Any] = {
        "share.acknowledgement.mode": "explicit",
        "max.poll.records": 500,
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,
        "fetch.max.bytes": half,
        "message.max.bytes": min(half, SMALLEST_CLIENT_LIMIT),
        "receive.message.max.bytes": LARGEST_RESPONSE,
        "fetch.wait.max.ms": 100,
        "statistics.interval.ms": STATISTICS_MS,
    }
    return {**_common(settings), **ours, **_users(settings, "C")}


def client_limit(client: Client) -> int:
    """Largest record, in bytes, that the user lets the producer send; librdkafka's limit by default."""
    return int(_users(client, "P").get("message.max.bytes", LARGEST_CLIENT_LIMIT))


def producer_properties(
    settings: Settings,
    topic_limits: Mapping[str, int] | None = None,
    transactional_id: str | None = None,
) -> dict[str, Any]:
    """Properties of the producer of results and dead letters.

    Args:
        topic_limits: ``max.message.bytes`` of the topics written to.
        transactional_id: set only with ``delivery: exactly_once``.
    """
    limits = [*(topic_limits or {}).values()] or [DEFAULT_TOPIC_LIMIT]
    ours: dict[str, Any] = {
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",  # places keys as Java clients do, unlike librdkafka's default
        # a slab is handed over within this time; 1 adds 0.4 ms to every result, 0 adds a sixth to the CPU at full load
        "linger.ms": 0.3,
        "compression.type": "lz4",
        "queue.buffering.max.kbytes": min(max(settings.limits.output_bytes // 1024, 1), LARGEST_INT),
        "queue.buffering.max.messages": 100_000,
        # Accept a record as large as the most generous topic allows; form no batch that the strictest topic refuses.
        "message.max.bytes": min(max(*limits, SMALLEST_CLIENT_LIMIT), LARGEST_CLIENT_LIMIT),
        "batch.size": min(*limits, BATCH_BYTES),
    }
    if transactional_id is None:
        ours["message.timeout.ms"] = (
            0  # the worker waits for the end of an outage; limits.stall_s ends a hopeless wait
        )
        ours["socket.timeout.ms"] = SOCKET_TIMEOUT_MS
    else:
        ours["transactional.id"] = transactional_id
        ours["transaction.timeout.ms"] = TRANSACTION_TIMEOUT_MS
        # When no broker is reachable, librdkafka (2.16) by default forgets all brokers, the coordinator too. It then
        # has no connection to the coordinator, and the call in progress never returns. Nothing is lost by "none": a
        # replacement producer starts from bootstrap.servers anyway.
        ours["metadata.recovery.strategy"] = "none"
    users = _users(settings, "P")
    if transactional_id is None:
        users.pop("transaction.timeout.ms", None)
    return {**_common(settings), **ours, **users}


def metrics_properties(settings: Settings) -> dict[str, Any]:
    """Properties of the metrics producer: outside transactions, small, and allowed to lose a record."""
    users = _users(settings, "P")
    for name in ("transaction.timeout.ms", "message.timeout.ms"):
        users.pop(name, None)
    theirs: dict[str, Any] = {
        "enable.idempotence": True,  # a record that arrived twice would be counted twice
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,
        **users,
    }
    ours = {"queue.buffering.max.kbytes": 4096, "message.timeout.ms": 30_000, "linger.ms": 5}
    return {**_common(settings), **theirs, **ours}


def writer_properties(client: Client) -> dict[str, Any]:
    """Properties of a command's producer: each record is acknowledged, or fails within half a minute."""
    ours = {
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
        "message.timeout.ms": 30_000,
        "message.max.bytes": LARGEST_CLIENT_LIMIT,
        "linger.ms": 1,
    }
    users = _users(client, "P")
    users.pop("transaction.timeout.ms", None)
    return {**_common(client), **ours, **users}


def reader_properties(client: Client, embedded: bool = False, patient: bool = False) -> dict[str, Any]:
    """Properties of a command's consumer: it assigns its partitions itself, joins no group and commits nothing.

    Args:
        patient: records may come half a second late, so that a broker is seldom asked. Such a client logs nothing:
            it stands beside others that say the same when a broker is away.
    """
    users = _users(client, "C")
    for name in MEMBERSHIP:
        users.pop(name, None)
    ours = {
        "group.id": "unused",  # required by the client
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 500 if patient else 2 if embedded else 100,
    }
    quiet = {"log_level": 0} if patient else {}
    return {**_common(client), **ours, **users, **quiet}


def admin_properties(client: Client) -> dict[str, Any]:
    """Properties of the short-lived client that inspects topics. It logs nothing: the caller reports its errors."""
    return {**_common(client), "log_level": 2, **_users(client, "*")}


def client_id(client: Client) -> str:
    """The ``client.id`` of every client of this process: the given one, or ``<name>-<host>-<pid>``."""
    return client.kafka.get("client.id") or f"{client.name}-{socket.gethostname()}-{os.getpid()}"


def check_properties(properties: Mapping[str, str], section: str = "kafka") -> None:
    """Check names and values of client properties without a client or a broker.

    Raises:
        ConfigError: of each that is wrong, names ``kafka.<name>`` and the nearest known name, or quotes librdkafka's
            objection to the value.
    """
    found = [
        Mistake(f"{section}.{name}: {wrong}")
        for name, value in properties.items()
        if (wrong := _wrong(name, value, section)) is not None
    ]
    if found:
        raise ConfigError.of(found)


def _wrong(name: str, value: str, section: str) -> str | None:
    """What is wrong with a client property; None if nothing is."""
    known = known_properties()
    if known and name not in known:
        near = difflib.get_close_matches(name.replace("_", "."), known, n=1)
        return "librdkafka knows no such property" + (f"; did you mean {section}.{near[0]}?" if near else "")
    fault = property_fault(name, value)
    if fault is None:
        return None
    from worker.settings import is_secret  # imported late: commands without settings start faster

    said = fault.replace(value, "[redacted]") if value and is_secret(name) else fault
    return said + (f" (expected {known[name].expected})" if known[name].expected else "")


def check_clients(settings: Settings) -> str:
    """Check the worker's client properties, each alone and all together, without contacting the broker.

    Returns:
        The number of properties, as a phrase for the report of ``check``.

    Raises:
        ConfigError: a name or value is wrong, or some contradict each other.
    """
    check_properties(settings.kafka)
    transactional_id = "check" if settings.delivery == "exactly_once" else None
    clients: list[tuple[Any, dict[str, Any]]] = [
        (ShareConsumer, share_properties(settings))
        if settings.delivery == "queue"
        else (Consumer, consumer_properties(settings)),
        (Producer, producer_properties(settings, transactional_id=transactional_id)),
    ]
    for each in clusters_of(settings):
        check_properties(each.settings.kafka, each.section)
        clients.append((Producer, producer_properties(each.settings)))
    for client, properties in clients:
        del properties["bootstrap.servers"]
        build(client, {**properties, "log_level": 0})
    count = len(settings.kafka) + sum(len(each.settings.kafka) for each in clusters_of(settings))
    return f"{count} client properties"


def build(client: Callable[[dict[str, Any]], _Client], properties: dict[str, Any]) -> _Client:
    """Construct a client; report librdkafka's objection to its properties in one sentence.

    Raises:
        ConfigError: properties that contradict each other, a missing certificate file, ...
        StartError: the system gives the client no thread or no memory.
    """
    try:
        return client(properties)
    except KafkaException as error:
        if (sentence := shortage(error)) is not None:
            raise StartError(sentence) from None
        raise ConfigError(f"kafka: {error.args[0].str()}") from None


def _common(client: Client) -> dict[str, Any]:
    return {
        "client.id": client_id(client),
        "socket.keepalive.enable": True,
        # the Java clients' value; with librdkafka's 10 s a client may wait that long after the broker is back
        "reconnect.backoff.max.ms": max(1_000, _number(client.kafka.get("reconnect.backoff.ms"))),
        "topic.metadata.refresh.interval.ms": 60_000,  # new partitions are seen within a minute
        "statistics.interval.ms": 0,
        "log.connection.close": False,  # report an outage once, not at each reconnect
        "logger": _logger(),
    }


def _number(text: str | None) -> int:
    """A property's value as a number; 0 if it is not a number, which librdkafka itself reports."""
    return int(text) if text and text.isdecimal() else 0


@cache
def _logger() -> logging.Logger:
    """The logger of librdkafka's lines; each line appears at most once in ``REPEAT_S``."""
    logger = logging.getLogger("librdkafka")
    logger.addFilter(_Once())
    return logger


class _Once(logging.Filter):
    """Passes each line once per ``REPEAT_S``: in an outage librdkafka repeats its lines many times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage().partition(" (after ")[0]  # the cut part is a duration, new in every line
        if record.created - self._shown.get(line, -REPEAT_S) < REPEAT_S:
            return False
        if len(self._shown) >= LINES_KEPT:
            self._shown.clear()
        self._shown[line] = record.created
        return True


def _users(client: Client, scope: str) -> dict[str, str]:
    """The user's properties for one kind of client. librdkafka would warn about each property of the other kind."""
    known = known_properties()
    return {
        name: value
        for name, value in client.kafka.items()
        if name != "client.id" and (name not in known or known[name].scope in ("*", scope))
    }
