"""A control topic in memory, and replicas of one pipeline on it: real models, no Kafka, no loop."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
from onnx import helper

from worker.batch import Partition
from worker.serving.control import Book, Decision, Record, decoded, encoded
from worker.serving.load import load
from worker.serving.loader import Loader
from worker.serving.rollout import Arm, Figures
from worker.serving.steward import Steward, Turned, agree, read_books
from worker.serving.versions import resolved
from worker.settings import Settings, validate

FIRST = Partition("in", 0)


class Topic:
    """The log that all replicas share."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.keys: list[str] = []
        self.away = False
        """No broker answers: nothing is read or written."""

    @property
    def records(self) -> list[Record]:
        return [record for value in self.values if (record := decoded(value)) is not None]

    def decisions(self, *states: str) -> list[Decision]:
        return [each for each in self.records if isinstance(each, Decision) and each.state in states]

    def put(self, record: Record) -> None:
        self.values.append(encoded(record))
        self.keys.append(record.key(str(len(self.values))))

    def book(self, pipeline: str = "digits") -> Book:
        found = Book()
        for record in self.records:
            found.take(record)
        return found


class Reader:
    """One replica's view of the topic; see :class:`worker.serving.steward.Log`."""

    def __init__(self, topic: Topic, by: str) -> None:
        self.by = by
        self.topic = "control"
        self._topic = topic
        self._next = 0

    def read(self, timeout_s: float) -> list[bytes | None]:
        if self._topic.away:
            return []
        found = self._topic.values[self._next :]
        self._next += len(found)
        return [*found]

    def end(self) -> int | None:
        return None if self._topic.away else len(self._topic.values)

    def reached(self, end: int) -> bool:
        return self._next >= end

    def write(self, key: str, value: bytes) -> None:
        if not self._topic.away:
            self._topic.values.append(value)
            self._topic.keys.append(key)

    def close(self, budget_s: float) -> None: ...


def settings_in(folder: Path, **more: Any) -> Settings:
    """One pipeline with a repository, a control topic and a rollout."""
    document = {
        "name": "digits",
        "input": {"topics": ["in"], "format": "json"},
        "model": {"repository": "models", "name": "digits", "poll_s": 0.001, **more.pop("model", {})},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "control": {"topic": "control"},
        "rollout": {"min_records": 10, "for_s": 0.001, "share": 0.5},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        **more,
    }
    return validate(document, folder)


def put(folder: Path, version: str, model: bytes | None = None) -> None:
    """A version of the repository that counts at once; it adds its number."""
    model = shifted(float(version)) if model is None else model
    place = folder / "models" / "digits" / version
    place.mkdir(parents=True, exist_ok=True)
    models.write(place, model)
    (place / "model.sha256").write_text(hashlib.sha256(model).hexdigest())


def shifted(by: float) -> bytes:
    """y = x + by."""
    return models.build(
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", np.float32, ("N", 4))],
        [models.tensor("y", np.float32, ("N", 4))],
        {"by": np.float32(by)},
    )


class Worker:
    """One replica: what the composition root puts together for a control topic, without Kafka and the loop."""

    def __init__(
        self, folder: Path, topic: Topic, by: str, owned: tuple[Partition, ...] = (), **more: Any
    ) -> None:
        settings = settings_in(folder, **more)
        reader = Reader(topic, by)
        books = read_books(reader, ["digits"])
        known = {name: book.stable for name, book in books.items() if book.stable is not None}
        _, found = resolved(settings, known)
        decided = agree(reader, books, {"digits": found["digits"].version.name})
        with_files, found = resolved(settings, decided)
        took: dict[str, int] = {}
        rollouts = load(with_files, took)
        self.rollout = rollouts["digits"]
        running = {"digits": (found["digits"], took["digits"])}
        self.loader = Loader(settings, rollouts, running, by_order=books)
        self.steward = Steward(settings, reader, books, self.loader, rollouts)
        self.steward.owned = lambda: owned
        self.steward.prepare()
        self.turned: list[Turned] = []

    def look(self, times: int = 6) -> None:
        """The threads and the loop take turns."""
        for _ in range(times):
            time.sleep(0.002)  # poll_s
            self.loader.look()
            self.steward.look(0.0)
            self.loader.turn()
            self.rollout.choose()
            self.turned += self.steward.turn()

    def saw(self, candidate: int, errors: int = 0) -> None:
        """So many records were answered by the candidate, and as many by the stable version."""
        figures = Figures(Arm(candidate, 0, 10.0), Arm(candidate, errors, 10.0))
        self.rollout.figures = lambda: figures  # type: ignore[method-assign]

    @property
    def answers(self) -> tuple[str, str | None]:
        """The stable version and the candidate."""
        candidate = self.rollout.candidate
        return self.rollout.stable.model_version, candidate.model_version if candidate is not None else None
