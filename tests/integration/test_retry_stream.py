"""`worker.Retry`: a service that is away for a while costs no record, no order and no other partition's time."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from stream import Worker, create_topics, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

CUSTOM_CODE = """
import pathlib

import numpy as np
import worker

HERE = pathlib.Path(__file__).parent

def decode(value, headers):
    if value == b"wait" and not (HERE / "service").exists():
        (HERE / "asked").touch()
        raise worker.Retry("the service is away", after_s=0.05)
    return {"x": np.full(4, len(value), np.float32)}
"""


@pytest.mark.timeout(100)
def test_a_service_that_is_away_costs_no_record(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """A record whose custom code asks for a retry holds its partition; the other partition goes on; order is kept."""
    names = unique("in"), unique("out"), unique("dead")
    for topic in names:
        embedded_broker.create_topic(topic, 2)
    check_away(embedded_broker.bootstrap, tmp_path, *names)


@pytest.mark.timeout(100)
def test_a_service_that_is_away_costs_no_record_in_transactions(kafka: str, tmp_path: Path) -> None:
    """With `delivery: exactly_once` a held record keeps no transaction open: the other partition's results are committed."""
    names = unique("in"), unique("out"), unique("dead")
    create_topics(kafka, dict.fromkeys(names, 2))
    check_away(kafka, tmp_path, *names, delivery="exactly_once")


def check_away(
    bootstrap: str, tmp_path: Path, source: str, output: str, letters: str, delivery: str = "at_least_once"
) -> None:
    models.write(tmp_path, models.identity())
    (tmp_path / "away.py").write_text(CUSTOM_CODE)
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [source], "format": "away:decode"},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": output, "partition": "input"},
            "dead_letter": {"topic": letters},
            "delivery": delivery,
            "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config)
    try:
        worker.wait_ready()
        produce(bootstrap, source, [{"value": b"wait", "partition": 0}])
        wait_for((tmp_path / "asked").exists, "the first try")
        produce(bootstrap, source, [{"value": b"x", "partition": n % 2} for n in range(20)])
        wait_for(lambda: len(read_all(bootstrap, output)) == 10, f"the other partition: {worker.text()}")
        assert {message.partition() for message in read_all(bootstrap, output)} == {1}
        (tmp_path / "service").touch()
        wait_for(lambda: len(read_all(bootstrap, output)) == 21, f"the held partition: {worker.text()}")
        held = [m.value() for m in read_all(bootstrap, output) if m.partition() == 0]
        assert [b"[4.0,4.0,4.0,4.0]" in value for value in held] == [True] + [False] * 10
        assert read_all(bootstrap, letters) == []
        code, _ = worker.stop()
        assert code == 0
    finally:
        worker.kill()
