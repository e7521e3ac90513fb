"""Clips through a worker process: sent whole, decoded on two threads at once, answered picture by picture in order."""

from __future__ import annotations

from pathlib import Path

import models
import orjson
import pytest
from clips import moving, write_clip
from stream import Worker, place_of, produce, read_all, unique, wait_for, write_config

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker


@pytest.mark.timeout(100)
def test_clips_are_answered_in_order(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Each clip has a prediction for each half second, equal for equal clips; a broken one is a dead letter beside them."""
    source, output, letters = unique("in"), unique("out"), unique("dead")
    for topic in (source, output, letters):
        embedded_broker.create_topic(topic, 1)
    models.write(tmp_path, models.image(size=None))
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [source], "format": "video"},
            "preprocess": {"video": {"fps": 2}, "image": {"size": [28, 28], "scale": 1 / 255}},
            "model": {"path": "model.onnx", "threads": 2, "instances": 2},
            "output": {"topic": output},
            "dead_letter": {"topic": letters},
            "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
        },
    )
    clips = [write_clip(moving(count)) for count in (5, 25, 40)]
    worker = Worker.start(config)
    try:
        worker.wait_ready()
        values = [*clips, clips[1][:-20], *clips, clips[2]]
        produce(embedded_broker.bootstrap, source, [{"value": value} for value in values])
        wait_for(
            lambda: len(read_all(embedded_broker.bootstrap, output)) == 7, f"the results: {worker.text()}"
        )
        found = read_all(embedded_broker.bootstrap, output)
        assert [place_of(message)[1] for message in found] == [0, 1, 2, 4, 5, 6, 7]
        predictions = [orjson.loads(message.value())["predictions"] for message in found]
        assert [len(entries) for entries in predictions] == [1, 5, 8, 1, 5, 8, 8]
        assert [entry["time_s"] for entry in predictions[1]] == [0, 0.5, 1, 1.5, 2]
        assert predictions[:3] == predictions[3:6]
        (letter,) = read_all(embedded_broker.bootstrap, letters)
        assert dict(letter.headers())["streaminfer.error.reason"] == b"undecodable"
        code, _ = worker.stop()
        assert code == 0
    finally:
        worker.kill()


def test_a_clip_is_sent_whole(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    """`produce --raw` sends a clip as one record, byte for byte; without it each frame is a picture of its own."""
    clip = write_clip(moving(6))
    (tmp_path / "door.mp4").write_bytes(clip)
    whole, frames = unique("whole"), unique("frames")
    for topic in (whole, frames):
        embedded_broker.create_topic(topic, 1)
    server = ["--bootstrap", embedded_broker.bootstrap]
    assert main(["produce", str(tmp_path / "door.mp4"), "--topic", whole, "--raw", *server]) == 0
    assert main(["produce", str(tmp_path / "door.mp4"), "--topic", frames, *server]) == 0
    assert [message.value() for message in read_all(embedded_broker.bootstrap, whole)] == [clip]
    pictures = [message.value() for message in read_all(embedded_broker.bootstrap, frames)]
    assert len(pictures) == 6
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures)
