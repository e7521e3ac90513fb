"""Topics as people have them, on a real Kafka: compressed, transactional, compacted; and a broker with a quota."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from confluent_kafka import Producer
from stream import Worker, create_topics, produce, read_all, unique, wait_for, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

JARS = Path(__file__).parents[2] / ".kafka" / "libs-4.2.0" / "*"


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(config: Path) -> Worker:
        workers.append(Worker.start(config))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


class Place:
    """An input topic, where answers go, and the worker's configuration. The answer to a record holds its number."""

    def __init__(self, bootstrap: str, folder: Path, partitions: int = 2, **topic: str) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.input, self.output, self.letters = unique("in"), unique("out"), unique("dead")
        create_topics(bootstrap, {self.input: partitions}, **topic)
        create_topics(bootstrap, {self.output: 2, self.letters: 1})
        models.write(folder, models.identity(shape=("N", 1)))

    def config(self, **more: Any) -> Path:
        kafka = {"bootstrap.servers": self.bootstrap, "group.id": unique("group"), **more.pop("kafka", {})}
        return write_config(
            self.folder,
            {
                "name": "kinds",
                "input": {"topics": [self.input], "format": "json"},
                "model": {"path": "model.onnx", "threads": 0},
                "output": {"topic": self.output},
                "dead_letter": {"topic": self.letters},
                "metrics": {"http": "127.0.0.1:0"},
                "kafka": kafka,
                **more,
            },
        )

    def answers(self) -> list[float]:
        """The numbers that were answered, sorted."""
        found = []
        for message in read_all(self.bootstrap, self.output):
            if message.value() is not None:
                ((number,),) = (orjson.loads(message.value())["prediction"]["outputs"]["y"],)
                found.append(number)
        return sorted(found)


def record(number: int) -> bytes:
    return orjson.dumps({"features": [number]})


def test_every_compression_is_read(kafka: str, tmp_path: Path, start: Callable[..., Worker]) -> None:
    """Records in batches of gzip, snappy, lz4 and zstd, one after the other in one partition, are answered like plain ones."""
    place = Place(kafka, tmp_path, partitions=1)
    for number, codec in enumerate(("none", "gzip", "snappy", "lz4", "zstd")):
        producer = Producer({"bootstrap.servers": kafka, "compression.type": codec, "linger.ms": 50})
        for i in range(200):
            producer.produce(place.input, record(number * 200 + i))
        assert producer.flush(30) == 0
    worker = start(place.config())
    wait_for_outputs(kafka, [place.output], 1000, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert place.answers() == list(range(1000))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_aborted_records_are_never_answered(
    kafka: str, tmp_path: Path, start: Callable[..., Worker], delivery: str
) -> None:
    """Of a topic that is written in transactions only committed records are answered; aborted ones are gaps, and so are the marks of transactions."""
    place = Place(kafka, tmp_path)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": unique("t")})
    producer.init_transactions(30)
    for number in range(20):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(place.input, record(number * 10 + i))
        producer.flush(30)
        (producer.abort_transaction if number % 2 else producer.commit_transaction)(30)
    committed = [n * 10 + i for n in range(0, 20, 2) for i in range(10)]
    worker = start(place.config(delivery=delivery))
    wait_for(lambda: len(place.answers()) >= len(committed), "the committed records")
    assert worker.stop()[0] == 0, worker.text()
    assert place.answers() == committed


def test_holes_and_tombstones_of_a_compacted_topic(
    kafka: str, tmp_path: Path, start: Callable[..., Worker]
) -> None:
    """A compacted topic has holes in its offsets and records without a value: what is there is answered once, and a tombstone passes on under its key."""
    place = Place(
        kafka,
        tmp_path,
        partitions=1,
        **{
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "min.compaction.lag.ms": "0",
        },
    )
    producer = Producer({"bootstrap.servers": kafka})
    for i in range(500):
        producer.produce(place.input, record(i), b"%d" % (i % 10))

    def compacted() -> bool:
        # a new record rolls the segment, and only closed segments are cleaned
        producer.produce(place.input, record(1000), b"roll")
        producer.flush(30)
        time.sleep(0.5)
        left = {message.offset() for message in read_all(kafka, place.input)}
        return len([offset for offset in left if offset < 500]) <= 20

    wait_for(compacted, "the topic to be compacted", 120)
    producer.produce(place.input, None, b"gone")
    producer.flush(30)
    worker = start(place.config())
    wait_for(
        lambda: any(each.value() is None for each in read_all(kafka, place.output)),
        "the tombstone, the last one",
    )
    assert worker.stop()[0] == 0, worker.text()
    answered = [number for number in place.answers() if number < 500]
    assert answered[-10:] == list(range(490, 500)), "the last record of each key is always there"
    assert len(answered) == len(set(answered)) <= 20
    tombstones = [message.key() for message in read_all(kafka, place.output) if message.value() is None]
    assert tombstones == [b"gone"]


def test_a_quota_is_told_and_is_no_stall(kafka: str, tmp_path: Path, start: Callable[..., Worker]) -> None:
    """A client that a quota slows down goes on, says so in its log and its metric, and is not taken for one that stands."""
    if shutil.which("java") is None or not list(JARS.parent.glob("*.jar")):
        pytest.skip("Kafka's own tool sets quotas, and it needs Java")
    place = Place(kafka, tmp_path, partitions=1)
    client = unique("slow")
    tool = ["java", "-Xmx256m", "-cp", str(JARS), "kafka.admin.ConfigCommand", "--bootstrap-server", kafka]
    quota = ["--alter", "--add-config", "consumer_byte_rate=20000", "--entity-type", "clients"]
    done = subprocess.run([*tool, *quota, "--entity-name", client], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    produce(
        kafka, place.input, [{"value": orjson.dumps({"features": [i], "pad": "x" * 500})} for i in range(400)]
    )
    worker = start(
        place.config(limits={"stall_s": 5}, kafka={"client.id": client, "max.partition.fetch.bytes": 30_000})
    )
    wait_for_outputs(kafka, [place.output], 400, [worker], 120)
    wait_for(lambda: throttled(worker) > 0, "the metric")
    assert "the broker slows this client down" in worker.text()
    assert worker.stop()[0] == 0, worker.text()
    assert place.answers() == list(range(400))


def throttled(worker: Worker) -> float:
    """The metric of what quotas held back."""
    port = re.findall(r'"port": (\d+)', worker.text())[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    return float(re.findall(r"^streaminfer_kafka_throttled_seconds_total (\S+)", text, re.MULTILINE)[0])
