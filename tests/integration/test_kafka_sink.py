"""One contract for sinks: the fake, both real ones on the embedded broker, and both on a real Kafka."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from fakes import FakeClock, FakeKafka, FakeSink
from fakes import Message as Landed
from kafka_support import PATIENCE_S, Cluster
from stream import read_all

from worker import native
from worker.batch import Headers, Partition
from worker.errors import DeliveryFailed
from worker.kafka.batch_sink import BatchSink
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.sink import KafkaSink
from worker.kafka.topics import Topics
from worker.sending import PartitionMode, Sending

JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""Of Kafka's own test of org.apache.kafka.common.utils.Utils.murmur2."""


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "kafka":
        return Cluster(request.getfixturevalue("kafka"))
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    return Cluster(broker.bootstrap, broker)


class Outlet:
    """A sink with one output topic, and what became of each row."""

    def __init__(
        self,
        cluster: Cluster,
        partitions: int,
        limit: int = 1_048_588,
        kind: type[KafkaSink | BatchSink] = KafkaSink,
        transactional_id: str | None = None,
        **settings: Any,
    ) -> None:
        self.cluster = cluster
        self.topic = cluster.topic(partitions)
        topics = Topics("test", cluster.embedded is not None, {self.topic: partitions}, {self.topic: limit})
        self.sink = kind(cluster.settings("in", **settings), topics, transactional_id)
        self.acknowledged = 0
        self.refused: list[KafkaError] = []

    def send(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers | None] | None = None,
        source: int = 0,
        mode: PartitionMode = "key",
    ) -> int:
        sending = Sending(self.topic, Partition("in", source), keys, values, headers, mode)
        transactional = getattr(self.sink, "transactional_id", None)
        return self.sink.send(sending, None if transactional else self.on_delivery)

    def on_delivery(self, error: KafkaError | None, message: Message | None, rows: int = 1) -> None:
        if error is None:
            self.acknowledged += rows
        else:
            self.refused += [error] * rows

    def wait(self, count: int) -> None:
        """Until this many rows are settled one way or the other."""
        deadline = time.monotonic() + PATIENCE_S
        while self.acknowledged + len(self.refused) < count:
            assert time.monotonic() < deadline, f"{self.acknowledged} acknowledged, {self.refused[:3]}"
            self.sink.poll(0.1)

    def read(self) -> list[Message]:
        return read_all(self.cluster.bootstrap, self.topic)


class FakeMessage:
    """What landed on the fake broker, as the client's message shows it."""

    def __init__(self, landed: Landed) -> None:
        self._landed = landed

    def key(self) -> bytes | None:
        return self._landed.key

    def value(self) -> bytes | None:
        return self._landed.value

    def headers(self) -> Headers | None:
        return self._landed.headers

    def partition(self) -> int:
        return self._landed.partition

    def timestamp(self) -> tuple[int, int]:
        return 1, self._landed.timestamp_ms


class FakeOutlet(Outlet):
    """The sink of the loop's tests in place of a real one. Its queue holds 20 rows."""

    def __init__(
        self, by_count: bool, partitions: int, limit: int = 1_048_588, limits: Any = None, kafka: Any = None
    ) -> None:
        self.topic = "out"
        self._kafka = FakeKafka(FakeClock(), {"in": 12}, {self.topic: partitions})
        capacity = 20 if limits else 10_000
        self.sink: Any = FakeSink(self._kafka, capacity=capacity, by_count=by_count)
        self.sink.limits[self.topic] = limit
        self.acknowledged = 0
        self.refused = []

    def read(self) -> list[Any]:
        return [FakeMessage(message) for message in self._kafka.outputs(self.topic)]


FAKE_CANNOT = {
    "test_keyed_records_go_where_java_puts_them": "the fake places keys by CRC-32, not by murmur2",
    "test_a_row_refused_for_good_is_reported_and_the_others_arrive": "the fake's errors have no codes",
    "test_a_renewed_producer_sends": "the fake has no producer to renew: FakeTransactions stands for that",
}
"""What is outside the fake, each seen to fail."""


