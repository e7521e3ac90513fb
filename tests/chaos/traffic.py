"""Steady input on one thread, everything that comes out on another; both know which record is which."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from stream import Sent, place_of, unique

FEATURES = 20
TICK_S = 0.05
QUIET = {"log_level": 0, "error_cb": lambda _error: None}
"""The experimenter's own clients: that the broker is away is no news."""
Place = tuple[int, int]
"""(partition, offset) of an input record."""


class Traffic:
    """Sends ``rate`` records a second until closed: two thirds keyed, one in fifty bad, one in a hundred null.

    A tombstone has a key of its own, because its result says nothing of where it comes from.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int, rate: float, seed: int) -> None:
        self.sent: list[Sent] = []
        self.newest: dict[int, int] = dict.fromkeys(range(partitions), -1)
        """Per partition the last offset that was acknowledged."""
        self.tombstones: dict[bytes, Place] = {}
        self._untold = 0
        """Records the broker took without saying where: a repeated request of which it remembers only that it had it."""
        self._bootstrap = bootstrap
        self._topic = topic
        self._rate = rate
        self._random = random.Random(seed)
        # what the broker has not taken yet waits here for as long as the broker is away
        limits = {"message.timeout.ms": 0, "queue.buffering.max.messages": 1_000_000}
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, **limits, **QUIET}
        )
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def send(self, value: bytes | None, key: bytes | None = None, partition: int = -1) -> None:
        with self._lock:
            self._producer.produce(
                self._topic, value, key, partition, on_delivery=lambda error, m: self._delivered(error, m)
            )

    def close(self) -> None:
        """Stop, and wait until the broker has everything."""
        self._closing.set()
        self._thread.join()
        left = self._producer.flush(60)
        if left:
            raise OSError(f"the broker did not take {left} input records")
        if self._untold:
            self._look_up()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.wait(max(0.0, due - time.monotonic())):
            for _ in range(max(1, round(self._rate * TICK_S))):
                self._send_one()
            self._producer.poll(0)
            due += TICK_S

    def _send_one(self) -> None:
        self._count += 1
        number, rng = self._count, self._random
        if number % 100 == 0:
            self.send(None, b"tombstone-%d" % number)
            return
        value = orjson.dumps({"features": [rng.random() for _ in range(FEATURES)]})
        if number % 50 == 0:
            value = rng.choice([b"", b"not JSON", value[:20], b'{"features": [1, 2]}'])
        if number % 3:
            self.send(value, b"user-%d" % rng.randrange(500))
        else:
            self.send(value, None, number % len(self.newest))

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise OSError(f"an input record was not taken: {error.str()}")
        if message.offset() is None:
            self._untold += 1
        else:
            self._note(message)

    def _note(self, message: Message) -> None:
        place, key = (message.partition(), message.offset()), message.key()
        self.sent.append(Sent(*place, key, None, []))
        self.newest[place[0]] = max(place[1], self.newest[place[0]])
        if message.value() is None:
            self.tombstones[key] = place

    def _look_up(self) -> None:
        """Find the records that the broker did not tell of: those on the topic that nobody knows yet."""
        known = {(record.partition, record.offset) for record in self.sent}
        group = {"bootstrap.servers": self._bootstrap, "group.id": unique("traffic")}
        consumer = Consumer({**group, "enable.partition.eof": True, **QUIET})
        consumer.assign([TopicPartition(self._topic, number, 0) for number in self.newest])
        read: set[int] = set()
        while len(read) < len(self.newest):
            for message in consumer.consume(500, 1.0):
                if message.error() is not None:
                    if message.error().code() == KafkaError._PARTITION_EOF:
                        read.add(message.partition())
                elif (message.partition(), message.offset()) not in known:
                    self._note(message)
                    self._untold -= 1
        consumer.close()
        if self._untold:
            raise OSError(f"{self._untold} acknowledged input records are not on the topic")


class Witness:
    """Reads the outputs all the time, committed ones only; checks that commits never run ahead of them."""

    def __init__(self, bootstrap: str, topics: list[str], source: str, group: str, traffic: Traffic) -> None:
        self.seen: set[Place] = set()
        self.newest: dict[int, int] = defaultdict(lambda: -1)
        """Per input partition the highest offset answered."""
        self.crashed: list[Place] = []
        """Dead letters of records that killed whoever worked on them."""
        self.early_commits: list[str] = []
        """Commits that were beyond what had been published, or went backwards."""
        self.audits = 0
        self._topics = topics
        self._source = source
        self._traffic = traffic
        self._bootstrap = bootstrap
        self._unresolved: list[bytes] = []
        self._positions: dict[tuple[str, int], int] = {}
        self._committed: dict[int, int] = defaultdict(int)
        self._closing = threading.Event()
        # uncommitted: the end is then that of the log, not the first open transaction's
        watching = {"bootstrap.servers": bootstrap, "group.id": group, "isolation.level": "read_uncommitted"}
        self._auditor = Consumer({**watching, **QUIET})
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._read, self._audit)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_news(self, timeout_s: float) -> float | None:
        """Seconds until every input partition has the answer to a record sent after now; None: not in time."""
        began = time.monotonic()
        marks = dict(self._traffic.newest)
        while time.monotonic() - began < timeout_s:
            if all(self.newest[number] > mark for number, mark in marks.items()):
                return time.monotonic() - began
            time.sleep(0.02)
        return None

    def missing(self) -> int:
        """Inputs without an answer so far."""
        self._resolve()
        return len({(record.partition, record.offset) for record in self._traffic.sent} - self.seen)

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._auditor.close()

    def _read(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": unique("witness"),
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **QUIET,
            }
        )
        known = consumer.list_topics(timeout=30).topics
        consumer.assign([TopicPartition(t, n, 0) for t in self._topics for n in known[t].partitions])
        while not self._closing.is_set():
            for message in consumer.consume(500, 0.05):
                place = message.topic(), message.partition()
                if message.error() is None:
                    self._note(message)
                    self._positions[place] = message.offset() + 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    self._positions[place] = message.offset()
        consumer.close()

    def _note(self, message: Message) -> None:
        if message.value() is None and not message.headers():
            self._unresolved.append(message.key())
            return
        place = place_of(message)
        if dict(message.headers() or []).get("streaminfer.error.reason") == b"crashed":
            self.crashed.append(place)
        self.seen.add(place)
        self.newest[place[0]] = max(place[1], self.newest[place[0]])

    def _resolve(self) -> None:
        for key in self._unresolved[:]:
            if key in self._traffic.tombstones:
                self.seen.add(self._traffic.tombstones[key])
                self._unresolved.remove(key)

    def _audit(self) -> None:
        """Look at the commits, then at the ends of the outputs: once those are read, every commit must be covered."""
        while not self._closing.wait(1.0):
            try:
                commits, ends = self._commits(), self._ends()
            except Exception:  # the broker is away; the next look counts
                continue
            while not all(self._positions.get(place, 0) >= end for place, end in ends.items()):
                if self._closing.wait(0.05):
                    return
            self._resolve()
            self._compare(commits)

    def _compare(self, commits: dict[int, int]) -> None:
        self.audits += 1
        for number, offset in commits.items():
            if offset < self._committed[number]:
                self.early_commits.append(f"{number} went back from {self._committed[number]} to {offset}")
        for record in self._traffic.sent:
            number, offset = record.partition, record.offset
            new = self._committed[number] <= offset < commits.get(number, 0)
            if new and (number, offset) not in self.seen:
                self.early_commits.append(f"{number}@{commits[number]} covers {offset}")
        self._committed.update(commits)

    def _commits(self) -> dict[int, int]:
        asked = [TopicPartition(self._source, number) for number in self._traffic.newest]
        found = self._auditor.committed(asked, timeout=3)
        return {tp.partition: tp.offset for tp in found if tp.error is None and tp.offset >= 0}

    def _ends(self) -> dict[tuple[str, int], int]:
        known = self._auditor.list_topics(timeout=3).topics
        places = [(topic, number) for topic in self._topics for number in known[topic].partitions]
        ask: Callable[..., Any] = self._auditor.get_watermark_offsets
        return {place: ask(TopicPartition(*place), timeout=3)[1] for place in places}
