"""One model on several devices, on a GPU that is faked: who runs what, and what a device that fails means."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_gpu
import models
import numpy as np
import orjson
import pytest
from fakes import columns_of

from worker import settings
from worker.batch import Batch, Partition
from worker.errors import ConfigError, StartError
from worker.model import cuda
from worker.model.session import Model, load
from worker.serving.engine import Engine
from worker.serving.load import load as load_rollouts
from worker.serving.rollout import Rollout

RANDOM = np.random.default_rng(7)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_gpu.Runtime]:
    runtime = fake_gpu.Runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda, "load_library", lambda keep_interpreter=False: runtime.cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield runtime
    runtime.cuda.gate.set()


def on_devices(folder: Path, model: bytes, devices: list[int], **options: Any) -> Model:
    return load(models.write(folder, model), providers=["cuda", "cpu"], devices=devices, **options)


def runs(gpu: fake_gpu.Runtime) -> Counter[int]:
    """Runs so far by device."""
    found = Counter[int]()
    for session in gpu.sessions:
        found[int(session.options[fake_gpu.CUDA]["device_id"])] += len(session.shapes)
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


def pipeline(folder: Path, model: bytes, **section: Any) -> Rollout:
    """A pipeline over raw tensors on devices 0 and 1."""
    models.write(folder, model)
    document = {
        "input": {"topics": ["in"], "format": "tensor"},
        "model": {"path": "model.onnx", "providers": ["cuda", "cpu"], "devices": [0, 1], **section},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "test"},
    }
    (rollout,) = load_rollouts(settings.validate(document, folder)).values()
    return rollout


def answered(rollout: Rollout, rows: int) -> Batch:
    """One batch of raw tensors through the engine."""
    return through(rollout, [np.full(4, row, np.float32).tobytes() for row in range(rows)])


def through(rollout: Rollout, values: Sequence[bytes]) -> Batch:
    """One batch through the engine."""
    columns = columns_of(Partition("in", 0), range(len(values)), [*values])
    batch = Batch(None, range(len(values)), columns, rollout.route, rollout.stable, 0, 0.0)
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)
    return batch


def test_runs_are_divided_and_the_answers_are_the_same(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Every device answers its share of the runs, each with what a plain run gives."""
    model = on_devices(tmp_path, models.mlp(), [0, 2])
    before = runs(gpu)
    for _ in range(10):
        feeds = {"x": RANDOM.random((3, 20), np.float32)}
        np.testing.assert_array_equal(model.run(feeds)["y"], gpu.sessions[0].plain(feeds)[0])
    assert runs(gpu) - before == {0: 5, 2: 5}
    assert sorted(set(gpu.cuda.devices)) == [0, 2]
    model.close()


