"""Traces of running workers: every span that a result names is there, and every span is counted."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from otlp_receiver import Receiver, attributes, receiver
from stream import (
    Worker,
    create_topics,
    produce,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)

from worker.kafka.broker import EmbeddedBroker

FINE, BAD = b'{"features": [1, 2, 3, 4]}', b'{"features": [1]}'


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def records(count: int) -> list[dict[str, Any]]:
    """Every third one sampled, every third one with a trace that is not; every tenth one bad."""
    made = []
    for number in range(count):
        made.append({"value": BAD if number % 10 == 7 else FINE, "key": b"%d" % number})
        if number % 3:
            context = f"00-{number + 1:032x}-{number + 1:016x}-{number % 3 - 1:02x}"
            made[-1]["headers"] = [("traceparent", context.encode())]
    return made


def counted(port: int) -> dict[str, int]:
    """``streaminfer_spans_total`` by outcome."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^streaminfer_spans_total\{outcome="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {outcome: int(float(value)) for outcome, value in found}


def context_of(message: Any) -> bytes | None:
    return dict(message.headers() or []).get("traceparent")


def test_a_worker_sends_the_spans_that_its_results_name(
    embedded_broker: EmbeddedBroker, tmp_path: Path, collector: Receiver, started: list[Worker]
) -> None:
    """Of 60 records 20 are sampled: the spans of these arrive with the service's name, results name theirs, others keep
    what they came with, and the metric counts what arrived; what waits at SIGTERM arrives, too."""
    source, out, dead, port = unique("in"), unique("out"), unique("dead"), free_port()
    for name in (source, out, dead):
        embedded_broker.create_topic(name, 2)
    models.write(tmp_path, models.identity())
    config = write_config(
        tmp_path,
        {
            "name": "traced",
            "input": {"topics": [source], "format": "json"},
            "model": {"path": "model.onnx"},
            "output": {"topic": out},
            "dead_letter": {"topic": dead, "stop_after": "off"},
            "metrics": {"http": f"127.0.0.1:{port}"},
            "tracing": {},
            "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
        },
    )
    worker = Worker.start(
        config, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "shop"}
    )
    started.append(worker)
    worker.wait_ready()
    produce(embedded_broker.bootstrap, source, records(60))
    wait_for(lambda: len(collector.named("process")) == 20, "the spans of 20 records")
    wait_for(lambda: counted(port)["sent"] == len(collector.spans), "their count")
    produce(embedded_broker.bootstrap, source, records(60))
    wait_for_outputs(embedded_broker.bootstrap, [out, dead], 120, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert len(collector.named("process")) == 40
    assert collector.resource["service.name"] == "shop"
    assert collector.resource["service.instance.id"].startswith("traced-")
    sent = {f"00-{each.trace_id.hex()}-{each.span_id.hex()}-01".encode() for each in collector.named("send")}
    results = read_all(embedded_broker.bootstrap, out)
    assert len(results) == 108
    for message in results:
        number = int(message.key())
        if number % 3 == 2:
            assert context_of(message) in sent
        else:
            given = dict(records(60)[number].get("headers", [])).get("traceparent")
            assert context_of(message) == given
    failed = [each for each in collector.named("process") if each.status.code]
    assert len(failed) == 4
    assert {attributes(each)["error.type"] for each in failed} == {"invalid"}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_replicas_trace_each_record_of_each_pipeline_once(
    kafka: str, tmp_path: Path, collector: Receiver, started: list[Worker], delivery: str
) -> None:
    """Two replicas with two pipelines in both delivery modes: every sampled record has one process span, and every
    result of one names a send span in its trace."""
    sources, out, dead = [unique("one"), unique("two")], unique("out"), unique("dead")
    create_topics(kafka, {sources[0]: 4, sources[1]: 4, out: 4, dead: 2})
    models.write(tmp_path, models.identity())
    pipelines = {
        name: {
            "input": {"topics": [topic], "format": "json"},
            "model": {"path": "model.onnx"},
            "output": {"topic": out},
        }
        for name, topic in zip(("one", "two"), sources, strict=True)
    }
    config = write_config(
        tmp_path,
        {
            "name": "traced",
            "pipelines": pipelines,
            "delivery": delivery,
            "dead_letter": {"topic": dead, "stop_after": "off"},
            "tracing": {"otlp": collector.url, "max_per_s": 100_000},
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config, "--replicas", "2", env={**os.environ})
    started.append(worker)
    wait_for(lambda: worker.text().count('"assigned"') >= 2, "both replicas")
    for topic in sources:
        produce(kafka, topic, records(3000))
    wait_for_outputs(kafka, [out, dead], 6000, [worker])
    assert worker.stop()[0] == 0, worker.text()
    traced = Counter(
        (
            its["streaminfer.pipeline"],
            its["messaging.destination.partition.id"],
            its["messaging.kafka.offset"],
        )
        for its in map(attributes, collector.named("process"))
    )
    assert len(traced) == 2000
    assert set(traced.values()) == {1}
    sent = {f"00-{each.trace_id.hex()}-{each.span_id.hex()}-01".encode() for each in collector.named("send")}
    carried = [context_of(message) for message in read_all(kafka, out) if int(message.key()) % 3 == 2]
    assert len(carried) == 1800
    assert set(carried) <= sent
    assert len(set(carried)) == 1800
    assert len({attributes(each)["messaging.client.id"] for each in collector.named("process")}) == 2
