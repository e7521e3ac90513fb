"""Several models for one record, through a worker process: every record once, in order, a poisonous one as one dead letter."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from stream import Worker, create_topics, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

RECORDS = 600
POISON = 0.25


@pytest.fixture(
    params=[
        ("embedded", "at_least_once"),
        pytest.param(("kafka", "at_least_once"), marks=[pytest.mark.kafka, pytest.mark.slow]),
        pytest.param(("kafka", "exactly_once"), marks=[pytest.mark.kafka, pytest.mark.slow]),
    ],
    ids=lambda param: "-".join(param),
)
def place(request: pytest.FixtureRequest) -> tuple[str, str, list[str]]:
    """The address of a broker, a guarantee, and four topics with two partitions each."""
    topics = [unique(name) for name in ("in", "out", "dead", "metrics")]
    kind, delivery = request.param
    if kind == "kafka":
        bootstrap: str = request.getfixturevalue("kafka")
        create_topics(bootstrap, dict.fromkeys(topics, 2))
        return bootstrap, delivery, topics
    broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
    for topic in topics:
        broker.create_topic(topic, 2)
    return broker.bootstrap, delivery, topics


@pytest.mark.timeout(100)
def test_a_cascade_loses_and_reorders_nothing(place: tuple[str, str, list[str]], tmp_path: Path) -> None:
    """Records that go to one model and to two come out in their order; the second model's poison costs one dead letter."""
    bootstrap, delivery, (source, output, letters, metrics) = place
    models.write(tmp_path, models.identity(), "small.onnx")
    models.write(tmp_path, models.raises_on(POISON), "large.onnx")
    config = write_config(
        tmp_path,
        {
            "name": "cascade",
            "input": {"topics": [source], "format": "json"},
            "steps": [
                {"name": "small", "model": {"path": "small.onnx"}, "postprocess": "classification"},
                {
                    "name": "large",
                    "when": {"small.score": {"below": 0.5}},
                    "model": {"path": "large.onnx"},
                    "postprocess": "classification",
                },
            ],
            "output": {"topic": output, "partition": "input"},
            "dead_letter": {"topic": letters},
            "metrics": {"topic": metrics, "interval_s": 0.2},
            "delivery": delivery,
            "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config)
    try:
        worker.wait_ready()
        scores = [0.1 if n % 5 == 0 else 0.9 for n in range(RECORDS)]
        scores[300] = POISON
        values = [
            json.dumps({"features": [score, 0, 0, n % 3 / 100]}).encode() for n, score in enumerate(scores)
        ]
        produce(
            bootstrap,
            source,
            [{"value": value, "partition": n % 2} for n, value in enumerate(values)],
        )
        wait_for(lambda: len(read_all(bootstrap, output)) == RECORDS - 1, f"results: {worker.text()}")
        code, _ = worker.stop()
        assert code == 0
        found = [
            (message.partition(), json.loads(message.value())) for message in read_all(bootstrap, output)
        ]
        for number in range(2):
            offsets = [result["source"]["offset"] for partition, result in found if partition == number]
            assert offsets == sorted(set(offsets))
        assert sum("large" in result["prediction"] for _, result in found) == RECORDS // 5 - 1
        [letter] = read_all(bootstrap, letters)
        assert letter.value() == values[300]
        said = {name: (value or b"").decode() for name, value in letter.headers()}
        assert said["__connect.errors.stage"] == "infer"
        assert said["__connect.errors.exception.message"].startswith("step large: ")
        assert said["streaminfer.model"].startswith("cascade@")
        told = [
            json.loads(message.value())["pipelines"]["cascade"] for message in read_all(bootstrap, metrics)
        ]
        items = [
            sum(each.get("steps", {}).get(step, {}).get("items", 0) for each in told)
            for step in ("small", "large")
        ]
        assert items == [RECORDS, RECORDS // 5 - 1]
    finally:
        worker.kill()
