"""What is found out about topics at start, and the sentence for each thing that can be wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from kafka_support import Cluster
from stream import unique
from structlog.testing import capture_logs

from worker.errors import ConfigError, StartError
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.properties import DEFAULT_TOPIC_LIMIT
from worker.kafka.rules import DEFAULT_AFTER_MS, FOREVER_MS, Times
from worker.kafka.topics import open_topics
from worker.settings import Settings


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


@pytest.fixture
def real(kafka: str) -> Cluster:
    return Cluster(kafka)


def existing(cluster: Cluster) -> dict[str, Any]:
    """Settings in which every topic exists."""
    return {"topic": cluster.topic(2), "output": cluster.topic(3), "dead_letter": cluster.topic(1)}


def test_partitions_and_limits_are_read(cluster: Cluster) -> None:
    """Every topic is known with its partitions, the written ones with their size limit."""
    given = existing(cluster)
    topics = open_topics(cluster.settings(**given))
    assert topics.embedded is (cluster.embedded is not None)
    assert topics.partitions == {given["topic"]: 2, given["output"]: 3, given["dead_letter"]: 1}
    assert topics.limits == {given["output"]: DEFAULT_TOPIC_LIMIT, given["dead_letter"]: DEFAULT_TOPIC_LIMIT}
    assert f"{given['output']} (3 partitions)" in topics.describe()


@pytest.mark.parametrize(
    ("role", "field"),
    [("topic", "input.topics"), ("output", "output.topic"), ("dead_letter", "dead_letter.topic")],
)
def test_a_missing_topic_is_named_with_its_field(cluster: Cluster, role: str, field: str) -> None:
    """The start ends with the topic's name and the setting that names it, and nothing is created."""
    missing = unique("missing")
    given = {**existing(cluster), role: missing}
    for _ in range(2):
        with pytest.raises(StartError, match=f"^{field}: topic {missing} does not exist"):
            open_topics(cluster.settings(**given))


def test_a_missing_metrics_topic_is_named(cluster: Cluster) -> None:
    """The metrics topic is checked like the others."""
    with pytest.raises(StartError, match=r"^metrics.topic: "):
        open_topics(cluster.settings(**existing(cluster), metrics={"topic": unique("missing")}))


def test_same_partition_needs_as_many_partitions(cluster: Cluster) -> None:
    """With ``output.partition: input`` an output topic with fewer partitions than the input cannot start."""
    given = {**existing(cluster), "output": cluster.topic(1)}
    settings = cluster.settings(**given, output_options={"partition": "input"})
    with pytest.raises(StartError, match=r"output.partition: input needs at least as many partitions"):
        open_topics(settings)


@pytest.mark.kafka
def test_missing_topics_are_created_when_asked_for(real: Cluster) -> None:
    """``output.create`` makes output, dead-letter and metrics topics, but never an input."""
    names = {name: unique(name) for name in ("output", "dead", "metrics")}

    def settings(topic: str) -> Settings:
        return real.settings(
            topic,
            output=names["output"],
            output_options={"create": {"partitions": 5, "replication": 1}},
            dead_letter=names["dead"],
            metrics={"topic": names["metrics"]},
        )

    planned = open_topics(settings(real.topic(1)), make=False)  # what `check` does
    assert planned.describe().count("(5 partitions, to be created)") == 3
    there = AdminClient({"bootstrap.servers": real.bootstrap}).list_topics(timeout=10).topics
    assert not there.keys() & set(names.values())
    with pytest.raises(StartError, match=r"^input.topics: "):
        open_topics(settings(unique("missing")))
    topics = open_topics(settings(real.topic(1)))
    assert [topics.partitions[name] for name in names.values()] == [5, 5, 5]
    assert "created" not in topics.describe()


@pytest.mark.kafka
def test_a_topics_own_limit_is_read(real: Cluster) -> None:
    """max.message.bytes of a topic is what the sink goes by."""
    output = real.topic(1, **{"max.message.bytes": "123456"})
    topics = open_topics(real.settings(**{**existing(real), "output": output}))
    assert topics.limits[output] == 123_456
    assert f"{output} takes 123456 bytes" in topics.describe_limits()


@pytest.mark.kafka
def test_the_timestamps_a_topic_takes_are_read(real: Cluster) -> None:
    """Kafka's defaults, limits of its own, and a topic that gives every record another one."""
    limits = {"message.timestamp.before.max.ms": "7000", "message.timestamp.after.max.ms": "8000"}
    given = existing(real)
    limited = real.topic(1, **limits)
    stamping = real.topic(1, **{"message.timestamp.type": "LogAppendTime"})
    settings = real.settings(**{**given, "output": limited}, metrics={"topic": stamping})
    assert open_topics(settings).times == {
        given["dead_letter"]: Times(FOREVER_MS, DEFAULT_AFTER_MS),
        limited: Times(7_000, 8_000),
        stamping: Times(FOREVER_MS, DEFAULT_AFTER_MS, appended=True),
    }


