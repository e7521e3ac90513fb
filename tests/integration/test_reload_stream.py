"""The configuration changes under a stream: each record is answered once, in order, by the model that its result names."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from stream import Worker, create_topics, read_all, unique, wait_for, wait_for_outputs, write_config
from test_model_swap import Stream, shifted

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

MODELS = {hashlib.sha256(shifted(by)).hexdigest()[:8]: by for by in (1, 2, 3)}
"""By the version that results name, what the model adds."""


class Place:
    """Topics, models and a configuration that changes."""

    def __init__(self, kafka: str, folder: Path, delivery: str) -> None:
        self.kafka = kafka
        self.folder = folder
        self.source, self.results, self.letters = (unique(name) for name in ("in", "out", "dead"))
        create_topics(kafka, {self.source: 4, self.results: 4, self.letters: 1})
        for by in MODELS.values():
            (folder / f"{by}.onnx").write_bytes(shifted(by))
        self.document: dict[str, Any] = {
            "name": "reload",
            "input": {"topics": [self.source], "format": "json"},
            "model": {"path": "1.onnx"},
            "output": {"topic": self.results},
            "dead_letter": {"topic": self.letters},
            "delivery": delivery,
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("reload")},
        }
        self.config = write_config(folder, self.document)

    def change(self, **sections: Any) -> None:
        """Put another file in the place of the configuration, as a ConfigMap and most editors do."""
        self.document |= sections
        new = self.folder / "new.yaml"
        new.write_text(yaml.safe_dump(self.document))
        os.replace(new, self.config)

    def judge(self, sent: int) -> list[int]:
        """What every record met: each answered once, in order of its key, by the model that it names. What the models add, sorted."""
        assert read_all(self.kafka, self.letters) == []
        numbers: dict[bytes, list[int]] = defaultdict(list)
        met = set()
        for message in read_all(self.kafka, self.results):
            result = orjson.loads(message.value())
            by = MODELS[result["model"]["version"]]
            y = result["prediction"]["outputs"]["y"]
            assert y[1:] == [by] * 3, result
            numbers[message.key()].append(round(y[0]) - by)
            met.add(by)
        assert sorted(number for each in numbers.values() for number in each) == list(range(sent))
        assert all(each == sorted(each) for each in numbers.values()), "a key's results are not in order"
        return sorted(met)


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize(
    ("delivery", "arguments"),
    [
        ("exactly_once", ()),
        pytest.param("at_least_once", (), marks=pytest.mark.slow),
        pytest.param("exactly_once", ("--replicas", "2", "--watch"), marks=pytest.mark.slow),
        pytest.param("at_least_once", ("--replicas", "2", "--watch"), marks=pytest.mark.slow),
    ],
)
def test_models_and_limits_change_under_a_stream(
    kafka: str, tmp_path: Path, started: list[Worker], delivery: str, arguments: tuple[str, ...]
) -> None:
    """Three models and other limits, with a mistake between them: none is lost, doubled or out of order."""
    place = Place(kafka, tmp_path, delivery)
    worker = Worker.start(place.config, *arguments)
    started.append(worker)
    replicas = 2 if arguments else 1
    wait_for(lambda: worker.text().count('"assigned"') >= replicas, "every replica to join")

    def counted(what: str, times: int) -> None:
        if "--watch" not in arguments:
            worker.process.send_signal(signal.SIGHUP)
        wait_for(lambda: worker.text().count(f'"{what}') == times * replicas, f"{what}:\n{worker.text()}")

    with Stream(kafka, place.source) as stream:
        place.change(model={"path": "2.onnx"}, limits={"stall_s": 30, "max_age_ms": 600_000})
        counted("configuration changed", 1)
        place.change(model={"path": "none.onnx"}, limits={"max_age_ms": 1})
        counted("configuration refused", 1)
        place.change(
            model={"path": "3.onnx"},
            limits={"drain_s": 20, "prefetch_bytes": 1 << 20},
            batching={"max_wait_ms": 1},
            transaction={"max_ms": 50},
            dead_letter={"topic": place.letters, "stop_after": "off"},
        )
        counted("configuration changed", 2)
        answered = stream.sent
        wait_for(lambda: stream.sent > answered + 500, "records after the last change")
        sent = stream.stop()
    wait_for_outputs(kafka, [place.results], sent, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert place.judge(sent) == [1, 2, 3]
    assert worker.text().count('"settings": ["limits.prefetch_bytes"]') == replicas