def available(kind: type[KafkaSink | BatchSink]) -> type[KafkaSink | BatchSink]:
    """The sink, where it is compiled."""
    if kind is BatchSink and native.producer is None:
        if os.environ.get("REQUIRE_NATIVE") == "1":
            pytest.fail(f"REQUIRE_NATIVE=1, but the producer is {native.producer_path}")
        pytest.skip(f"the producer is {native.producer_path}")
    return kind


@pytest.fixture(params=[KafkaSink, BatchSink])
def kind(request: pytest.FixtureRequest) -> type[KafkaSink | BatchSink]:
    """Both sinks do the same; one of them only where it is compiled."""
    return available(request.param)


@pytest.fixture(
    params=[
        pytest.param(("fake", False), id="fake-by-row"),
        pytest.param(("fake", True), id="fake-by-count"),
        pytest.param(("embedded", KafkaSink), id="embedded-KafkaSink"),
        pytest.param(("embedded", BatchSink), id="embedded-BatchSink"),
        pytest.param(("kafka", KafkaSink), id="kafka-KafkaSink", marks=pytest.mark.kafka),
        pytest.param(("kafka", BatchSink), id="kafka-BatchSink", marks=pytest.mark.kafka),
    ]
)
def outlet(request: pytest.FixtureRequest) -> Callable[..., Outlet]:
    """Make a sink for a new topic; it is closed when the test is over."""
    where, how = request.param
    if where == "fake":
        reason = FAKE_CANNOT.get(request.function.__name__)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
        return partial(FakeOutlet, how)
    kind = available(how)
    if where == "kafka":
        cluster = Cluster(request.getfixturevalue("kafka"))
    else:
        broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
        cluster = Cluster(broker.bootstrap, broker)

    def start(partitions: int, **more: Any) -> Outlet:
        made = Outlet(cluster, partitions, kind=kind, **more)
        request.addfinalizer(lambda: made.sink.close(5.0))
        return made

    return start


def murmur2(key: bytes) -> int:
    """Java's murmur2 of the Kafka clients, by its definition; signed."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if tail := key[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


def test_the_reference_agrees_with_java() -> None:
    """The murmur2 these tests compare with gives the values of Kafka's own test."""
    assert {key: murmur2(key) for key in JAVA_MURMUR2} == JAVA_MURMUR2


@pytest.mark.parametrize("headed", [False, True], ids=["plain", "headers"])
def test_keyed_records_go_where_java_puts_them(outlet: Callable[..., Outlet], headed: bool) -> None:
    """The partition of a key, the empty one included, is that of Java's default partitioner."""
    out = outlet(12)
    keys = [*JAVA_MURMUR2, b"", *(b"key-%d" % i for i in range(50))]
    headers: list[Headers | None] | None = [[("h", b"1")]] * len(keys) if headed else None
    assert out.send(keys, [b"v"] * len(keys), headers, source=5) == len(keys)
    out.wait(len(keys))
    placed = {message.key(): message.partition() for message in out.read()}
    assert placed == {key: (murmur2(key) & 0x7FFFFFFF) % 12 for key in keys}


@pytest.mark.parametrize("headed", [False, True], ids=["plain", "headers"])
def test_keyless_records_follow_their_input_partition(outlet: Callable[..., Outlet], headed: bool) -> None:
    """A record without a key goes to input partition mod output partitions."""
    out = outlet(4)
    headers: list[Headers | None] | None = [[("h", b"1")]] * 10 if headed else None
    assert out.send([None] * 10, [b"v"] * 10, headers, source=6) == 10
    out.wait(10)
    assert Counter(message.partition() for message in out.read()) == {2: 10}


def test_mode_input_keeps_the_partition_number(outlet: Callable[..., Outlet]) -> None:
    """With ``output.partition: input`` a key does not decide, the input partition does."""
    out = outlet(4)
    assert out.send([b"a", None, b"b"], [b"1", b"2", b"3"], source=3, mode="input") == 3
    out.wait(3)
    assert [(m.partition(), m.key(), m.value()) for m in out.read()] == [
        (3, b"a", b"1"),
        (3, None, b"2"),
        (3, b"b", b"3"),
    ]
    fewer = outlet(2)  # a dead-letter topic may have fewer
    assert fewer.send([b"a"], [b"1"], source=3, mode="input") == 1
    fewer.wait(1)
    assert [m.partition() for m in fewer.read()] == [1]


