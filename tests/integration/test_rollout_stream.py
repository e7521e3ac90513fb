"""Rollouts on a real broker: replicas, their control topic, and a stream of keys that each meet one version at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import orjson
import pytest
from onnx import helper
from stream import Worker, create_topics, read_all, unique, wait_for, write_config
from test_model_swap import KEYS, Stream, answers_with

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def shifted(by: int, breaks_at: float = 1e9) -> bytes:
    """y = x + by, and NaN for a record whose number is larger than ``breaks_at``."""
    return models.build(
        [
            helper.make_node("Sub", ["at", "x"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "by"], ["sum"]),
            helper.make_node("Add", ["sum", "nothing"], ["y"]),
        ],
        [models.tensor("x", np.float32, ("N", 4))],
        [models.tensor("y", np.float32, ("N", 4))],
        {"by": np.float32(by), "at": np.float32(breaks_at), "zero": np.float32(0)},
    )


class Place:
    """Topics, a repository, and the configuration of replicas that try each new version."""

    def __init__(self, kafka: str, folder: Path, **rules: Any) -> None:
        self.kafka = kafka
        self.models = folder / "models" / "shift"
        names = [unique(f"rollout-{name}") for name in ("in", "out", "dead", "control")]
        self.source, self.results, self.letters, self.control = names
        create_topics(kafka, {self.source: 2, self.results: 2, self.letters: 1})
        create_topics(kafka, {self.control: 1}, **{"cleanup.policy": "compact"})
        self.put(1)
        self.config = write_config(
            folder,
            {
                "name": "rollout",
                "input": {"topics": [self.source], "format": "json"},
                "model": {"repository": "models", "name": "shift", "poll_s": 0.2},
                "output": {"topic": self.results},
                "dead_letter": {"topic": self.letters, "stop_after": "off"},
                "control": {"topic": self.control},
                # how long runs take on a busy machine says nothing here
                "rollout": {
                    "share": 0.8,
                    "min_records": 200,
                    "for_s": 0.5,
                    "max": {"latency_ratio": None},
                    **rules,
                },
                "kafka": {"bootstrap.servers": kafka, "group.id": unique("rollout")},
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

    def decisions(self, candidate: int) -> list[str]:
        """The states of a version's rollout in the topic, in their order; of decisions only the first one counts."""
        return [each["state"] for each in self._records(candidate)]

    def reasons(self, candidate: int) -> list[str]:
        return [each["reason"] for each in self._records(candidate)]

    def _records(self, candidate: int) -> list[dict[str, Any]]:
        found = [orjson.loads(message.value()) for message in read_all(self.kafka, self.control)]
        return [
            each
            for each in found
            if each["type"] == "streaminfer.rollout" and each["candidate"] == str(candidate)
        ]

    def decided(self, candidate: int, state: str, workers: list[Worker]) -> None:
        """Wait until a version's rollout ended with a state, and each replica answers with what was promoted."""
        wait_for(
            lambda: self.decisions(candidate)[1:2] == [state], f"{candidate} {state}: {self._said(workers)}"
        )

        if state == "promoted":
            for worker in workers:
                answers_with(worker, candidate)

    def _said(self, workers: list[Worker]) -> str:
        return "\n".join(worker.text() for worker in workers)

    def results_of_keys(self) -> dict[bytes, list[tuple[int, int]]]:
        """Of each key the results in their order."""
        found: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for message in read_all(self.kafka, self.results):
            result = orjson.loads(message.value())
            version = int(result["model"]["version"])
            outputs = result["prediction"]["outputs"]["y"]
            assert outputs[1:] == [version] * 3, result
            found[message.key()].append((round(outputs[0]) - version, version))
        return found

    def answers(self) -> dict[bytes, list[tuple[int, int]]]:
        """Of each key the answers in their order: number of the record, and the version that it names.

        A result's value proves the version; a dead letter only names it.
        """
        found = self.results_of_keys()
        for message in read_all(self.kafka, self.letters):
            headers = dict(message.headers())
            version = int(headers["streaminfer.model"].decode().partition("@")[2])
            number = orjson.loads(message.value())["features"][0]
            found[message.key()].append((number, version))
        return found


def turns(versions: list[int]) -> list[int]:
    """The versions that a key met, each as often as it came anew."""
    return [version for version, _ in itertools.groupby(versions)]


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


