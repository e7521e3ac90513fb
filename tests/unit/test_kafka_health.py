"""What the client's errors and statistics mean for the process."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from worker.errors import ClientFatal, StartError
from worker.kafka.health import BROKERLESS_S, FATAL, NOT_CONVERTED, REFUSALS, ClientHealth


def test_a_group_that_cannot_change_its_protocol_is_named() -> None:
    """The sentence says what to do; once the worker was in the group, the same error is fatal like others."""
    said = "Fatal error: Broker: The group id does not exist: " + NOT_CONVERTED
    health = ClientHealth()
    health.on_error(KafkaError(KafkaError._FATAL, said, fatal=True))
    with pytest.raises(StartError, match=r"kafka\.group\.protocol: .*stop all of its workers"):
        health.raise_failure()
    health.joined()
    health.on_error(KafkaError(KafkaError._FATAL, said, fatal=True))
    with pytest.raises(ClientFatal):
        health.raise_failure()


@pytest.mark.parametrize("code", sorted(FATAL))
@pytest.mark.parametrize("joined", [False, True])
def test_an_error_with_a_fatal_code_ends_the_client_without_the_fatal_flag(code: int, joined: bool) -> None:
    """An error that comes as a message has no fatal flag: its code alone ends the client, in the group or not."""
    health = ClientHealth()
    if joined:
        health.joined()
    error = KafkaError(code, "fenced by another member")
    assert not error.fatal()
    health.on_error(error)
    assert health.fatal == "fenced by another member"
    with pytest.raises(ClientFatal, match=r"^the Kafka consumer cannot go on: fenced by another member$"):
        health.raise_failure()


def test_a_pattern_without_a_topic_is_no_error() -> None:
    """A pattern that matches nothing yet is not counted; a topic with a name that is gone is."""
    health = ClientHealth()
    gone = KafkaError.UNKNOWN_TOPIC_OR_PART
    health.on_error(KafkaError(gone, "Subscribed topic not available: ^(cam-.*)$: Broker: Unknown topic"))
    assert not health.errors
    health.on_error(KafkaError(gone, "Subscribed topic not available: cam: Broker: Unknown topic"))
    assert health.errors == {"UNKNOWN_TOPIC_OR_PART": 1}


def test_an_error_with_the_fatal_flag_ends_the_client_whatever_its_code() -> None:
    """The error callback tells a fatal error by its flag."""
    health = ClientHealth()
    health.on_error(KafkaError(KafkaError._TIMED_OUT, "no more", fatal=True))
    with pytest.raises(ClientFatal, match="no more"):
        health.raise_failure()


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_ends_only_the_start(code: int) -> None:
    """Before the first assignment a refusal is the sentence of exit code 3; afterwards it is a warning."""
    health = ClientHealth()
    health.on_error(KafkaError(code, "the broker's words"))
    with pytest.raises(StartError, match="the broker's words"):
        health.raise_failure()
    health.joined()
    health.on_error(KafkaError(code, "the broker's words"))
    health.raise_failure()
    assert health.fatal is None


def test_a_failure_is_raised_once() -> None:
    """What the listener raised in a callback comes out of one take and not of the next."""
    health = ClientHealth()
    health.fail(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        health.raise_failure()
    health.raise_failure()


def test_a_connection_to_the_group_coordinator_alone_counts() -> None:
    """A member without partitions may keep no other connection: it is not without a broker."""
    health = ClientHealth()
    for state, up in (("UP", 1), ("INIT", 0)):
        coordinator = {"GroupCoordinator": {"source": "logical", "state": state}}
        health.on_statistics(coordinator | {"a:1/1": {"source": "learned", "state": "INIT"}})
        assert health.brokers_up == up


def test_a_client_without_any_broker_is_given_up_after_a_while() -> None:
    """librdkafka may forget its last broker for good; in an outage it still lists those it started with."""
    now = 0.0
    health = ClientHealth(lambda: now)
    coordinator = {"GroupCoordinator": {"source": "logical", "state": "UP"}}
    health.on_statistics({"a:1": {"source": "configured", "state": "DOWN"}})
    assert health.brokers_up == 0
    health.on_statistics(coordinator | {"a:1/1": {"source": "learned", "state": "UP"}})
    assert health.brokers_up == 1
    now = BROKERLESS_S
    health.on_statistics(coordinator)
    health.raise_failure()
    now += 1
    health.on_statistics(coordinator)
    with pytest.raises(ClientFatal, match="no broker to ask"):
        health.raise_failure()