def test_order_is_kept_whatever_the_rows_are(outlet: Callable[..., Outlet]) -> None:
    """Keyed and keyless rows, with and without headers, reach one partition in the order they were sent."""
    out = outlet(1)
    rows = 2500
    keys = [b"k" if i % 7 == 0 else None for i in range(rows)]
    values = [b"%d" % i for i in range(rows)]
    assert out.send(keys[:1500], values[:1500]) == 1500
    headers: list[Headers | None] = [[("n", b"%d" % i)] if i % 2 else None for i in range(1500, 2000)]
    assert out.send(keys[1500:2000], values[1500:2000], headers) == 500
    assert out.send(keys[2000:], values[2000:]) == 500
    out.wait(rows)
    assert [message.value() for message in out.read()] == values


def test_values_keys_and_headers_arrive_unchanged(outlet: Callable[..., Outlet]) -> None:
    """Null and empty stay different; repeated and null headers survive."""
    out = outlet(1)
    headers: list[Headers | None] = [[("a", b"1"), ("a", None), ("b", b"")], None]
    assert out.send([None, b""], [None, b""], headers) == 2
    out.wait(2)
    first, second = out.read()
    assert (first.key(), first.value(), first.headers()) == (None, None, headers[0])
    assert (second.key(), second.value(), second.headers()) == (b"", b"", None)


@pytest.mark.parametrize("headed", [False, True], ids=["plain", "headers"])
def test_a_full_queue_takes_a_prefix(outlet: Callable[..., Outlet], headed: bool) -> None:
    """What does not fit is left to the caller; sent again, everything arrives once and in order."""
    out = outlet(1, limits={"output_bytes": 100_000}, kafka={"linger.ms": "50"})
    values = [b"%03d" % i + bytes(9_000 if i % 3 else 10) for i in range(60)]
    headers: list[Headers | None] | None = [[("h", b"1")]] * 60 if headed else None
    sent = out.send([None] * 60, values, headers)
    assert 0 < sent < 60
    deadline = time.monotonic() + PATIENCE_S
    while sent < 60:
        assert time.monotonic() < deadline
        out.sink.poll(0.05)
        sent += out.send([None] * (60 - sent), values[sent:], headers[sent:] if headers else None)
    out.wait(60)
    assert [message.value() for message in out.read()] == values
    assert not out.refused


@pytest.mark.parametrize("headed", [False, True], ids=["plain", "headers"])
def test_a_row_refused_for_good_is_reported_and_the_others_arrive(
    outlet: Callable[..., Outlet], headed: bool
) -> None:
    """An output above the client's limit counts as accepted and fails its delivery at once."""
    out = outlet(1, limit=1_000_000)
    values = [b"a", bytes(1_500_000), b"b"]
    headers: list[Headers | None] | None = [[("h", b"1")]] * 3 if headed else None
    assert out.send([None] * 3, values, headers) == 3
    out.wait(3)
    assert [error.code() for error in out.refused] == [KafkaError.MSG_SIZE_TOO_LARGE]
    assert [message.value() for message in out.read()] == [b"a", b"b"]


def test_a_purge_settles_every_row(outlet: Callable[..., Outlet]) -> None:
    """Rows given up are reported to on_delivery as errors, none is left unsettled."""
    out = outlet(1, kafka={"linger.ms": "10000"})
    assert out.send([None] * 100, [b"v"] * 100) == 100
    out.sink.purge()
    out.wait(100)
    assert len(out.refused) == 100
    assert out.read() == []


def test_a_renewed_producer_sends(outlet: Callable[..., Outlet]) -> None:
    """After ``renew`` the sink goes on with a new client."""
    out = outlet(1)
    out.sink.renew()
    assert out.send([None], [b"v"]) == 1
    out.wait(1)
    assert out.acknowledged == 1


