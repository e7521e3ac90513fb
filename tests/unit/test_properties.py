"""Client properties: what the worker sets, what a user may add, and how a mistake is named."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from worker.errors import ConfigError
from worker.kafka.library import known_properties
from worker.kafka.properties import (
    admin_properties,
    build,
    check_properties,
    client_id,
    consumer_properties,
    metrics_properties,
    producer_properties,
    reader_properties,
    writer_properties,
)
from worker.settings import Settings, validate


def settings(limits: dict[str, Any] | None = None, **kafka: str) -> Settings:
    """Settings with these Kafka properties; underscores stand for dots."""
    properties = {name.replace("_", "."): value for name, value in kafka.items()}
    return validate(
        {
            "name": "digits",
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "m.onnx"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "limits": limits or {},
            "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g", **properties},
        },
        Path.cwd(),
    )


@pytest.mark.parametrize(
    "added",
    [
        {
            "linger_ms": "3",
            "fetch_min_bytes": "2",
            "security_protocol": "plaintext",
            "transaction_timeout_ms": "9000",
        },
        {"reconnect_backoff_ms": "5000"},
    ],
    ids=["some", "a slow reconnect"],
)
def test_every_client_takes_its_properties_without_a_warning(
    caplog: pytest.LogCaptureFixture, added: dict[str, str]
) -> None:
    """librdkafka constructs each kind of client and has nothing to say, whatever the user added."""
    given = settings(**added)
    with caplog.at_level(logging.DEBUG, "librdkafka"):
        for client, properties in (
            (Consumer, consumer_properties(given)),
            (Consumer, consumer_properties(given, embedded=True)),
            (Consumer, reader_properties(given)),
            (Producer, producer_properties(given)),
            (Producer, producer_properties(given, {"out": 500_000, "dead": 9_000_000}, "an-id")),
            (Producer, metrics_properties(given)),
            (Producer, writer_properties(given)),
            (AdminClient, admin_properties(given)),
        ):
            build(client, properties).poll(0)
    assert [record.message for record in caplog.records if "CONFWARN" in record.message] == []


def test_who_waits_for_one_copy_only_gets_that_for_metrics_too() -> None:
    """A user who sets acks to 1 gets it for the metrics producer too, which then is not idempotent."""
    given = settings(acks="1", enable_idempotence="false")
    for properties in (producer_properties(given), metrics_properties(given)):
        build(Producer, properties).poll(0)
    assert metrics_properties(settings())["enable.idempotence"] is True


def test_the_consumer_protocol_takes_its_properties() -> None:
    """With ``group.protocol: consumer`` the properties that belong to the broker are left out."""
    properties = consumer_properties(settings(group_protocol="consumer"))
    assert not {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"} & set(
        properties
    )
    build(Consumer, properties).close()


def test_a_users_property_wins_and_goes_to_its_client_only() -> None:
    """A property of the user replaces the default, and a consumer property does not reach the producer."""
    given = settings(linger_ms="77", session_timeout_ms="44000", socket_timeout_ms="5000")
    consumer, producer = consumer_properties(given), producer_properties(given)
    assert (consumer["session.timeout.ms"], producer["linger.ms"]) == ("44000", "77")
    assert "linger.ms" not in consumer
    assert "session.timeout.ms" not in producer
    assert consumer["socket.timeout.ms"] == producer["socket.timeout.ms"] == "5000"


def test_memory_limits_become_queue_limits() -> None:
    """limits.prefetch_bytes bounds the consumer queue and one response together; limits.output_bytes bounds the producer queue."""
    given = settings({"prefetch_bytes": 8 << 20, "output_bytes": 32 << 20})
    consumer = consumer_properties(given)
    assert consumer["queued.max.messages.kbytes"] * 1024 + consumer["fetch.max.bytes"] == 8 << 20
    assert producer_properties(given)["queue.buffering.max.kbytes"] * 1024 == 32 << 20


def test_size_limits_follow_the_topics() -> None:
    """The producer takes a record as large as the most generous topic allows, and batches as large as the strictest."""
    properties = producer_properties(settings(), {"out": 200_000, "dead": 20_000_000})
    assert (properties["message.max.bytes"], properties["batch.size"]) == (20_000_000, 200_000)


def test_an_outage_is_waited_out_at_least_once_and_bounded_exactly_once() -> None:
    """No output times out at least once; a transaction that a dead worker left open ends by its time-out."""
    given = settings(**{"transaction.timeout.ms": "7000"})
    assert producer_properties(given)["message.timeout.ms"] == 0
    assert "transaction.timeout.ms" not in producer_properties(given)
    assert producer_properties(settings(), {}, "id")["transaction.timeout.ms"] == 10_000
    assert producer_properties(given, {}, "id")["transaction.timeout.ms"] == "7000"


def test_the_client_id_names_worker_host_and_process() -> None:
    """Unless it is given, client.id is <name>-<host>-<pid>."""
    assert client_id(settings()) == f"digits-{socket.gethostname()}-{os.getpid()}"
    assert client_id(settings(client_id="mine")) == "mine"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("botstrap.servers", "h:1", "kafka.botstrap.servers: .* did you mean kafka.bootstrap.servers"),
        ("linger.ms", "soon", r"kafka.linger.ms: .* \(expected 0 .. 900000\)"),
        ("security.protocol", "tls", r"kafka.security.protocol: .* \(expected plaintext, ssl"),
        ("error_cb", "print", "kafka.error_cb: "),
        ("queued.max.messages.kbytes", "0", "kafka.queued.max.messages.kbytes: "),
    ],
)
def test_a_wrong_property_is_named(name: str, value: str, sentence: str) -> None:
    """An unknown property or a wrong value is one sentence with the property and what was expected."""
    with pytest.raises(ConfigError, match=sentence):
        check_properties({name: value})


def test_a_refused_value_is_repeated_unless_it_is_a_secret() -> None:
    """The message about a wrong value repeats the value, unless the property may hold a secret."""
    with pytest.raises(ConfigError, match="plain-text"):
        check_properties({"security.protocol": "plain-text"})
    with pytest.raises(ConfigError) as caught:
        check_properties({"sasl.login.callback.handler.class": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_properties_that_contradict_each_other_are_a_configuration_error() -> None:
    """Properties that are valid alone and contradict each other are refused in one sentence."""
    with pytest.raises(ConfigError, match="acks"):
        build(Producer, producer_properties(settings(acks="1")))


def test_the_library_tells_its_properties() -> None:
    """The table of properties that librdkafka prints is read with names, scopes and ranges."""
    known = known_properties()
    assert known["group.id"].scope == "C"
    assert known["linger.ms"].scope == "P"
    assert known["bootstrap.servers"].scope == "*"
    assert known["isolation.level"].expected == "read_uncommitted, read_committed"


def test_a_line_of_the_library_is_logged_once_in_a_while() -> None:
    """A line that librdkafka repeats is logged once in a while, also if only the age of the connection differs."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger = admin_properties(settings())["logger"]
    handler = Keep()
    logger.addHandler(handler)
    try:
        for ms in range(5):
            logger.error("broker is away (after %dms in state UP)", ms)
        logger.error("something else")
    finally:
        logger.removeHandler(handler)
    assert seen == ["broker is away (after 0ms in state UP)", "something else"]


@pytest.mark.parametrize("size", [1, 1_000_000, 10**14])
def test_any_size_of_the_queues_is_one_the_client_takes(size: int) -> None:
    """Limits beyond librdkafka's own bounds are reduced to what the client accepts."""
    given = settings({"prefetch_bytes": size, "output_bytes": size})
    for client, properties in (
        (Consumer, consumer_properties(given)),
        (Producer, producer_properties(given)),
    ):
        build(client, {**properties, "log_level": 0})
