"""What only the real source has: the client's words for headers, ends and commits, and its races.

What every source does is in ``test_kafka_source.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message
from kafka_support import Cluster, Reading, Recorder, produce_raw_headers

from worker.batch import RENAMED_HEADERS, Partition
from worker.kafka import source as source_module
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.source import open_source


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


@pytest.fixture
def read(cluster: Cluster, request: pytest.FixtureRequest) -> Callable[[str], Reading]:
    """Start reading a topic; everything is closed when the test is over."""

    def start(topic: str) -> Reading:
        opened = cluster.reading(topic)
        request.addfinalizer(lambda: opened.source.close(10.0))
        return opened

    return start


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


def test_lag_is_known_after_reading(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """Lag is (next offset, end) per owned partition."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=5)
    got = read(topic)
    got.take_records(5)
    assert got.source.lag()[Partition(topic, 0)][:3] == (5, 5, 0)


def test_the_last_commit_can_be_asked_for(cluster: Cluster, read: Callable[..., Reading]) -> None:
    """The broker tells the committed offset of a partition and its metadata, and that there is none."""
    topic = cluster.topic(2)
    places = [Partition(topic, 0), Partition(topic, 1)]
    got = read(topic)
    got.join()
    assert got.source.committed(places) == dict.fromkeys(places, (None, ""))
    got.source.commit({places[1]: 7}, wait=True, metadata={places[1]: "attempts=1"})
    assert got.source.committed(places) == {places[0]: (None, ""), places[1]: (7, "attempts=1")}


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
