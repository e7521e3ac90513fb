"""A candidate that turns sick on a real broker: it is rolled back on every replica, and no record is a dead letter for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stream import Worker, read_all, wait_for
from test_model_swap import KEYS, Stream
from test_rollout_stream import Place, turns

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

TURNCOAT = '''
import json

class Model:
    """y = x + by, until it has answered so many records: from then on every run fails, also with the input of its start."""

    inputs = {"x": ("float32", (4,))}
    outputs = {"y": ("float32", (4,))}

    def load(self, path):
        figures = json.loads((path / "figures.json").read_text())
        self.by, self.lasts = figures["by"], figures["lasts"]

    def forward(self, items):
        self.lasts -= len(items)
        if self.lasts < 0:
            raise RuntimeError("an illegal memory access was encountered")
        return [{"y": item + self.by} for item in items]
'''


class Turncoats(Place):
    """Versions that are custom code, each with the number of records for which it lasts."""

    def __init__(self, kafka: str, folder: Path, **rules: Any) -> None:
        (folder / "turncoat.py").write_text(TURNCOAT)
        super().__init__(kafka, folder, **rules)
        document = yaml.safe_load(self.config.read_text())
        document["model"]["code"] = "turncoat:Model"
        self.config.write_text(yaml.safe_dump(document))

    def put(self, version: int, model: bytes | None = None, lasts: int = 10**9) -> None:
        part = self.models / f".{version}.part"
        part.mkdir(parents=True)
        figures = json.dumps({"by": version, "lasts": lasts}).encode()
        (part / "figures.json").write_bytes(figures)
        (part / "model.sha256").write_text(f"{hashlib.sha256(figures).hexdigest()}  figures.json\n")
        part.rename(self.models / str(version))


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("mode", ["canary", "shadow"])
def test_a_candidate_that_turns_sick_costs_no_record(
    kafka: str, tmp_path: Path, started: list[Worker], mode: str
) -> None:
    """Two replicas try a version that fails after some records. What it did not answer the stable version does: each record once,
    in order of its key, no dead letter; the process goes on, and the next version is promoted."""
    place = Turncoats(
        kafka, tmp_path, mode=mode, for_s=2.0, max={"latency_ratio": None, "disagreement": None}
    )
    started += [Worker.start(place.config), Worker.start(place.config)]
    for worker in started:
        worker.wait_ready()
    with Stream(kafka, place.source) as stream:
        place.put(2, lasts=1500)
        place.decided(2, "rolled_back", started)
        place.put(3)
        place.decided(3, "promoted", started)
        sent = stream.stop()
    wait_for(lambda: sum(map(len, place.results_of_keys().values())) >= sent, f"{sent} results")
    for worker in started:
        assert worker.stop()[0] == 0, worker.text()
    assert read_all(kafka, place.letters) == []
    assert any(reason.startswith("sick: ") for reason in place.reasons(2))
    answers = place.results_of_keys()
    assert sorted(number for each in answers.values() for number, _ in each) == list(range(sent))
    assert len(answers) == KEYS
    for each in answers.values():
        assert [number for number, _ in each] == sorted(number for number, _ in each)
        assert turns([version for _, version in each]) in ([1, 3], [1, 2, 1, 3]), each
    met_two = any(version == 2 for each in answers.values() for _, version in each)
    assert met_two is (mode == "canary")
