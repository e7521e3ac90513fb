"""Careful reading on the embedded broker and a real Kafka: the same records as the client itself would return."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from kafka_support import PATIENCE_S, Cluster, Reading, Recorder, produce_raw_headers
from stream import unique

from worker.batch import RENAMED_HEADERS, Partition
from worker.kafka import careful as careful_module
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.careful import CarefulReader, Row
from worker.kafka.properties import consumer_properties
from worker.kafka.source import open_source

MIB = 1 << 20


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


@pytest.fixture
def reader(cluster: Cluster) -> Iterator[CarefulReader]:
    made = CarefulReader(
        consumer_properties(cluster.settings("unused"), cluster.embedded is not None), 256 * MIB
    )
    yield made
    made.close()


def read(
    reader: CarefulReader, until: Callable[[list[Row]], bool] = lambda rows: False, most: int = 100
) -> tuple[dict[Partition, list[Row]], list[Partition]]:
    """What comes until nothing is read any more, or the condition holds; and the partitions that were over."""
    rows: dict[Partition, list[Row]] = {}
    over: list[Partition] = []
    deadline = time.monotonic() + PATIENCE_S
    while reader and not until([row for found in rows.values() for row in found]):
        assert time.monotonic() < deadline, f"waited in vain, there are {rows}"
        taken = reader.take(most, MIB, ())
        if taken.place is not None:
            rows.setdefault(taken.place, []).extend(taken.rows)
            assert len(taken.rows) <= most
            if taken.over:
                over.append(taken.place)
        else:
            time.sleep(0.01)
    return rows, over


def test_every_record_up_to_the_end_comes_once_and_in_order(cluster: Cluster, reader: CarefulReader) -> None:
    """Each of two partitions is read from its start; at its end the partition is over."""
    topic = cluster.topic(2)
    for start in range(0, 30, 10):
        cluster.fill(topic, 2, each=10, start=start)
    reader.add(Partition(topic, 1), 5)
    reader.add(Partition(topic, 0), 0)
    rows, over = read(reader, most=7)
    assert [row.value for row in rows[Partition(topic, 0)]] == [b"0/%d" % i for i in range(30)]
    assert [row.offset for row in rows[Partition(topic, 1)]] == list(range(5, 30))
    assert set(over) == {Partition(topic, 1), Partition(topic, 0)}
    assert not reader


def test_it_ends_where_the_log_ended_although_records_keep_coming(
    cluster: Cluster, reader: CarefulReader
) -> None:
    """Records that came after the death are left to the worker's own client, so every partition gets its turn."""
    topic = cluster.topic(2)
    cluster.fill(topic, 2, each=2)
    places = [Partition(topic, 0), Partition(topic, 1)]
    for place in places:
        reader.add(place, 0)
    seen = 0

    def grow(rows: list[Row]) -> bool:
        nonlocal seen
        if len(rows) > seen:  # for each record that was read, one more comes
            cluster.fill(topic, 2, each=len(rows) - seen)
            seen = len(rows)
        return False

    rows, over = read(reader, grow, most=1)
    assert set(over) == set(places)
    for place in places:
        offsets = [row.offset for row in rows[place]]
        assert len(offsets) >= 2
        assert offsets == list(range(len(offsets)))


