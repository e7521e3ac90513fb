"""`worker.Retry`: records that custom code wants tried again, as the engine sees them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import models
import numpy as np
import pytest
from fakes import FakeClock, columns_of

from worker import Reject, Retry, batched
from worker.batch import Batch, Partition
from worker.deadlines import Deadlines
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import validate

A = Partition("in", 0)


class Service:
    """Something that custom code asks for each record; it is away for as many questions as the test says."""

    def __init__(self) -> None:
        self.away = 0
        self.asked: list[str] = []
        self.after_s = 1.0

    def ask(self, name: str) -> str:
        self.asked.append(name)
        if self.away:
            self.away -= 1
            raise Retry(f"the service is away for {name}", self.after_s)
        return name.upper()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    module: Any = ModuleType("users_code")
    module.decode = lambda value, headers: {"x": np.full(4, len(found.ask(value.decode())), np.float32)}
    module.post = lambda outputs, item: found.ask(dict(item.headers).get("name", b"nobody").decode())
    module.many = batched(lambda outputs: [found.ask("all")] * len(outputs["y"]))
    monkeypatch.setitem(sys.modules, "users_code", module)
    return found


@pytest.fixture
def rollout(tmp_path: Path, service: Service) -> Callable[..., Rollout]:
    """Makes a pipeline with custom code in this place."""

    def make(decode: bool = False, post: str = "raw") -> Rollout:
        models.write(tmp_path, models.identity())
        document = {
            "input": {"topics": ["in"], "format": "users_code:decode" if decode else "tensor"},
            "model": {"path": "model.onnx", "threads": 1},
            "postprocess": post,
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        }
        return load(validate(document, tmp_path))["model"]

    return make


class Run:
    """Batches through the engine, each further try at the time that the engine asks for."""

    def __init__(self, rollout: Rollout, retry_s: float = 20.0) -> None:
        self.rollout = rollout
        self.clock = FakeClock()
        self.engine = Engine(self.clock, retry_s)
        self.pauses_s: list[float] = []

    def __call__(
        self, *values: bytes, names: tuple[bytes, ...] = (), deadlines: Deadlines | None = None
    ) -> Batch:
        columns = columns_of(A, range(len(values)), values)
        columns.headers = [[("name", name)] for name in names] or [None] * len(values)
        batch = Batch(
            None, range(len(values)), columns, self.rollout.route, self.rollout.choose(), self.clock(), 0.0
        )
        batch.deadlines = deadlines
        self._process(batch)
        while batch.again is not None:
            again, batch.again = batch.again, None
            while again is not None:
                self.pauses_s.append((again.due_ns - self.clock()) / 1e9)
                self.clock.ns = again.due_ns
                self._process(again.batch)
                again = again.batch.again
        return batch

    def _process(self, batch: Batch) -> None:
        for start, stop in self.engine.shards(batch):
            self.engine.decode(batch, start, stop)
        self.engine.infer(batch)
        self.engine.finish(batch)


def found(batch: Batch) -> list[Any]:
    """The first number of each answer; of a rejected record (reason, stage, tries)."""
    assert batch.outcomes is not None
    return [
        (why.reason, why.stage, why.attempts)
        if (why := batch.outcomes.rejected.get(row)) is not None
        else json.loads(body or b"")["prediction"]
        for row, body in enumerate(batch.outcomes.bodies)
    ]


def test_a_decoder_has_a_record_tried_again(service: Service, rollout: Callable[..., Rollout]) -> None:
    """Only the postponed record is decoded again; every record of the batch then has its own answer."""
    run = Run(rollout(decode=True))
    service.away = 1
    batch = run(b"a", b"bb", b"ccc")
    assert [answer["outputs"]["y"][0] for answer in found(batch)] == [1, 2, 3]
    assert service.asked == ["a", "bb", "ccc", "a"]
    assert run.pauses_s == [1.0]


def test_a_postprocess_has_a_record_tried_again(service: Service, rollout: Callable[..., Rollout]) -> None:
    """A record postponed by the postprocess goes through the whole engine again, with its own headers."""
    run = Run(rollout(post="users_code:post"))
    service.away = 2
    value = np.zeros(4, np.float32).tobytes()
    assert found(run(value, value, value, names=(b"a", b"b", b"c"))) == ["A", "B", "C"]
    assert service.asked == ["a", "b", "c", "a", "b"]


def test_a_batched_postprocess_postpones_its_run(service: Service, rollout: Callable[..., Rollout]) -> None:
    """A batched function that raises Retry is not called for halves: all its records wait together."""
    run = Run(rollout(post="users_code:many"))
    service.away = 1
    value = np.zeros(4, np.float32).tobytes()
    assert found(run(value, value)) == ["ALL", "ALL"]
    assert service.asked == ["all", "all"]


def test_waits_grow(service: Service, rollout: Callable[..., Rollout]) -> None:
    """The first wait is as long as custom code says; each further one is twice as long, up to 10 s."""
    run = Run(rollout(decode=True), retry_s=100.0)
    service.away = 6
    assert len(found(run(b"a"))) == 1
    assert run.pauses_s == [1, 2, 4, 8, 10, 10]


def test_a_longer_wait_is_kept_as_it_is(service: Service, rollout: Callable[..., Rollout]) -> None:
    """A wait that custom code asks for beyond 10 s is not cut."""
    run = Run(rollout(decode=True), retry_s=100.0)
    service.away, service.after_s = 2, 30.0
    run(b"a")
    assert run.pauses_s == [30, 30]


def test_a_record_is_given_up_when_its_time_is_over(
    service: Service, rollout: Callable[..., Rollout]
) -> None:
    """After limits.retry_s the record is a model_error that says how often it was tried; its neighbours are answered."""
    run = Run(rollout(decode=True), retry_s=5.0)
    service.away = 0
    ask = service.ask
    service.ask = lambda name: ask(name) if name != "bb" else (_ for _ in ()).throw(Retry("away", 1.0))  # type: ignore[method-assign]
    batch = run(b"a", b"bb", b"ccc")
    assert found(batch)[1] == ("model_error", "decode", 3)
    assert [answer["outputs"]["y"][0] for answer in (found(batch)[0], found(batch)[2])] == [1, 3]
    assert run.pauses_s == [1, 2]
    assert batch.outcomes is not None
    assert batch.outcomes.rejected[1].message == "away (tried 3 times in 3.0 s)"


def test_without_time_nothing_is_tried_again(service: Service, rollout: Callable[..., Rollout]) -> None:
    """With limits.retry_s: 0 a Retry is a model_error at once."""
    run = Run(rollout(decode=True), retry_s=0.0)
    service.away = 1
    assert found(run(b"a")) == [("model_error", "decode", 1)]
    assert run.pauses_s == []


def test_a_further_try_may_refuse_the_record(service: Service, rollout: Callable[..., Rollout]) -> None:
    """A record that is refused at its second try has that refusal, and the batch keeps its other answers."""
    run = Run(rollout(decode=True))
    tries = []

    def ask(name: str) -> str:
        tries.append(name)
        if name == "bb":
            raise Retry("away") if tries.count("bb") == 1 else Reject("unknown customer")
        return name

    service.ask = ask  # type: ignore[method-assign]
    batch = run(b"a", b"bb")
    assert found(batch)[1] == ("invalid", "decode", 1)
    assert found(batch)[0]["outputs"]["y"][0] == 1


@pytest.mark.parametrize("policy", ["dead_letter", "drop"])
def test_a_record_that_expires_while_it_waits_is_not_tried_again(
    policy: str, service: Service, rollout: Callable[..., Rollout]
) -> None:
    """A record whose deadline passes between two tries is expired, and its neighbour is still tried."""
    run = Run(rollout(decode=True))
    service.away = 4
    batch = run(b"a", b"bb", deadlines=Deadlines(policy, {0: 1_500.0}))
    assert batch.outcomes is not None
    assert service.asked == ["a", "bb", "a", "bb", "bb"]
    assert json.loads(batch.outcomes.bodies[1] or b"")["prediction"]["outputs"]["y"][0] == 2
    assert {row: why.reason for row, why in batch.outcomes.rejected.items()} == (
        {0: "expired"} if policy == "dead_letter" else {}
    )
    assert batch.outcomes.dropped == ({0} if policy == "drop" else set())
