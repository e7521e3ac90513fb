"""What the end-to-end tests are made of: topics, worker processes, a producer, a reader of everything, a judge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from worker.kafka.tools import range_of

PATIENCE_S = 60.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first true answer of ``condition``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def create_topics(bootstrap: str, topics: dict[str, int], copies: int = 1, **config: str) -> None:
    """Make topics and wait until every partition has a leader."""
    ADDRESSES.update(dict.fromkeys(topics, bootstrap))
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(name, partitions, copies, config=config) for name, partitions in topics.items()]
    for future in admin.create_topics(wanted).values():
        future.result(30)

    def ready() -> bool:
        known = admin.list_topics(timeout=10).topics
        return all(
            name in known
            and len(known[name].partitions) == count
            and all(p.leader >= 0 for p in known[name].partitions.values())
            for name, count in topics.items()
        )

    wait_for(ready, f"topics {sorted(topics)}")


STARTED: list[Worker] = []
"""Every worker of the running test, for :mod:`accounts`."""
SENT: Counter[str] = Counter()
"""Topic -> records :func:`produce` put there."""
ADDRESSES: dict[str, str] = {}
"""Topic -> where the test itself reaches its broker, which may not be where its worker does."""


@dataclass
class Worker:
    """One ``streaminfer run`` process; its log goes to a file that failures show.

    Its counters are held to what it did once the test is over (:mod:`accounts`), unless the test killed it.
    """

    process: subprocess.Popen[bytes]
    log: Path
    config: Path
    killed: bool = False
    """By the test, while it ran."""

    @classmethod
    def start(cls, config: Path, *arguments: str, env: dict[str, str] | None = None) -> Worker:
        log = config.parent / f"worker-{uuid.uuid4().hex[:6]}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", str(config), *arguments],
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        STARTED.append(cls(process, log, config))
        return STARTED[-1]

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> None:
        """Until it has partitions (or sees that there are none for it)."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the worker ended early:\n{self.text()}"
            return '"assigned"' in self.text()

        wait_for(ready, f"the worker to join:\n{self.text()}", timeout_s)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, timeout_s: float = PATIENCE_S) -> tuple[int, float]:
        """SIGTERM; its exit code and how many seconds it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        return code, time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL, the whole process group."""
        if self.process.poll() is None:
            self.killed = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def write_config(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / f"{unique('config')}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@dataclass
class Sent:
    """One input record as the broker has it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def produce(bootstrap: str, topic: str, records: Iterable[dict[str, Any]]) -> list[Sent]:
    """Send records (produce() keywords each) and return them with their places."""
    ADDRESSES[topic] = bootstrap
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "partitioner": "murmur2_random"})
    sent: list[Sent] = []
    failures: list[Any] = []

    def on_delivery(record: dict[str, Any]) -> Callable[[Any, Message], None]:
        def delivered(error: Any, message: Message) -> None:
            if error is not None:
                failures.append(error)
                return
            SENT[topic] += 1
            place = (message.partition(), message.offset())
            sent.append(Sent(*place, record.get("key"), record.get("value"), record.get("headers") or []))

        return delivered

    for record in records:
        while True:
            try:
                producer.produce(topic, on_delivery=on_delivery(record), **record)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failures, failures[:3]
    return sent


def read_all(bootstrap: str, topic: str, isolation: str = "read_committed") -> list[Message]:
    """Everything in a topic from its beginning to its end of now, in offset order per partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique("reader"),
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": isolation,
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = consumer.list_topics(timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[Message] = []
        ended: set[int] = set()
        deadline = time.monotonic() + PATIENCE_S
        while len(ended) < len(partitions) and time.monotonic() < deadline:
            for message in consumer.consume(1000, 0.2):
                if message.error() is None:
                    found.append(message)
                else:
                    ended.add(message.partition())
        assert len(ended) == len(partitions), f"{topic} did not end"
        return found
    finally:
        consumer.close()


def wait_for_outputs(
    bootstrap: str,
    topics: list[str],
    count: int,
    workers: Iterable[Worker] = (),
    timeout_s: float = PATIENCE_S,
) -> None:
    """Until these topics together hold at least ``count`` records; a worker that dies fails at once."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": unique("counter")})
    try:
        known = consumer.list_topics(timeout=10).topics
        places = [TopicPartition(topic, n) for topic in topics for n in known[topic].partitions]

        def enough() -> bool:
            for worker in workers:
                code = worker.process.poll()
                assert code is None, f"a worker ended with {code}:\n{worker.text()[-4000:]}"
            return sum(range_of(consumer, place, PATIENCE_S)[1] for place in places) >= count

        wait_for(enough, f"{count} records in {topics}", timeout_s)
    finally:
        consumer.close()


@dataclass
class Verdict:
    """What became of every input."""

    lost: list[tuple[int, int]] = field(default_factory=list)
    doubled: list[tuple[int, int]] = field(default_factory=list)
    reordered: list[tuple[int, int]] = field(default_factory=list)
    unknown: list[tuple[int, int]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.unknown)


def place_of(message: Message) -> tuple[int, int]:
    """(partition, offset) of the input that a result or dead letter belongs to."""
    headers = dict(message.headers() or [])
    if b := headers.get("__connect.errors.partition"):
        return int(b), int(headers["__connect.errors.offset"])
    if source := headers.get("streaminfer.source"):
        _, partition, offset = source.decode().rsplit("/", 2)
        return int(partition), int(offset)
    value = orjson.loads(message.value())
    return value["source"]["partition"], value["source"]["offset"]


def judge(
    sent: list[Sent], outputs: list[Message], place: Callable[[Message], tuple[int, int]] = place_of
) -> Verdict:
    """Lost, doubled and reordered inputs. Order is per input partition within one output partition and topic.

    Args:
        place: tells an output's input; given where there are tombstones, which say nothing themselves.
    """
    verdict = Verdict()
    expected = {(record.partition, record.offset) for record in sent}
    seen: dict[tuple[int, int], int] = defaultdict(int)
    last: dict[tuple[str, int, int], int] = {}
    for message in sorted(outputs, key=lambda m: (m.topic(), m.partition(), m.offset())):
        found = place(message)
        if found not in expected:
            verdict.unknown.append(found)
        seen[found] += 1
        line = (message.topic(), message.partition(), found[0])
        if seen[found] == 1 and found[1] < last.get(line, -1):
            verdict.reordered.append(found)
        last[line] = max(found[1], last.get(line, -1))
    verdict.lost = sorted(expected - seen.keys())
    verdict.doubled = sorted(found for found, times in seen.items() if times > 1)
    return verdict


def count_records(bootstrap: str, metrics_topic: str) -> dict[str, Counter[str]]:
    """What each worker counted from its start to its last words, by its client.id; all its pipelines together.

    Held to the rule that ends in every worker that drained: in = out + dead_letter + dropped.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for message in read_all(bootstrap, metrics_topic):
        record = orjson.loads(message.value())
        for pipeline in record["pipelines"].values():
            found[record["worker"]["id"]].update(pipeline["records"])
    for worker, counts in found.items():
        answered = counts["out"] + counts["dead_letter"] + counts["dropped"]
        assert counts["in"] == answered, f"{worker} does not add up: {dict(counts)}"
    return dict(found)
