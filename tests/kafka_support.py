"""What the tests of the Kafka clients are made of: one broker of either kind, settings, a listener, a reader."""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream import create_topics, produce, unique

from worker.batch import Columns, Partition, Span
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.library import library
from worker.kafka.source import open_source
from worker.settings import Settings, validate

PATIENCE_S = 30.0
TOPIC, PARTITION, VALUE, COPIED, HEADERS = 1, 3, 4, 7, 10
"""What ``rd_kafka_producev`` takes, by number."""


def produce_raw_headers(
    bootstrap: str, topic: str, value: bytes, headers: list[tuple[bytes, bytes]], partition: int = 0
) -> None:
    """Send one record whose header names are any bytes, as clients in C, Go or Rust can; librdkafka's own calls."""
    lib: Any = library()
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for made in (lib.rd_kafka_conf_new, lib.rd_kafka_new, lib.rd_kafka_headers_new):
        made.restype = pointer
    reason = ctypes.create_string_buffer(512)
    properties = pointer(lib.rd_kafka_conf_new())
    lib.rd_kafka_conf_set(properties, b"bootstrap.servers", bootstrap.encode(), reason, size(512))
    client = pointer(lib.rd_kafka_new(0, properties, reason, size(512)))
    assert client, reason.value
    names = pointer(lib.rd_kafka_headers_new(size(len(headers))))
    for name, text in headers:
        lib.rd_kafka_header_add(names, name, ctypes.c_ssize_t(len(name)), text, ctypes.c_ssize_t(len(text)))
    refused = lib.rd_kafka_producev(
        client,
        *(TOPIC, topic.encode()),
        *(PARTITION, ctypes.c_int32(partition)),
        *(VALUE, value, size(len(value))),
        *(COPIED, 2),
        *(HEADERS, names),
        0,
    )
    assert not refused
    left = lib.rd_kafka_flush(client, 10_000)
    lib.rd_kafka_destroy(client)
    assert not left, "the broker did not take the record"


@dataclass
class Cluster:
    """A broker of either kind."""

    bootstrap: str
    embedded: EmbeddedBroker | None = None

    def topic(self, partitions: int, **config: str) -> str:
        """A new topic of its own."""
        name = unique("topic")
        if self.embedded is not None:
            self.embedded.create_topic(name, partitions)
        else:
            create_topics(self.bootstrap, {name: partitions}, **config)
        return name

    def produce(self, topic: str, records: list[dict[str, Any]]) -> None:
        produce(self.bootstrap, topic, records)

    def fill(self, topic: str, partitions: int, each: int, start: int = 0) -> None:
        """``each`` records per partition, in turn; their values are b"partition/running number"."""
        self.produce(
            topic,
            [
                {"value": b"%d/%d" % (number, i), "partition": number}
                for i in range(start, start + each)
                for number in range(partitions)
            ],
        )

    def settings(
        self, topic: str, group: str | None = None, start: str = "earliest", **more: Any
    ) -> Settings:
        kafka = {"bootstrap.servers": self.bootstrap, "group.id": group or unique("group")}
        kafka |= more.pop("kafka", {})
        document = {
            "name": "test",
            "input": {"topics": [topic], "format": "json", "start": start},
            "model": {"path": "model.onnx"},
            "output": {"topic": more.pop("output", "out"), **more.pop("output_options", {})},
            "dead_letter": {"topic": more.pop("dead_letter", "dead")},
            "kafka": kafka,
            **more,
        }
        return validate(document, Path.cwd())

    def reading(self, topic: str, listener: Recorder | None = None, **settings: Any) -> Reading:
        """A subscribed source of the topic; the caller closes it."""
        return Reading(open_source(self.settings(topic, **settings), self.embedded is not None), listener)


@dataclass
class Recorder:
    """A listener that writes down what it hears."""

    events: list[tuple[str, list[Partition]]] = field(default_factory=list)
    on_leaving: Callable[[list[Partition]], None] = lambda partitions: None

    def on_assign(self, partitions: list[Partition]) -> None:
        self.events.append(("assign", partitions))

    def on_revoke(self, partitions: list[Partition]) -> None:
        self.on_leaving(partitions)
        self.events.append(("revoke", partitions))

    def on_lost(self, partitions: list[Partition]) -> None:
        self.events.append(("lost", partitions))


class Reading:
    """A source and everything it has returned so far."""

    def __init__(self, source: Any, listener: Recorder | None = None) -> None:
        self.source = source
        self.listener = listener or Recorder()
        self.columns = Columns()
        source.subscribe(self.listener)

    def take(self, timeout_s: float = 0.1, most: int = 500, wanted_bytes: int = 1 << 22) -> list[Span]:
        columns, spans = self.source.take(timeout_s, most, wanted_bytes)
        self.columns.extend(columns)
        return spans

    def patience(self) -> Callable[[], bool]:
        """Whether to wait any longer, asked before each take."""
        deadline = time.monotonic() + PATIENCE_S
        return lambda: time.monotonic() < deadline

    def take_until(self, condition: Callable[[], Any], what: str, **bounds: int) -> None:
        """Take, with these bounds of each take, until the condition holds."""
        waiting = self.patience()
        while not condition():
            assert waiting(), f"waited in vain for {what}"
            self.take(**bounds)

    def take_records(self, count: int) -> None:
        self.take_until(lambda: len(self.columns) >= count, f"{count} records, there are {len(self.columns)}")

    def join(self) -> None:
        self.take_until(self.source.assignment, "an assignment")

    def by_partition(self) -> dict[int, list[bytes | None]]:
        found: dict[int, list[bytes | None]] = defaultdict(list)
        for partition, value in zip(self.columns.partitions, self.columns.values, strict=True):
            found[partition.number].append(value)
        return dict(found)

    def positions(self) -> dict[Partition, int]:
        """Behind the last record of each partition, as a worker that is done with all of them commits it."""
        return {p: o + 1 for p, o in zip(self.columns.partitions, self.columns.offsets, strict=True)}


@contextmanager
def reading(settings: Settings, embedded: bool, listener: Recorder | None = None) -> Iterator[Reading]:
    """A subscribed source that leaves its group at the end."""
    source = open_source(settings, embedded)
    try:
        yield Reading(source, listener)
    finally:
        source.close(10.0)
