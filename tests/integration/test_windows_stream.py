"""Windows over records as processes on a real Kafka: kill -9 and hand-overs change no window."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import orjson
import pytest
from stream import Sent, Worker, create_topics, produce, read_all, unique, wait_for, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

SIZE, HOP, PARTITIONS = 8, 3, 3


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.kill()


def expected(sent: list[Sent]) -> dict[Any, Any]:
    """(partition, offset) of the last record of each complete window -> the window."""
    found, series = {}, defaultdict(list)
    for record in sorted(sent, key=lambda s: (s.partition, s.offset)):
        if record.value == b"no sample":
            continue
        samples = series[record.partition, record.key]
        samples.append(orjson.loads(record.value or b"")["features"])
        if len(samples) == SIZE:
            found[record.partition, record.offset] = [*samples]
            del samples[:HOP]
    return found


@pytest.mark.parametrize("delivery", [pytest.param("at_least_once", marks=pytest.mark.slow), "exactly_once"])
def test_windows_survive_kill_9(kafka: str, tmp_path: Path, workers: list[Worker], delivery: str) -> None:
    """Replicas are killed and started: each complete window has its result with its own samples, and nothing else has one."""
    topics = {unique("in"): PARTITIONS, unique("out"): 2, unique("dead"): 1}
    samples, results, letters = topics
    create_topics(kafka, topics)
    models.write(tmp_path, models.identity(shape=("N", SIZE, 2)))
    config = write_config(
        tmp_path,
        {
            "name": "windows",
            "input": {"topics": [samples], "format": "json", "window": {"size": SIZE, "hop": HOP}},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": results},
            "dead_letter": {"topic": letters},
            "delivery": delivery,
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("group"), "session.timeout.ms": 6000},
        },
    )
    rng = random.Random(5)
    records = [
        {
            "key": f"machine-{rng.randrange(40)}".encode(),
            "value": orjson.dumps({"features": [i, rng.random()]}),
        }
        for i in range(4_000)
    ]
    records[::200] = [{**record, "value": b"no sample"} for record in records[::200]]
    sent: list[Sent] = []
    workers += [Worker.start(config), Worker.start(config)]
    for worker in workers:
        worker.wait_ready()
    for part in np.array_split(np.arange(len(records)), 2):
        sent += produce(kafka, samples, [records[i] for i in part])
        victim = rng.choice([worker for worker in workers if worker.process.poll() is None])
        victim.kill()
        workers.append(Worker.start(config))
    wanted = expected(sent)
    assert len(wanted) > 1_000

    def found() -> dict[Any, list[Any]]:
        seen: dict[Any, list[Any]] = defaultdict(list)
        for message in read_all(kafka, results):
            result = orjson.loads(message.value() or b"")
            place = result["source"]["partition"], result["source"]["offset"]
            seen[place].append(result["prediction"]["outputs"]["y"])
        return seen

    wait_for(lambda: found().keys() >= wanted.keys(), "every window", 120)
    for worker in workers:
        if worker.process.poll() is None:
            assert worker.stop()[0] == 0, worker.text()
    seen = found()
    assert seen.keys() == wanted.keys()
    for place, window in wanted.items():
        assert all(np.array_equal(np.float32(one), np.float32(window)) for one in seen[place]), place
    buried = {
        (m.value(), dict(m.headers() or [])["streaminfer.error.reason"]) for m in read_all(kafka, letters)
    }
    assert buried == {(b"no sample", b"undecodable")}
    if delivery == "exactly_once":
        assert {len(each) for each in seen.values()} == {1}