@pytest.mark.parametrize(
    ("age_ms", "kept"),
    [(0, True), (500_000, True), (590_000, False), (700_000, False), (-1_000, True), (-2_000, False)],
)
def test_a_timestamp_close_to_a_limit_counts_as_beyond_it(age_ms: int, kept: bool) -> None:
    """A minute, or half of a limit that is shorter: clocks differ, and a record may wait for its broker."""
    assert Times(600_000, 3_000).keeps(1_000_000 - age_ms, 1_000_000) is kept


def test_a_topic_that_stamps_keeps_no_timestamp() -> None:
    """However recent; one without limits keeps the oldest."""
    assert not Times(appended=True).keeps(1_000_000, 1_000_000)
    assert Times().keeps(1, 1_763_676_000_123)


def test_an_unreachable_broker_is_named_within_its_time() -> None:
    """Nobody on the port: about ten seconds, the setting, the address and the client's reason."""
    started = time.monotonic()
    with pytest.raises(
        StartError, match=r"^kafka.bootstrap.servers: no broker answers at 127.0.0.1:1: .*refused"
    ):
        open_topics(Cluster("127.0.0.1:1").settings("in"))
    assert time.monotonic() - started < 20


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("password", "sentence"), [("worker-secret", None), ("wrong", "^kafka: authentication failed ")]
)
def test_a_wrong_password_is_said_at_once(real: Cluster, password: str, sentence: str | None) -> None:
    """The broker's refusal is the start's sentence, without the password; the right one gets in."""
    host, _, port = real.bootstrap.rpartition(":")
    if (
        AdminClient({"bootstrap.servers": real.bootstrap}).list_topics(timeout=10).cluster_id
        != "streaminfer-test-cluster"
    ):
        pytest.skip("only the broker of scripts/kafka has a listener with passwords")
    given = existing(real)
    settings = real.settings(
        **given,
        kafka={
            "bootstrap.servers": f"{host}:{int(port) + 1}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "worker",
            "sasl.password": password,
        },
    )
    if sentence is None:
        assert given["output"] in open_topics(settings).partitions
        return
    with pytest.raises(StartError, match=sentence) as caught:
        open_topics(settings)
    assert password not in str(caught.value)


def test_a_wrong_property_is_a_configuration_error(embedded_broker: EmbeddedBroker) -> None:
    """A property librdkafka does not know is found before the broker is asked anything."""
    settings = Cluster(embedded_broker.bootstrap).settings("in", kafka={"linger.mss": "1"})
    with pytest.raises(ConfigError, match=r"kafka.linger.mss: .* did you mean kafka.linger.ms"):
        open_topics(settings)


@pytest.mark.kafka
def test_a_compacted_topic_is_named(real: Cluster) -> None:
    """What a topic refuses is said before the first record: in the line of limits and as a warning."""
    given = existing(real)
    output = given["output"] = real.topic(1, **{"cleanup.policy": "compact"})
    with capture_logs() as lines:
        topics = open_topics(real.settings(**given))
    assert topics.compacted == {output}
    assert f"{output} takes {DEFAULT_TOPIC_LIMIT} bytes, only with a key" in topics.describe_limits()
    assert [line["topic"] for line in lines if "is compacted" in line["event"]] == [output]


@pytest.mark.kafka
def test_a_dead_letter_topic_that_no_letter_fits_cannot_start(real: Cluster) -> None:
    """The sentence names the topic, its limit and what a dead letter needs."""
    given = existing(real)
    letters = given["dead_letter"] = real.topic(1, **{"max.message.bytes": "1000"})
    with pytest.raises(
        StartError, match=rf"dead_letter\.topic: max\.message\.bytes of topic {letters} is 1000"
    ):
        open_topics(real.settings(**given))


def test_a_client_limit_that_no_letter_fits_cannot_start(cluster: Cluster) -> None:
    """The client's own limit counts as the topic's does, and the sentence names it."""
    given = existing(cluster)
    with pytest.raises(StartError, match=r"kafka\.message\.max\.bytes: got 1000, expected at least 4096"):
        open_topics(cluster.settings(**given, kafka={"message.max.bytes": "1000"}))
    topics = open_topics(cluster.settings(**given, kafka={"message.max.bytes": "5000"}))
    assert set(topics.limits.values()) == {5000}
