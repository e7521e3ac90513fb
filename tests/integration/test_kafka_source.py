"""One contract for sources: the fake, the real one on the embedded broker, and the real one on a real Kafka.

What only the real one has is in ``test_kafka_consumer.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

import pytest
from fakes import FakeClock, FakeKafka, FakeSource
from kafka_support import Cluster, Reading, Recorder
from stream import unique

from worker.batch import Columns, Partition
from worker.errors import ConfigError
from worker.kafka.broker import EmbeddedBroker

PROTOCOLS = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range,roundrobin"},
    "consumer": {"group.protocol": "consumer"},
}


class FakeGroup(FakeKafka):
    """A broker that rebalances by itself when a member comes or goes, as a coordinator does."""

    def join(self, member: Reading) -> Reading:
        self.rebalance()
        return member

    def leave(self, source: FakeSource) -> None:
        super().leave(source)
        self.rebalance()


class FakeReading(Reading):
    """Its patience is a number of takes: a fake has no time to wait for."""

    def patience(self) -> Callable[[], bool]:
        takes = count()
        return lambda: next(takes) < 1000


class FakeCluster(Cluster):
    """The broker of the loop's tests in place of a real one, with one group.

    Args:
        seed: of the sources' unpleasant moments: a take that returns little, a commit that takes its time. None = they
            have none.
        eager: every rebalance takes everything from everybody. To the fake the other two protocols are the same one.
    """

    def __init__(self, seed: int | None, eager: bool) -> None:
        super().__init__("nowhere")
        self._random = None if seed is None else Random(seed)
        self._eager = eager
        self._groups: dict[str, FakeGroup] = {}

    def topic(self, partitions: int, **config: str) -> str:
        name = unique("topic")
        self._groups[name] = FakeGroup(FakeClock(), {name: partitions}, eager=self._eager)
        return name

    def produce(self, topic: str, records: list[dict[str, Any]]) -> None:
        for fields in records:
            more = {"key": fields.get("key"), "headers": fields.get("headers")}
            more["timestamp_ms"] = fields.get("timestamp", 0)
            self._groups[topic].append(Partition(topic, fields.get("partition", 0)), fields["value"], **more)

    def reading(self, topic: str, listener: Recorder | None = None, **settings: Any) -> Reading:
        group = self._groups[topic]
        return group.join(FakeReading(FakeSource(group, rng=self._random), listener))


FAKE_CANNOT = {
    "test_a_new_group_can_start_at_the_end": "a group on the fake broker starts at the earliest record",
    "test_a_position_off_the_broker_goes_to_the_earliest_record": "the fake broker removes no record of its logs",
}
"""What is outside the fake, each seen to fail."""


@pytest.fixture(
    params=[
        pytest.param(("fake", None), id="fake"),
        pytest.param(("fake", 7), id="fake-unpleasant"),
        pytest.param(("embedded", None), id="embedded"),
        pytest.param(("kafka", None), id="kafka", marks=pytest.mark.kafka),
    ]
)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    where, seed = request.param
    if where == "fake":
        reason = FAKE_CANNOT.get(request.function.__name__)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError))
        return FakeCluster(seed, request.node.callspec.params.get("protocol") == "eager")
    if where == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


@pytest.fixture
def read(cluster: Cluster, request: pytest.FixtureRequest) -> Callable[..., Reading]:
    """Start reading a topic; everything is closed when the test is over."""

    def start(topic: str, listener: Recorder | None = None, **settings: Any) -> Reading:
        opened = cluster.reading(topic, listener, **settings)
        request.addfinalizer(lambda: opened.source.close(10.0))
        return opened

    return start


def test_every_record_comes_once_and_in_order(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """Records of each partition come in the order of their offsets, none missing."""
    topic = cluster.topic(3)
    cluster.fill(topic, 3, each=400)
    got = read(topic)
    got.take_records(1200)
    assert got.by_partition() == {n: [b"%d/%d" % (n, i) for i in range(400)] for n in range(3)}


def test_spans_cover_a_take_partition_by_partition(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """The spans of a take follow each other, one per partition, each ending behind its last offset."""
    topic = cluster.topic(4)
    cluster.fill(topic, 4, each=50)
    got = read(topic)
    taken = 0
    while taken < 200:
        columns, spans = got.source.take(0.1, 64, 1 << 20)
        assert [span.start for span in spans] == [0, *[span.stop for span in spans]][: len(spans)]
        assert len({span.partition for span in spans}) == len(spans)
        for span in spans:
            assert {span.partition} == set(columns.partitions[span.start : span.stop])
            assert span.next_offset == columns.offsets[span.stop - 1] + 1
        taken += len(columns)


def test_a_record_comes_whole(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """Key, headers, tombstone, empty value and timestamp arrive as they were sent."""
    topic = cluster.topic(1)
    cluster.produce(
        topic,
        [
            {"key": b"k", "value": b"v", "headers": [("a", b"1"), ("a", b"2")], "timestamp": 1763676000123},
            {"key": None, "value": None},
            {"key": b"", "value": b""},
        ],
    )
    got = read(topic)
    got.take_records(3)
    assert got.columns.keys == [b"k", None, b""]
    assert got.columns.values == [b"v", None, b""]
    assert got.columns.headers == [[("a", b"1"), ("a", b"2")], None, None]
    assert got.columns.timestamps_ms[0] == 1763676000123
    assert got.columns.offsets == [0, 1, 2]


def test_a_take_is_bounded_in_records_and_bytes(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """A take returns at most the records asked for, and no more bytes than asked for once sizes are known."""
    topic = cluster.topic(1)
    record = {"key": bytes(3000), "value": bytes(4000), "headers": [("h", bytes(3000))]}
    cluster.produce(topic, [record for _ in range(100)])
    got = read(topic)
    got.source.pause([topic])
    got.join()
    got.source.resume([topic])
    got.take_until(lambda: len(got.columns), "the first record", most=1, wanted_bytes=1)
    for most, wanted_bytes, allowed in ((5, 1 << 20, 5), (100, 30_000, 2), (100, 1, 1)):
        got.columns = Columns()
        got.take_until(lambda: len(got.columns), "a record", most=most, wanted_bytes=wanted_bytes)
        assert len(got.columns) <= allowed


def test_reading_goes_on_at_the_committed_position(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """A new owner starts where the last one committed, and is told that start and the metadata beside it."""
    topic, group = cluster.topic(1), unique("group")
    cluster.fill(topic, 1, each=10)
    place = Partition(topic, 0)
    first = read(topic, group=group)
    first.take_records(10)
    assert first.source.starts([place, Partition(topic, 1)]) == {place: (0, "")}
    confirmed = first.source.commit({place: 7}, wait=True, metadata={place: "attempts=1"})
    assert confirmed == {place: 7}
    first.source.close(10.0)

    second = read(topic, group=group)
    second.take_records(3)
    assert second.columns.offsets == [7, 8, 9]
    assert second.source.starts([place]) == {place: (7, "attempts=1")}


def test_a_commit_in_the_background_is_confirmed_later(
    cluster: Cluster, read: Callable[..., Reading]
) -> None:
    """A commit that is not waited for is reported by ``confirmed`` after later takes."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=3)
    got = read(topic)
    got.take_records(3)
    assert got.source.commit({Partition(topic, 0): 3}) == {}
    confirmed: dict[Partition, int] = {}
    got.take_until(lambda: confirmed.update(got.source.confirmed()) or confirmed, "the confirmation")
    assert confirmed == {Partition(topic, 0): 3}
    assert got.source.confirmed() == {}