def test_a_run_goes_to_the_device_with_the_fewest(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """With nothing coming back, runs of many threads fill all devices evenly."""
    model = on_devices(tmp_path, models.identity(), [0, 1, 2])
    before = runs(gpu)
    gpu.cuda.gate.clear()
    threads = [
        threading.Thread(target=model.run, args=({"x": np.ones((1, 4), np.float32)},)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: (runs(gpu) - before).total() == 6)
    assert runs(gpu) - before == {0: 2, 1: 2, 2: 2}
    gpu.cuda.gate.set()
    for thread in threads:
        thread.join(20)
    model.close()


def test_the_pool_gets_as_many_runs_as_all_devices_take(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Two devices of two instances: four runs, one more on each that is copied in, and threads for all of them."""
    rollout = pipeline(tmp_path, models.identity(), instances=2)
    lane = rollout.stable.lane
    assert (lane.runs, lane.ahead) == (6, 4)
    assert rollout.stable.threads >= 7
    rollout.close()


def test_one_device_is_as_without_the_setting(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """A list of one device only says which one."""
    rollout = pipeline(tmp_path, models.identity(), devices=[1])
    assert {int(session.options[fake_gpu.CUDA]["device_id"]) for session in gpu.sessions} == {1}
    assert rollout.stable.lane.runs == 2
    rollout.close()


def test_a_device_that_fails_is_a_sick_model(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """The canary runs where the batch failed, so that no record is blamed for a broken device beside a healthy one."""
    rollout = pipeline(tmp_path, models.identity())
    gpu.errors[1] = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    found = [answered(rollout, 4) for _ in range(2)]
    sick = [batch.sick for batch in found]
    assert [why is None for why in sick].count(True) == 1, "the batch on the healthy device is answered"
    assert any(why is not None and "illegal memory access" in why for why in sick)
    assert all(batch.outcomes is not None and not batch.outcomes.rejected for batch in found)
    rollout.close()


def test_a_device_out_of_memory_halves_the_batch(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """As on one device: the canary passes there, the batch runs in halves, and nothing is refused."""
    rollout = pipeline(tmp_path, models.identity())
    plain = fake_gpu.Session.run_with_iobinding

    def too_large(session: fake_gpu.Session, binding: fake_gpu.Binding, options: Any) -> None:
        if next(iter(binding.inputs.values()))[1][0] > 4:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        plain(session, binding, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_gpu.Session, "run_with_iobinding", too_large)
        batch = answered(rollout, 8)
    assert batch.sick is None
    assert batch.outcomes is not None
    assert not batch.outcomes.rejected
    assert rollout.stable.run_items < 64
    rollout.close()


def test_a_network_in_two_files_runs_on_two_devices(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Steps on devices of their own: what the first half gives goes into the second one, and the answer is that of both."""
    models.write(tmp_path, models.mlp(4, 4), "first.onnx")
    models.write(tmp_path, models.mlp(4, 3), "second.onnx")
    on = {"providers": ["cuda", "cpu"]}
    document = {
        "name": "halves",
        "input": {"topics": ["in"], "format": "json"},
        "steps": [
            {
                "name": "first",
                "model": {**on, "path": "first.onnx", "devices": [0]},
                "postprocess": {"embedding": {}},
            },
            {
                "name": "second",
                "from": "first.embedding",
                "model": {**on, "path": "second.onnx", "devices": [1]},
                "postprocess": {"embedding": {}},
            },
        ],
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "test"},
    }
    (rollout,) = load_rollouts(settings.validate(document, tmp_path)).values()
    before, x = runs(gpu), RANDOM.random((5, 4), np.float32)
    batch = through(rollout, [orjson.dumps({"features": row.tolist()}) for row in x])
    assert runs(gpu) - before == {0: 1, 1: 1}
    first, second = (
        next(s for s in gpu.sessions if s.options[fake_gpu.CUDA]["device_id"] == device)
        for device in ("0", "1")
    )
    expected = second.plain({"x": first.plain({"x": x})[0]})[0]
    assert batch.outcomes is not None
    results = [orjson.loads(body or b"") for body in batch.outcomes.bodies]
    found = [result["prediction"]["second"]["embedding"] for result in results]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    rollout.close()


def test_everything_is_given_back_on_every_device(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Streams, events, memory and contexts of all devices, also where the last of them cannot be opened."""
    model = on_devices(tmp_path, models.mlp(), [0, 1])
    model.run({"x": np.zeros((2, 20), np.float32)})
    model.close()
    assert gpu.cuda.handles == 0
    gpu.cuda.missing = {3}
    with pytest.raises(StartError) as refused:
        on_devices(tmp_path, models.mlp(), [0, 3])
    assert "device 3 of model.devices" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert gpu.cuda.handles == 0


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"providers": ["cpu"]}, "model.devices: got [0, 1], expected none with model.providers: [cpu]"),
        ({"devices": [0, 0]}, "model.devices: got [0, 0], expected no number twice"),
        ({"devices": []}, "model.devices"),
        ({"devices": [-1]}, "model.devices"),
        ({"devices": 1}, "model.devices"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, section: dict[str, Any], sentence: str) -> None:
    """It names the setting and what was expected."""
    with pytest.raises(ConfigError) as refused:
        pipeline(tmp_path, models.identity(), **section)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