def test_partitions_take_turns(
    cluster: Cluster, reader: CarefulReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long log does not make another partition wait for its end; each record comes once and in order."""
    topic = cluster.topic(2)
    for start in range(0, 30, 3):
        cluster.fill(topic, 2, each=3, start=start)
    places = [Partition(topic, 0), Partition(topic, 1)]
    for place in places:
        reader.add(place, 0)
    with monkeypatch.context() as patch:
        patch.setattr(careful_module, "TURN_S", 0.0)
        first, none = read(
            reader, lambda rows: {row.value[:1] for row in rows if row.value} == {b"0", b"1"}, 2
        )
    assert not none
    rows, over = read(reader)
    assert set(over) == set(places)
    for place in places:
        assert [row.offset for row in [*first[place], *rows[place]]] == list(range(30))


def test_a_record_comes_whole_and_its_mark_is_the_mark(cluster: Cluster, reader: CarefulReader) -> None:
    """Key, value, headers and timestamp as they were sent; a header name that is not UTF-8 is marked."""
    topic = cluster.topic(1)
    stamp = int(time.time() * 1000) - 1234  # not older than what the broker keeps
    cluster.produce(
        topic, [{"key": b"k", "value": None, "headers": [("a", b"1"), ("a", None)], "timestamp": stamp}]
    )
    produce_raw_headers(cluster.bootstrap, topic, b"v", [(b"\xff", b"1")])
    place = Partition(topic, 0)
    reader.add(place, 0)
    rows, _ = read(reader)
    first, second = rows[place]
    assert first == Row(0, stamp, b"k", None, [("a", b"1"), ("a", None)])
    assert second.headers == [(RENAMED_HEADERS, b"1"), ("\ufffd", b"1")]
    assert second.headers[0][0] is RENAMED_HEADERS


def test_a_seek_and_a_loss_end_what_was_under_way(cluster: Cluster, reader: CarefulReader) -> None:
    """After a seek the next record is the one asked for; of a partition that is dropped nothing comes any more."""
    topic = cluster.topic(2)
    cluster.fill(topic, 2, each=20)
    lost, place = Partition(topic, 0), Partition(topic, 1)
    reader.add(lost, 0)
    reader.add(place, 0)
    read(reader, lambda rows: bool(rows), most=3)
    reader.drop([lost])
    read(reader, lambda rows: bool(rows), most=3)
    reader.seek(place, 10)
    rows, over = read(reader)
    assert [row.offset for row in rows[place]] == list(range(10, 20))
    assert (list(rows), over) == ([place], [place])


def test_a_process_that_is_killed_once_costs_nothing(cluster: Cluster, reader: CarefulReader) -> None:
    """Killed it is started again and goes on; nothing is missing, nothing is reported as unread."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=10)
    place = Partition(topic, 0)
    reader.add(place, 0)
    reader.take(1, MIB, ())
    kill_child()
    rows, over = read(reader)
    assert [row.offset for row in rows[place]] == list(range(10))
    assert over == [place]


def test_a_partition_that_cannot_be_read_is_left_to_the_worker(
    reader: CarefulReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process gets nothing from the broker, no record is blamed: the partition is over at its start."""
    monkeypatch.setattr(careful_module, "SILENT_S", 2.0)
    place = Partition(unique("missing"), 0)
    reader.add(place, 3)
    rows, over = read(reader)
    assert (rows, over) == ({place: []}, [place])


def kill_child() -> None:
    """Kill the process that reads."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError("there is no process that reads")


def test_the_source_goes_on_behind_what_was_read_carefully(cluster: Cluster) -> None:
    """Partitions with a suspect note come by the careful reader, the others by the client; each record once."""
    topic, group = cluster.topic(2), unique("group")
    cluster.fill(topic, 2, each=20)
    noted, plain = Partition(topic, 0), Partition(topic, 1)
    settings = cluster.settings(topic, group=group)
    embedded = cluster.embedded is not None
    first = open_source(settings, embedded)
    got = Reading(first)
    got.join()
    first.commit({noted: 3, plain: 4}, wait=True, metadata={noted: "died"})
    first.close(10.0)
    used: list[Any] = []
    second = open_source(settings, embedded, is_suspect=lambda note: used.append(note) or note == "died")
    try:
        again = Reading(second, Recorder())
        again.take_records(33)
        cluster.fill(topic, 2, each=5, start=20)
        again.take_records(43)
        assert again.by_partition() == {
            0: [b"0/%d" % i for i in range(3, 25)],
            1: [b"1/%d" % i for i in range(4, 25)],
        }
        assert sorted(used) == ["", "died"]
        lag = second.lag()
        assert {place: reach.position for place, reach in lag.items()} == {noted: 25, plain: 25}
    finally:
        second.close(10.0)