def test_a_transaction_takes_rows_of_every_kind_before_it_knows_their_topic(
    cluster: Cluster, kind: type[KafkaSink | BatchSink]
) -> None:
    """Keyed and keyless, with and without headers, the first ones on a producer of its own making each time."""
    out = Outlet(cluster, 4, kind=kind, transactional_id=f"t-{uuid.uuid4()}")
    keys = [b"k%d" % i if i % 3 else None for i in range(30)]
    headers: list[Headers | None] = [[("h", b"1")]] * 30
    for value, headed in ((b"plain", None), (b"headed", headers)):
        producer: Any = out.sink.producer
        producer.init_transactions(PATIENCE_S)
        producer.begin_transaction()
        assert out.send(keys, [value] * 30, headed, source=1) == 30
        producer.commit_transaction(PATIENCE_S)
        out.sink.renew()
    assert Counter(message.value() for message in out.read()) == {b"plain": 30, b"headed": 30}
    out.sink.close(5.0)


def test_a_transaction_given_up_is_not_seen(cluster: Cluster, kind: type[KafkaSink | BatchSink]) -> None:
    """Nor does it keep the next one from working; what a call is refused for is told with librdkafka's flags."""
    out = Outlet(cluster, 1, kind=kind, transactional_id=f"t-{uuid.uuid4()}")
    producer: Any = out.sink.producer
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    assert out.send([None], [b"no"]) == 1
    producer.abort_transaction(PATIENCE_S)
    with pytest.raises(KafkaException) as refused:
        producer.commit_transaction(PATIENCE_S)
    error = refused.value.args[0]
    assert error.code() == KafkaError._STATE
    assert (error.fatal(), error.retriable(), error.txn_requires_abort()) == (False, False, False)
    producer.begin_transaction()
    assert out.send([None], [b"yes"]) == 1
    producer.commit_transaction(PATIENCE_S)
    assert [message.value() for message in out.read()] == [b"yes"]
    out.sink.close(5.0)


def test_a_fence_is_named_where_an_output_is_refused(
    cluster: Cluster, kind: type[KafkaSink | BatchSink]
) -> None:
    """A row is refused with no more than "Local: Fatal error"; the sentence says what happened."""
    if cluster.embedded is not None:
        pytest.skip("the embedded broker fences nobody")
    if kind is KafkaSink:
        pytest.skip("the client's binding keeps the reason to its log lines")
    ours = f"t-{uuid.uuid4()}"
    out, rival = (Outlet(cluster, 1, kind=kind, transactional_id=ours) for _ in range(2))
    for each in (out, rival):
        each.sink.producer.init_transactions(PATIENCE_S)  # type: ignore[union-attr]
    producer: Any = out.sink.producer
    producer.begin_transaction()
    out.send([None], [b"v"])
    with pytest.raises(KafkaException):
        producer.commit_transaction(PATIENCE_S)
    with pytest.raises(DeliveryFailed, match="fenced"):
        out.send([None], [b"v"])
    for each in (out, rival):
        each.sink.close(5.0)


def test_an_outage_is_waited_out_in_order(
    embedded_broker: EmbeddedBroker, kind: type[KafkaSink | BatchSink]
) -> None:
    """Outputs sent while the broker is away arrive once it is back, in order and once."""
    out = Outlet(Cluster(embedded_broker.bootstrap, embedded_broker), 1, kind=kind)
    embedded_broker.set_down()
    values = [b"%d" % i for i in range(300)]
    assert out.send([None] * 300, values) == 300
    assert out.sink.flush(0.5) > 0
    embedded_broker.set_up()
    out.wait(300)
    assert [message.value() for message in out.read()] == values
    out.sink.close(1.0)


def test_closing_does_not_wait_for_a_dead_broker(
    embedded_broker: EmbeddedBroker, kind: type[KafkaSink | BatchSink]
) -> None:
    """``close`` gives up within its budget and settles what it could not send."""
    out = Outlet(Cluster(embedded_broker.bootstrap, embedded_broker), 1, kind=kind)
    embedded_broker.set_down()
    assert out.send([None] * 10, [b"v"] * 10) == 10
    started = time.monotonic()
    out.sink.close(0.5)
    assert time.monotonic() - started < 10


def test_rows_with_a_timestamp_arrive_with_it(outlet: Callable[..., Outlet]) -> None:
    """A dead letter keeps the time of its record."""
    out = outlet(1)
    sending = Sending(
        out.topic, Partition("in", 0), [None], [b"v"], [[("h", b"1")]], "key", 1_763_676_000_123
    )
    assert out.sink.send(sending, out.on_delivery) == 1
    out.wait(1)
    assert [message.timestamp()[1] for message in out.read()] == [1_763_676_000_123]
