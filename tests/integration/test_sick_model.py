"""A model that fails its own warm-up input is sick: nothing is blamed on any record, the process ends with 7."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from stream import Worker, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

OWN_CODE = """
import numpy as np

def decode(value, headers):
    if value == b"break the model":
        from worker.model.session import Session

        def broken(self, feeds):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

        Session.run = broken
    return {"x": np.full(4, len(value), np.float32)}
"""


@pytest.mark.timeout(60)
def test_a_sick_model_costs_no_record(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Exit 7 with one sentence; what was answered before stays, nothing is dead-lettered."""
    source, output, letters = unique("in"), unique("out"), unique("dead")
    for topic in (source, output, letters):
        embedded_broker.create_topic(topic, 1)
    models.write(tmp_path, models.identity())
    (tmp_path / "own_sick.py").write_text(OWN_CODE)
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [source], "format": "own_sick:decode"},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": output},
            "dead_letter": {"topic": letters},
            "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config)
    try:
        worker.wait_ready()
        produce(embedded_broker.bootstrap, source, [{"value": b"fine"}] * 20)
        wait_for(lambda: len(read_all(embedded_broker.bootstrap, output)) == 20, "the good records")
        produce(embedded_broker.bootstrap, source, [{"value": b"break the model"}, {"value": b"fine"}])
        wait_for(lambda: worker.process.poll() is not None, f"the end of the worker: {worker.text()}")
    finally:
        worker.kill()
    assert worker.process.returncode == 7, worker.text()
    last = worker.text().strip().splitlines()[-1]
    assert last.startswith("streaminfer: model model is sick"), worker.text()
    assert "Traceback" not in worker.text()
    assert read_all(embedded_broker.bootstrap, letters) == []
    assert len(read_all(embedded_broker.bootstrap, output)) == 20
