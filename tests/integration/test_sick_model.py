"""A model that fails its own warm-up input is sick: nothing is blamed on any record, the process ends with 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import models
import pytest
from stream import Worker, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

OWN_CODE = """
import numpy as np

from worker.serving import checkup

checkup.EVERY_S = 0.2  # a minute is long for a test

def decode(value, headers):
    if value == b"break the model":
        from worker.model.plain import PlainSession

        def broken(self, feeds):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

        PlainSession.run = broken
    if value == b"give zeros":
        from worker.model.plain import PlainSession
        run = PlainSession.run
        PlainSession.run = lambda self, feeds: {name: 0 * y for name, y in run(self, feeds).items()}
    return {"x": np.full(4, len(value), np.float32)}
"""


@pytest.fixture
def scene(embedded_broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Scene]:
    """A worker with custom code that can break its model, ready to answer."""
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
        yield Scene(worker, embedded_broker.bootstrap, source, output, letters)
    finally:
        worker.kill()


@dataclass(frozen=True)
class Scene:
    worker: Worker
    bootstrap: str
    source: str
    output: str
    letters: str

    def send(self, *values: bytes) -> None:
        produce(self.bootstrap, self.source, [{"value": value} for value in values])

    def results(self) -> int:
        return len(read_all(self.bootstrap, self.output))

    def check_end(self) -> None:
        """The process ended with 7 and one sentence, and nothing is dead-lettered."""
        text = self.worker.text()
        assert self.worker.process.returncode == 7, text
        last = text.strip().splitlines()[-1]
        assert last.startswith("streaminfer: model model is sick"), text
        assert "Traceback" not in text
        assert read_all(self.bootstrap, self.letters) == []


@pytest.mark.timeout(60)
def test_a_sick_model_costs_no_record(scene: Scene) -> None:
    """A model whose runs fail, its canary too, ends the process with 7; earlier answers stay, nothing is dead-lettered."""
    scene.send(*[b"fine"] * 20)
    wait_for(lambda: scene.results() == 20, "the good records")
    scene.send(b"break the model", b"fine")
    wait_for(lambda: scene.worker.process.poll() is not None, "the end of the worker")
    scene.check_end()
    assert scene.results() == 20


@pytest.mark.timeout(60)
def test_a_model_that_gives_zeros_ends_the_process(scene: Scene) -> None:
    """A model that goes wrong without an error ends the process with 7 once its canary has run by the clock."""
    scene.send(*[b"fine"] * 20)
    wait_for(lambda: scene.results() == 20, "the good records")
    scene.send(b"give zeros")

    def ended() -> bool:
        scene.send(b"fine")
        return scene.worker.process.poll() is not None

    wait_for(ended, "the end of the worker")
    scene.check_end()
