"""New versions of a model while records come: each record is answered once, in order, by the version that its result names."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import orjson
import pytest
from confluent_kafka import Producer
from onnx import helper
from stream import SENT, Worker, create_topics, read_all, unique, wait_for, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

KEYS = 8
BURST, PAUSE_S = 50, 0.02
"""About 2,500 records a second."""


class Stream:
    """Sends numbered records until it is stopped: the key is one of a few, the value 4 times the number."""

    def __init__(self, kafka: str, topic: str) -> None:
        self.sent = 0
        self._kafka, self._topic = kafka, topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.sent

    def _run(self) -> None:
        producer = Producer({"bootstrap.servers": self._kafka, "linger.ms": 5})
        while not self._stop.wait(PAUSE_S):
            for _ in range(BURST):
                value = b'{"features": [%d, 0, 0, 0]}' % self.sent
                producer.produce(self._topic, value, b"k%d" % (self.sent % KEYS))
                self.sent += 1
            producer.poll(0)
        assert producer.flush(30) == 0
        SENT[self._topic] += self.sent


class Place:
    """A worker with a repository, and its topics."""

    def __init__(self, kafka: str, folder: Path, **more: object) -> None:
        self.kafka = kafka
        self.models = folder / "models" / "shift"
        self.source, self.results, letters = (unique(name) for name in ("swap-in", "swap-out", "swap-dead"))
        create_topics(kafka, {self.source: 2, self.results: 2, letters: 1})
        self.put(1)
        self.config = write_config(
            folder,
            {
                "name": "swap",
                "input": {"topics": [self.source], "format": "json"},
                "model": {"repository": "models", "name": "shift", "poll_s": 0.2},
                "output": {"topic": self.results},
                "dead_letter": {"topic": letters},
                "kafka": {"bootstrap.servers": kafka, "group.id": unique("swap")},
                **more,
            },
        )

    def put(self, version: int, model: bytes | None = None) -> None:
        """A version that adds its number; renamed into place with its checksum."""
        model = shifted(version) if model is None else model
        folder = self.models / f".{version}.part"
        folder.mkdir(parents=True)
        models.write(folder, model)
        (folder / "model.sha256").write_text(hashlib.sha256(model).hexdigest())
        folder.rename(self.models / str(version))

    def judge(self, sent: int) -> list[int]:
        """Every record is answered once, in order, by the version it names; returns the versions that answered."""
        places: dict[bytes, list[int]] = {}
        versions: dict[int, list[int]] = {}
        for message in read_all(self.kafka, self.results):
            result = orjson.loads(message.value())
            version = int(result["model"]["version"])
            number = round(result["prediction"]["outputs"]["y"][0]) - version
            assert result["prediction"]["outputs"]["y"][1:] == [version] * 3, result
            places.setdefault(message.key(), []).append(number)
            versions.setdefault(message.partition(), []).append(version)
        assert sorted(number for each in places.values() for number in each) == list(range(sent))
        assert all(each == sorted(each) for each in places.values()), "a key's results are not in order"
        assert all(each == sorted(each) for each in versions.values()), (
            "an older version answered after a newer one"
        )
        return sorted({version for each in versions.values() for version in each})


def shifted(by: int) -> bytes:
    """y = x + by."""
    return models.build(
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", np.float32, ("N", 4))],
        [models.tensor("y", np.float32, ("N", 4))],
        {"by": np.float32(by)},
    )


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


def answers_with(worker: Worker, version: int) -> None:
    wait_for(
        lambda: f'"model": "shift@{version}"' in answering(worker), f"version {version}:\n{worker.text()}"
    )


def answering(worker: Worker) -> str:
    return "\n".join(line for line in worker.text().splitlines() if "another model version answers" in line)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_versions_change_under_a_stream(
    kafka: str, tmp_path: Path, started: list[Worker], delivery: str
) -> None:
    """Five versions, two of them bad, while records come: none is lost, doubled or out of order, and each result is what
    the version that it names answers."""
    place = Place(kafka, tmp_path, delivery=delivery)
    worker = Worker.start(place.config)
    started.append(worker)
    worker.wait_ready()
    with Stream(kafka, place.source) as stream:
        place.put(2)
        answers_with(worker, 2)
        for version, bad in ((3, b"not a model"), (4, models.identity(shape=("N", 7)))):
            place.put(version, bad)
            refused = f'"version": "{version}"'
            wait_for(lambda refused=refused: refused in worker.text(), f"the refusal of version {version}")
        place.put(5)
        answers_with(worker, 5)
        sent = stream.stop()
    wait_for_outputs(kafka, [place.results], sent, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert place.judge(sent) == [1, 2, 5]
    assert re.search(
        r'"reason": "unloadable".*"version": "3"|"version": "3".*"reason": "unloadable"', worker.text()
    )


GROWS = """
import os
import worker.model.headroom as headroom
GROWN, real = {marker!r}, headroom.resident_bytes
fresh = os.path.exists(GROWN)
headroom.resident_bytes = lambda: real() + (0 if fresh or not os.path.exists(GROWN) else 100 << 30)
"""
"""Python runs it at its start: memory that grows at the first change of the version, and is gone in the next process."""


def test_a_process_that_keeps_memory_is_followed_by_a_fresh_one(
    kafka: str, tmp_path: Path, started: list[Worker]
) -> None:
    """A replica that does not give the memory of old versions back drains and says so; a fresh one goes on at once, and
    every record is answered once and in order."""
    place = Place(kafka, tmp_path)
    marker = tmp_path / "grown"
    (tmp_path / "sitecustomize.py").write_text(GROWS.format(marker=str(marker)))
    worker = Worker.start(place.config, "--replicas", "1", env={"PYTHONPATH": str(tmp_path)})
    started.append(worker)
    worker.wait_ready()
    with Stream(kafka, place.source) as stream:
        marker.touch()
        place.put(2)
        wait_for(
            lambda: "replica recycled itself" in worker.text(), f"the end of the replica:\n{worker.text()}"
        )
        wait_for(lambda: worker.text().count('"assigned"') > 1, f"the fresh replica:\n{worker.text()}")
        place.put(3)
        answers_with(worker, 3)
        sent = stream.stop()
    wait_for_outputs(kafka, [place.results], sent, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert place.judge(sent) == [1, 2, 3]
    assert "MiB are in use after a change of the model's version" in worker.text()


@pytest.mark.slow
def test_a_hundred_swaps_leave_memory_as_it_was(kafka: str, tmp_path: Path, started: list[Worker]) -> None:
    """After a hundred swaps under a stream the process takes at most 5 % more memory than after the second one."""
    place = Place(kafka, tmp_path)
    worker = Worker.start(place.config)
    started.append(worker)
    worker.wait_ready()
    resident: list[int] = []
    with Stream(kafka, place.source) as stream:
        for version in range(2, 102):
            place.put(version)
            answers_with(worker, version)
            statm = Path(f"/proc/{worker.process.pid}/statm").read_text()
            resident.append(int(statm.split()[1]))
        sent = stream.stop()
    wait_for_outputs(kafka, [place.results], sent, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert place.judge(sent)[-1] == 101
    assert resident[-1] <= 1.05 * max(resident[:5]), resident
