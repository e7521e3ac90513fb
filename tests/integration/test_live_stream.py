"""`input.keep: latest` as a process: cameras faster than their model are answered by their newest frames."""

from __future__ import annotations

from pathlib import Path

import models
import orjson
import pytest
from stream import Worker, create_topics, place_of, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

CAMERAS = 4
CUSTOM_CODE = """
import pathlib
import time

import numpy as np

HERE = pathlib.Path(__file__).parent

def decode(value, headers):
    if value == b"0":
        (HERE / "busy").touch()
        while not (HERE / "free").exists():
            time.sleep(0.01)
    return {"x": np.full(4, float(value), np.float32)}
"""


@pytest.mark.timeout(100)
def test_the_newest_frames_are_answered(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """At least once: 4 cameras send 300 frames each while the model is busy with one; each gets its newest, in order."""
    names = unique("in"), unique("out"), unique("dead")
    for topic in names:
        embedded_broker.create_topic(topic, 2)
    check_live(embedded_broker.bootstrap, tmp_path, *names)


@pytest.mark.kafka
@pytest.mark.timeout(100)
def test_the_newest_frames_are_answered_in_transactions(kafka: str, tmp_path: Path) -> None:
    """Exactly once: the same, with the positions of the frames that were left out in the transaction of the newest."""
    names = unique("in"), unique("out"), unique("dead")
    create_topics(kafka, dict.fromkeys(names, 2))
    check_live(kafka, tmp_path, *names, delivery="exactly_once")


def check_live(
    bootstrap: str, tmp_path: Path, source: str, output: str, letters: str, delivery: str = "at_least_once"
) -> None:
    models.write(tmp_path, models.identity())
    (tmp_path / "camera.py").write_text(CUSTOM_CODE)
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [source], "format": "camera:decode", "keep": "latest"},
            "model": {"path": "model.onnx", "threads": 1},
            "batching": {"max_size": 16},
            "output": {"topic": output, "partition": "input"},
            "dead_letter": {"topic": letters},
            "metrics": {"http": "127.0.0.1:0"},
            "delivery": delivery,
            "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config)
    try:
        worker.wait_ready()
        produce(bootstrap, source, [frame(0, 0)])
        wait_for((tmp_path / "busy").exists, "the model to be busy")
        sent = produce(bootstrap, source, [frame(n % CAMERAS, 1 + n) for n in range(300 * CAMERAS)])
        newest = {record.key: (record.partition, record.offset) for record in sent}
        (tmp_path / "free").touch()
        wait_for(
            lambda: set(newest.values()) <= {place_of(m) for m in read_all(bootstrap, output)},
            f"the newest frames: {worker.text()}",
        )
        found = read_all(bootstrap, output)
        places = [place_of(message) for message in found]
        assert len(set(places)) == len(places)
        assert len(places) <= 60, "frames were answered that newer ones had taken the place of"
        for partition in range(2):
            offsets = [offset for number, offset in places if number == partition]
            assert offsets == sorted(offsets)
        assert read_all(bootstrap, letters) == []
        assert all(orjson.loads(message.value())["prediction"] for message in found)
        code, _ = worker.stop()
        assert code == 0
        assert f'"dropped": {len(sent) + 1 - len(places)}' in worker.text()
    finally:
        worker.kill()


def frame(camera: int, number: int) -> dict[str, object]:
    return {"value": b"%d" % number, "key": b"camera-%d" % camera, "partition": camera % 2}