def test_two_replicas_try_promote_and_roll_back(kafka: str, tmp_path: Path, started: list[Worker]) -> None:
    """A good version is promoted and a bad one rolled back, on both replicas, by one decision each. Each record is answered
    once, by the version it names, and no key meets a version, another one, and the first one again within a rollout."""
    place = Place(kafka, tmp_path)
    started += [Worker.start(place.config), Worker.start(place.config)]
    for worker in started:
        worker.wait_ready()
    with Stream(kafka, place.source) as stream:
        place.put(2)
        place.decided(2, "promoted", started)
        place.put(3, shifted(3, breaks_at=5))
        place.decided(3, "rolled_back", started)
        sent = stream.stop()
    wait_for(lambda: sum(map(len, place.answers().values())) >= sent, f"{sent} answers")
    for worker in started:
        assert worker.stop()[0] == 0, worker.text()
    assert place.decisions(2) == ["running", "promoted"]
    assert place.decisions(3)[:2] == ["running", "rolled_back"]
    answers = place.answers()
    assert sorted(number for each in answers.values() for number, _ in each) == list(range(sent))
    met = [turns([version for _, version in sorted(each)]) for each in answers.values()]
    assert len(met) == KEYS
    assert all(each in ([1, 2], [1, 2, 3, 2]) for each in met), met
    assert any(3 in each for each in met)


@pytest.mark.slow
def test_replicas_that_die_come_to_the_same_decisions(
    kafka: str, tmp_path: Path, started: list[Worker]
) -> None:
    """Four versions, every second one bad, while one replica after the other is killed and replaced: each rollout has one
    outcome, the right one; nothing is lost; no key goes back to a version that was ended."""
    place = Place(kafka, tmp_path, for_s=2.0)
    started += [Worker.start(place.config), Worker.start(place.config)]
    for worker in started:
        worker.wait_ready()
    alive = [*started]
    with Stream(kafka, place.source) as stream:
        for version in range(2, 6):
            bad = version % 2 == 1
            place.put(version, shifted(version, breaks_at=5) if bad else None)
            wait_for(lambda version=version: place.decisions(version), f"a rollout of {version}")
            alive.pop(0).kill()
            alive.append(Worker.start(place.config))
            started.append(alive[-1])
            alive[-1].wait_ready()
            wait_for(
                _outcome(place, version, "rolled_back" if bad else "promoted"),
                f"the end of {version}:\n{alive[0].text()}\n{alive[1].text()}",
            )
        sent = stream.stop()
    # after so many deaths a partition is read with care, one record after the other
    wait_for(
        lambda: {n for each in place.answers().values() for n, _ in each} >= {*range(sent)},
        "every answer",
        200.0,
    )
    for worker in alive:
        assert worker.stop()[0] == 0, worker.text()
    # a replica that died leaves records that are answered again: their numbers go back, their versions do not
    for results in place.results_of_keys().values():
        met = turns([version for _, version in results])
        assert met == sorted(met), met


def _outcome(place: Place, version: int, state: str) -> Callable[[], bool]:
    return lambda: place.decisions(version)[1:2] == [state]


@pytest.mark.slow
def test_a_shadow_that_answers_otherwise_is_rolled_back(
    kafka: str, tmp_path: Path, started: list[Worker]
) -> None:
    """A shadow answers nothing itself. One that gives the same answers is promoted, one that gives others is rolled back,
    and its answers are in rollout.topic only."""
    shadows = unique("rollout-shadows")
    create_topics(kafka, {shadows: 1})
    place = Place(kafka, tmp_path, mode="shadow", topic=shadows)
    started.append(Worker.start(place.config))
    started[0].wait_ready()
    with Stream(kafka, place.source) as stream:
        place.put(2, shifted(1))
        place.decided(2, "promoted", started)
        place.put(3)
        place.decided(3, "rolled_back", started)
        sent = stream.stop()
    wait_for(lambda: len(read_all(kafka, place.results)) >= sent, f"{sent} results")
    assert started[0].stop()[0] == 0, started[0].text()
    versions = {orjson.loads(m.value())["model"]["version"] for m in read_all(kafka, place.results)}
    assert versions == {"1", "2"}
    assert {orjson.loads(m.value())["model"]["version"] for m in read_all(kafka, shadows)} == {"2", "3"}
    assert "disagreement: " in place.reasons(3)[1]
