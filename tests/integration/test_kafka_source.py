"""The source against the embedded broker and a real Kafka: the same promises on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message
from kafka_support import Cluster, Reading, Recorder, produce_raw_headers, reading
from stream import unique

from worker.batch import RENAMED_HEADERS, Partition
from worker.errors import ConfigError
from worker.kafka import source as source_module
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.source import open_source

PROTOCOLS = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range,roundrobin"},
    "consumer": {"group.protocol": "consumer"},
}


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


@pytest.fixture
def read(cluster: Cluster, request: pytest.FixtureRequest) -> Callable[..., Reading]:
    """Start reading a topic; everything is closed when the test is over."""

    def start(topic: str, listener: Recorder | None = None, **settings: Any) -> Reading:
        opened = reading(cluster.settings(topic, **settings), cluster.embedded is not None, listener)
        request.addfinalizer(lambda: opened.__exit__(None, None, None))
        return opened.__enter__()

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


def test_header_names_that_are_not_utf_8_are_replaced_and_said(
    cluster: Cluster, read: Callable[..., Reading]
) -> None:
    """The record comes with readable names and, before them, the numbers of the renamed ones; its neighbours as sent."""
    topic = cluster.topic(1)
    sent = [
        [(b"plain", b"0")],
        [(b"caf\xe9", b"1"), (b"plain", b"2"), (b"\xff\xfe", b"3")],
        [("grün".encode(), b"4")],
        [(b"\xff", b"5")],
    ]
    for headers in sent:
        produce_raw_headers(cluster.bootstrap, topic, b"value", headers)
    got = read(topic)
    got.take_records(4)
    assert got.columns.headers == [
        [("plain", b"0")],
        [(RENAMED_HEADERS, b"1,3"), ("caf\ufffd", b"1"), ("plain", b"2"), ("\ufffd", b"3")],
        [("grün", b"4")],
        [(RENAMED_HEADERS, b"1"), ("\ufffd", b"5")],
    ]
    marked = [bool(headers) and headers[0][0] is RENAMED_HEADERS for headers in got.columns.headers]
    assert marked == [False, True, False, True]


def test_a_take_is_bounded_in_records_and_bytes(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """A take returns at most the records asked for, and no more bytes than asked for once sizes are known."""
    topic = cluster.topic(1)
    cluster.produce(topic, [{"value": bytes(10_000)} for _ in range(100)])
    got = read(topic)
    got.source.pause([topic])
    got.join()
    got.source.resume([topic])
    while not got.source.take(0.1, 1, 1)[1]:
        pass
    for most, wanted_bytes, allowed in ((5, 1 << 20, 5), (100, 30_000, 3), (100, 1, 1)):
        columns, _ = got.source.take(5.0, most, wanted_bytes)
        assert 1 <= len(columns) <= allowed


def test_reading_goes_on_at_the_committed_position(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """A second member of the group starts where the first one committed, and sees its metadata."""
    topic, group = cluster.topic(1), unique("group")
    cluster.fill(topic, 1, each=10)
    place = Partition(topic, 0)
    first = read(topic, group=group)
    first.take_records(10)
    assert first.source.committed([place]) == {place: (None, "")}
    confirmed = first.source.commit({place: 7}, wait=True, metadata={place: "attempts=1"})
    assert confirmed == {place: 7}
    first.source.close(10.0)

    second = read(topic, group=group)
    second.take_records(3)
    assert second.columns.offsets == [7, 8, 9]
    assert second.source.committed([place]) == {place: (7, "attempts=1")}


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
    got.take_until(lambda: len(got.columns), "the first record")
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


def test_lag_is_known_after_reading(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """Lag is (next offset, end) per owned partition."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=5)
    got = read(topic)
    got.take_records(5)
    assert got.source.lag()[Partition(topic, 0)][:3] == (5, 5, 0)


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


@pytest.mark.parametrize("rewound", [False, True])
def test_records_taken_back_while_they_are_taken_are_dropped(
    monkeypatch: pytest.MonkeyPatch, rewound: bool
) -> None:
    """A record polled just before its partition is revoked or rewound does not come out of that take."""
    topic, gone, kept = "in", Partition("in", 0), Partition("in", 1)

    class Fake:
        """A consumer that has one partition revoked between its poll and its consume."""

        def __init__(self, properties: dict[str, Any]) -> None: ...

        def subscribe(self, topics: list[str], **callbacks: Any) -> None:
            self.callbacks = callbacks

        def committed(self, partitions: list[Any], timeout: float) -> list[Any]:
            return partitions

        def offsets_for_times(self, partitions: list[Any], timeout: float) -> list[Any]:
            return partitions

        def incremental_assign(self, partitions: list[Any]) -> None: ...

        def seek(self, partition: Any) -> None: ...

        def poll(self, timeout: float) -> Message:
            self.callbacks["on_assign"](self, [source_module.TopicPartition(*p) for p in (gone, kept)])
            return Message(topic, 0, 7, None, b"gone")

        def consume(self, most: int, timeout: float) -> list[Message]:
            if rewound:
                source.seek({gone: 2})
            else:
                self.callbacks["on_revoke"](self, [source_module.TopicPartition(*gone)])
            return [Message(topic, 1, 3, None, b"kept")]

    monkeypatch.setattr(source_module, "Consumer", Fake)
    source = open_source(Cluster("localhost:1").settings(topic))
    source.subscribe(Recorder())
    columns, spans = source.take(0.1, 10, 100_000)
    assert columns.values == [b"kept"]
    assert [span.partition for span in spans] == [kept]


def test_a_log_that_ends_before_what_was_read_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The partition is lost and assigned again before its new records come; its neighbour is read on."""
    topic, cut, whole = "in", Partition("in", 0), Partition("in", 1)
    takes = [
        [Message(topic, 0, 7, None, b"old"), Message(topic, 1, 3, None, b"kept")],
        [Message(topic, 0, 0, None, b"new"), Message(topic, 1, 4, None, b"kept too")],
    ]

    class Fake:
        """A consumer that goes back to offset 0 of one partition by itself."""

        def __init__(self, properties: dict[str, Any]) -> None: ...

        def subscribe(self, topics: list[str], **callbacks: Any) -> None:
            self.callbacks = callbacks

        def committed(self, partitions: list[Any], timeout: float) -> list[Any]:
            return [source_module.TopicPartition(tp.topic, tp.partition, 3) for tp in partitions]

        def incremental_assign(self, partitions: list[Any]) -> None: ...

        def poll(self, timeout: float) -> Message:
            if len(takes) == 2:
                self.callbacks["on_assign"](self, [source_module.TopicPartition(*p) for p in (cut, whole)])
            return takes[0].pop(0)

        def consume(self, most: int, timeout: float) -> list[Message]:
            return takes.pop(0)

    monkeypatch.setattr(source_module, "Consumer", Fake)
    source = open_source(Cluster("localhost:1").settings(topic))
    listener = Recorder()
    source.subscribe(listener)
    assert source.take(0.1, 10, 100_000)[0].values == [b"old", b"kept"]
    columns, spans = source.take(0.1, 10, 100_000)
    assert columns.values == [b"new", b"kept too"]
    assert [(span.partition, span.next_offset) for span in spans] == [(cut, 1), (whole, 5)]
    assert listener.events == [("assign", [cut, whole]), ("lost", [cut]), ("assign", [cut])]
    assert source.starts([cut, whole]) == {cut: (0, ""), whole: (3, "")}
    assert source.out_of_range == {cut: 1}
