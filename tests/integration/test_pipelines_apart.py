"""A slow and a quick pipeline in one worker, on topics of their own: the quick one's records never wait for a slow step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import models
import orjson
import pytest
from confluent_kafka import Producer
from stream import Worker, create_topics, produce, read_all, unique, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

CUSTOM_CODE = """
import time
import numpy as np

def decode(value, headers):
    time.sleep({step_s})
    return {{"x": np.zeros(4, np.float32)}}
"""
RATE = 100
"""Records of the quick pipeline in a second."""
PHASE_S = 5.0


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("step_s", [0.05, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_slow_pipeline_does_not_move_the_latency_of_a_quick_one(
    kafka: str, tmp_path: Path, started: list[Worker], step_s: float
) -> None:
    """With a backlog of records of 50 ms (or 300 ms) each on one topic, nine of ten records of the other topic are
    answered in less time than one such step takes, or about as quickly as without the backlog."""
    slow, quick, slow_out, quick_out, letters = (
        unique(name) for name in ("slow", "quick", "slow-out", "quick-out", "dead")
    )
    create_topics(kafka, dict.fromkeys((slow, quick, slow_out, quick_out, letters), 1))
    models.write(tmp_path, models.identity(), "slow.onnx")
    models.write(tmp_path, models.mlp(), "quick.onnx")
    (tmp_path / "slow_code.py").write_text(CUSTOM_CODE.format(step_s=step_s))
    config = {
        "pipelines": {
            "slow": {
                "input": {"topics": [slow], "format": "slow_code:decode"},
                "model": {"path": "slow.onnx", "instances": 1},
                "batching": {"max_size": 16, "max_wait_ms": 200},
                "output": {"topic": slow_out},
            },
            "quick": {
                "input": {"topics": [quick], "format": "json"},
                "model": {"path": "quick.onnx"},
                "batching": {"max_size": 32, "max_wait_ms": 5},
                "output": {"topic": quick_out},
            },
        },
        "dead_letter": {"topic": letters},
        "limits": {"drain_s": 60},
        "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
    }
    worker = Worker.start(write_config(tmp_path, config), env={"PYTHONPATH": str(tmp_path)})
    started.append(worker)
    worker.wait_ready()
    send_steadily(kafka, quick, "alone")
    wait_for_outputs(kafka, [quick_out], int(RATE * PHASE_S), [worker])
    backlog = int(4 * PHASE_S / step_s)
    produce(kafka, slow, [{"value": b"x"}] * backlog)
    wait_for_outputs(kafka, [slow_out], 1, [worker])
    send_steadily(kafka, quick, "beside")
    wait_for_outputs(kafka, [quick_out], int(2 * RATE * PHASE_S), [worker])
    answers = len(read_all(kafka, slow_out))
    assert answers < backlog, "the slow pipeline was done before the quick one was measured"
    totals: dict[str, list[float]] = {"alone": [], "beside": []}
    for message in read_all(kafka, quick_out):
        totals[message.key().decode()].append(orjson.loads(message.value())["latency_ms"]["total"])
    alone, beside = (quantiles(totals[name], n=10)[-1] for name in ("alone", "beside"))
    assert beside < max(step_s * 1000, 2 * alone), (alone, beside)


def send_steadily(kafka: str, topic: str, key: str) -> None:
    """One phase of records of the quick pipeline, at their rate."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
    value = orjson.dumps({"features": [0.1] * 20})
    begun, pause = time.monotonic(), threading.Event()
    for number in range(int(RATE * PHASE_S)):
        pause.wait(max(0.0, begun + number / RATE - time.monotonic()))
        producer.produce(topic, value, key)
        producer.poll(0)
    assert producer.flush(30) == 0