def test_a_new_group_can_start_at_the_end(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """With ``start: latest`` older records are skipped, and what arrives before the first commit is not."""
    topic, group = cluster.topic(2), unique("group")
    cluster.fill(topic, 2, each=5)
    first = read(topic, group=group, start="latest")
    first.join()
    cluster.fill(topic, 2, each=1, start=5)
    first.source.close(10.0)  # it took nothing and committed nothing of its own

    second = read(topic, group=group, start="latest")
    second.take_records(2)
    assert second.by_partition() == {0: [b"0/5"], 1: [b"1/5"]}


def test_a_partition_added_later_is_read_from_its_beginning(
    cluster: Cluster, read: Callable[..., Reading]
) -> None:
    """With ``start: latest``, a partition without a commit in a group that has others skips nothing."""
    topic, group = cluster.topic(2), unique("group")
    cluster.fill(topic, 2, each=5)
    first = read(topic, group=group)
    first.join()
    first.source.commit({Partition(topic, 0): 5}, wait=True)
    first.source.close(10.0)

    # so often that other callbacks come in the very poll that assigns: what is asked in there must not disturb them
    second = read(topic, group=group, start="latest", kafka={"statistics.interval.ms": "5"})
    second.take_records(5)
    assert second.by_partition() == {1: [b"1/%d" % i for i in range(5)]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_position_off_the_broker_goes_to_the_earliest_record(
    cluster: Cluster, read: Callable[..., Reading], protocol: str
) -> None:
    """An offset out of range costs no record that is still there, and none twice; it is counted."""
    topic, group = cluster.topic(2), unique("group")
    cluster.fill(topic, 2, each=5)
    first = read(topic, group=group, kafka=PROTOCOLS[protocol])
    first.join()
    first.source.commit({Partition(topic, 0): 1_000_000}, wait=True)
    first.source.close(10.0)

    second = read(topic, group=group, kafka=PROTOCOLS[protocol])
    second.take_records(10)
    assert second.by_partition() == {n: [b"%d/%d" % (n, i) for i in range(5)] for n in range(2)}
    assert second.source.out_of_range == {Partition(topic, 0): 1}


def test_seek_reads_again_from_there(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """After a seek the next record is the one asked for, whatever had been fetched."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=100)
    got = read(topic)
    got.take_until(lambda: len(got.columns), "the first record")
    got.source.seek({Partition(topic, 0): 42})
    before = len(got.columns)
    got.take_records(before + 58)
    assert got.columns.offsets[before:] == list(range(42, 100))


def test_nothing_comes_while_paused_and_nothing_is_lost(
    cluster: Cluster, read: Callable[..., Reading]
) -> None:
    """Paused, takes return nothing; resumed, they go on without a gap."""
    topic = cluster.topic(2)
    cluster.fill(topic, 2, each=50)
    got = read(topic)
    got.take_until(lambda: len(got.columns), "the first record", most=10)
    got.source.pause([topic])
    paused_at = len(got.columns)
    for _ in range(5):
        got.take(0.05)
    assert len(got.columns) == paused_at
    got.source.resume([topic])
    got.take_records(100)
    assert got.by_partition() == {n: [b"%d/%d" % (n, i) for i in range(50)] for n in range(2)}


def test_partitions_assigned_while_paused_stay_paused(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """A pause holds for partitions that come afterwards."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=5)
    got = read(topic)
    got.source.pause([topic])
    got.join()
    for _ in range(5):
        got.take(0.05)
    assert not got.columns.values
    got.source.resume([topic])
    got.take_records(5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partitions_move_to_a_second_member_without_loss_or_repetition(
    cluster: Cluster, read: Callable[..., Reading], protocol: str
) -> None:
    """What leaves is committed in on_revoke and read by the new owner from there; no record twice."""
    if protocol == "eager" and cluster.embedded is not None:
        pytest.skip("the embedded broker takes no commit in a revocation of everything")
    topic, group = cluster.topic(4), unique("group")
    cluster.fill(topic, 4, each=20)
    listener = Recorder()
    first = read(topic, listener, group=group, kafka=PROTOCOLS[protocol])
    listener.on_leaving = lambda partitions: (
        first.source.commit(  # type: ignore[assignment]
            {p: o for p, o in first.positions().items() if p in partitions}, wait=True
        )
        and None
    )
    first.take_records(80)

    second = read(topic, group=group, kafka=PROTOCOLS[protocol])
    second.take()  # before the first one has let go of anything

    def both(condition: Callable[[], bool]) -> bool:
        first.take(0.01)
        return condition()

    second.take_until(
        lambda: both(lambda: len(first.source.assignment()) == len(second.source.assignment()) == 2),
        "an even share",
    )
    cluster.fill(topic, 4, each=5, start=20)
    second.take_until(
        lambda: both(lambda: len({*first.columns.values, *second.columns.values}) >= 100), "the rest"
    )

    assert {p.number for p in first.source.assignment()}.isdisjoint(
        p.number for p in second.source.assignment()
    )
    values = sorted(v for got in (first, second) for v in got.columns.values)
    if cluster.embedded is not None:
        values = sorted(set(values))  # it refuses a commit that meets the next rebalance
    assert values == sorted(b"%d/%d" % (n, i) for n in range(4) for i in range(25))
    assert "lost" not in {kind for kind, _ in listener.events}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_partition_that_left_while_paused_is_read_when_it_comes_back(
    cluster: Cluster, read: Callable[..., Reading], protocol: str
) -> None:
    """librdkafka keeps the pause of a partition that is gone; it must not come back with it."""
    topic, group = cluster.topic(2), unique("group")
    first = read(topic, group=group, kafka=PROTOCOLS[protocol])
    first.take_until(lambda: len(first.source.assignment()) == 2, "both partitions")
    first.source.pause([topic])

    second = read(topic, group=group, kafka=PROTOCOLS[protocol])

    def shared() -> bool:
        first.take(0.01)
        return len(first.source.assignment()) == len(second.source.assignment()) == 1

    second.take_until(shared, "an even share")
    first.source.resume([topic])
    second.source.close(10.0)
    first.take_until(lambda: len(first.source.assignment()) == 2, "both partitions again")
    cluster.fill(topic, 2, each=5)
    first.take_records(10)


def test_what_the_listener_raises_comes_out_of_take(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """An exception in a rebalance callback is not swallowed by the client."""

    class Broken(Recorder):
        def on_assign(self, partitions: list[Partition]) -> None:
            raise ConfigError("cannot take these")

    got = read(cluster.topic(1), Broken())
    with pytest.raises(ConfigError, match="cannot take these"):
        got.join()


def test_closing_leaves_the_group_without_a_word(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """The listener hears nothing of the partitions that go with a closed source; the next member gets them."""
    topic, group = cluster.topic(2), unique("group")
    places = [Partition(topic, 0), Partition(topic, 1)]
    first = read(topic, group=group)
    first.take_until(lambda: len(first.source.assignment()) == 2, "both partitions")
    heard = list(first.listener.events)
    first.source.close(10.0)
    assert first.listener.events == heard
    assert {kind for kind, _ in heard} == {"assign"}

    second = read(topic, group=group)
    second.take_until(lambda: sorted(second.source.assignment()) == places, "both partitions")
