"""What answers records, made of real settings and a real model: its figures, and what is left of it after `close`."""

from __future__ import annotations

import gc
import json
import time
import weakref
from pathlib import Path
from typing import Any

import models
import onnxruntime
import pytest
from fakes import columns_of

from worker.batch import Batch, Partition
from worker.loop.pool import InlinePool, Mailbox
from worker.model.backend import Closed
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import validate


def rollouts(folder: Path, *pipelines: dict[str, Any]) -> list[Rollout]:
    """One for each pipeline, of the identity model in JSON."""
    models.write(folder, models.identity())
    base = {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out"},
    }
    document = {
        "pipelines": {
            f"p{number}": {**base, "input": {"topics": [f"in-{number}"], "format": "json"}, **pipeline}
            for number, pipeline in enumerate(pipelines)
        },
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }
    return [*load(validate(document, folder)).values()]


def answer(rollout: Rollout, *values: bytes) -> Batch:
    columns = columns_of(Partition("in-0", 0), range(len(values)), values)
    taken = time.monotonic_ns(), time.time() * 1000
    batch = Batch(None, range(len(values)), columns, rollout.route, rollout.choose(), *taken)
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    (back,) = pool.collect()
    assert back.error is None
    return batch


def test_each_pipeline_has_figures_of_its_own(tmp_path: Path) -> None:
    """Batch size, threads, runs at once and waiting time are those of the pipeline, whatever another one has."""
    quick, slow = rollouts(
        tmp_path,
        {
            "batching": {"max_size": 64, "max_wait_ms": 5},
            "model": {"path": "model.onnx", "instances": 4, "threads": 2},
        },
        {
            "batching": {"max_size": 2, "max_wait_ms": 50},
            "model": {"path": "model.onnx", "instances": 1, "threads": 1},
        },
    )
    assert [r.choose().max_size for r in (quick, slow)] == [64, 2]
    assert [r.choose().lane.runs for r in (quick, slow)] == [4, 1]
    assert [r.choose().threads for r in (quick, slow)] == [2, 1]
    assert [r.route.max_wait_s for r in (quick, slow)] == [0.005, 0.05]
    assert quick.choose().lane is not slow.choose().lane


def test_nothing_of_a_closed_servable_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once closed and let go, no runtime session, model, decoder or encoder is left, though batches were answered by it."""
    sessions: weakref.WeakSet[Any] = weakref.WeakSet()
    make = onnxruntime.InferenceSession

    def made(*arguments: Any, **named: Any) -> Any:
        session = make(*arguments, **named)
        sessions.add(session)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    (rollout,) = rollouts(tmp_path, {})
    batch = answer(rollout, b'{"features": [1, 2, 3, 4]}', b"bad")
    assert batch.outcomes is not None
    assert json.loads(batch.outcomes.bodies[0] or b"")["prediction"]["outputs"]["y"] == [1, 2, 3, 4]
    servable = rollout.choose()
    parts = [weakref.ref(part) for part in (servable.model, servable.decoder, servable.encoder)]
    assert len(sessions) > 0
    rollout.close()
    gc.collect()
    assert len(sessions) == 0, "the sessions go with `close`, while batches still name the servable"
    del servable, rollout, batch
    gc.collect()
    assert [part() for part in parts] == [None, None, None]


def test_a_closed_servable_runs_no_more(tmp_path: Path) -> None:
    """A run after `close` fails with a sentence, and a second `close` does nothing."""
    (rollout,) = rollouts(tmp_path, {})
    servable = rollout.choose()
    sample = servable.model.sample(1)  # type: ignore[attr-defined]
    rollout.close()
    rollout.close()
    with pytest.raises(Closed, match="closed"):
        servable.model.run(sample)
