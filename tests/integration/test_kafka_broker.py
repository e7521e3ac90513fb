"""The embedded broker itself: what tests make it do."""

from __future__ import annotations

import time

import pytest
from confluent_kafka.admin import AdminClient
from kafka_support import Cluster, reading

from worker.batch import Partition
from worker.errors import StartError
from worker.kafka.broker import EmbeddedBroker

OFFSET_COMMIT = 8
REBALANCE_IN_PROGRESS = 27
STALE_MEMBER_EPOCH = 113


def test_topics_have_the_partitions_asked_for() -> None:
    """Topics given at construction and made later are there, and nothing else is."""
    with EmbeddedBroker({"a": 3}) as broker:
        broker.create_topic("b", 1)
        topics = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
        assert {name: len(topic.partitions) for name, topic in topics.items()} == {"a": 3, "b": 1}


def test_two_brokers_do_not_know_each_other() -> None:
    """Each broker has its own topics and its own port."""
    with EmbeddedBroker({"a": 1}) as one, EmbeddedBroker({"b": 1}) as other:
        assert one.bootstrap != other.bootstrap
        assert set(AdminClient({"bootstrap.servers": other.bootstrap}).list_topics(timeout=10).topics) == {
            "b"
        }


def test_a_topic_is_made_once(embedded_broker: EmbeddedBroker) -> None:
    """Making a topic that is there already is refused by name."""
    embedded_broker.create_topic("a", 1)
    with pytest.raises(StartError, match="create topic a with 2 partitions"):
        embedded_broker.create_topic("a", 2)


def test_pushed_errors_reach_the_client(embedded_broker: EmbeddedBroker) -> None:
    """A commit that the broker refuses is counted, not raised, and the next one goes through."""
    cluster = Cluster(embedded_broker.bootstrap, embedded_broker)
    topic = cluster.topic(1)
    with reading(cluster.settings(topic), embedded=True) as got:
        got.join()
        embedded_broker.push_errors(OFFSET_COMMIT, REBALANCE_IN_PROGRESS)
        place = Partition(topic, 0)
        assert got.source.commit({place: 1}, wait=True) == {}
        assert got.source.commit_failures == 1
        assert got.source.commit({place: 2}, wait=True) == {place: 2}


def test_a_commit_with_the_epoch_of_before_is_repeated(embedded_broker: EmbeddedBroker) -> None:
    """What a revoke commits is not lost to an epoch that has not reached us yet: the next owner would repeat it."""
    cluster = Cluster(embedded_broker.bootstrap, embedded_broker)
    topic = cluster.topic(2)
    with reading(cluster.settings(topic), embedded=True) as got:
        got.join()
        embedded_broker.push_errors(OFFSET_COMMIT, STALE_MEMBER_EPOCH, STALE_MEMBER_EPOCH)
        positions = {Partition(topic, 0): 1, Partition(topic, 1): 2}
        assert got.source.commit(positions, wait=True) == positions
        assert got.source.commit_failures == 0


def test_the_round_trip_can_be_made_longer(embedded_broker: EmbeddedBroker) -> None:
    """With a round trip of 200 ms a request takes at least that long."""
    admin = AdminClient({"bootstrap.servers": embedded_broker.bootstrap})
    admin.list_topics(timeout=10)
    embedded_broker.set_rtt(200)
    started = time.monotonic()
    admin.list_topics(timeout=10)
    assert time.monotonic() - started >= 0.2
