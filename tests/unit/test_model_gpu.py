"""A model on a GPU, without one: the driver and the runtime's CUDA provider are ``fake_gpu``'s, the answers are real."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_gpu
import models
import numpy as np
import pytest
from fakes import columns_of

from worker import settings
from worker.batch import Batch, Partition
from worker.errors import StartError
from worker.model import cuda
from worker.model.backend import Closed
from worker.model.cuda import DeviceError, Driver, PinnedMemory
from worker.model.gpu import padded_sizes
from worker.model.session import Model, load
from worker.serving.engine import Engine
from worker.serving.load import load as load_rollouts

RANDOM = np.random.default_rng(5)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_gpu.Runtime]:
    runtime = fake_gpu.Runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda, "load_library", lambda keep_interpreter=False: runtime.cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield runtime
    runtime.cuda.gate.set()


def on_gpu(folder: Path, model: bytes, **options: Any) -> Model:
    return load(models.write(folder, model), providers=["cuda", "cpu"], **options)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


# Answers

CASES: dict[str, tuple[bytes, dict[str, np.ndarray]]] = {
    "mlp": (models.mlp(), {"x": RANDOM.random((5, 20), np.float32)}),
    "two inputs": (models.add(), {n: RANDOM.random((3, 4), np.float32) for n in ("a", "b")}),
    "two outputs": (models.two_outputs(), {"x": RANDOM.random((3, 4), np.float32)}),
    "image of any size": (models.image(size=None, dtype=np.uint8), {"x": RANDOM.integers(0, 256, (2, 3, 7, 9), np.uint8)}),
    "rank 0": (models.rank_0(), {"x": np.array(3, np.float32)}),
    "eight rows": (models.fixed_batch(8), {"x": RANDOM.random((8, 4), np.float32)}),
    "float16": (models.identity(np.float16), {"x": RANDOM.random((2, 4)).astype(np.float16)}),
    "booleans": (models.identity(np.bool_), {"x": RANDOM.integers(0, 2, (2, 4)).astype(bool)}),
    "no rows": (models.identity(np.int64), {"x": np.empty((0, 4), np.int64)}),
    "not in C order": (models.identity(), {"x": RANDOM.random((4, 3), np.float32).T}),
    "strings": (models.identity(str), {"x": np.array([["a", "b", "c", "d"]], object)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_a_plain_run(gpu: fake_gpu.Runtime, tmp_path: Path, name: str) -> None:
    """Whatever the shapes and types, a bound run gives exactly what the session gives."""
    content, feeds = CASES[name]
    model = on_gpu(tmp_path, content)
    for answer, right in zip(model.run(feeds).values(), gpu.sessions[0].plain(feeds), strict=True):
        assert answer.dtype == right.dtype
        np.testing.assert_array_equal(answer, right)
    assert model.provider == "cuda"
    assert model.canary()


def test_an_answer_outlives_the_next_batches(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Outputs are copied out before their slot is used again."""
    model = on_gpu(tmp_path, models.identity())
    feeds = [np.full((2, 4), value, np.float32) for value in range(8)]
    answers = [model.run({"x": feed})["y"] for feed in feeds]
    np.testing.assert_array_equal(answers, feeds)


def test_the_caller_may_overwrite_its_buffer_after_a_run(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """One staging buffer, filled again for every batch, as the pool's batches do."""
    model = on_gpu(tmp_path, models.identity())
    buffer = model.empty((2, 4), np.dtype(np.float32))
    for value in range(6):
        buffer[:] = value
        assert (model.run({"x": buffer})["y"] == value).all()


def test_batches_of_many_threads_keep_apart(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """More threads than slots, all sizes, two instances: everyone gets the answer to its own question."""
    model = on_gpu(tmp_path, models.two_outputs(), instances=2)

    def ask(number: int) -> bool:
        x = np.full((number % 7 + 1, 4), number, np.float32)
        answer = model.run({"x": x})
        return bool((answer["double"] == 2 * x).all() and (answer["negative"] == -x).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_wrong_feeds_are_refused_before_the_device_sees_them(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """The runtime is given an address, so a missing input or another dtype has to be noticed here."""
    model = on_gpu(tmp_path, models.add())
    a = np.ones((1, 4), np.float32)
    with pytest.raises(ValueError, match="input b is missing"):
        model.run({"a": a})
    with pytest.raises(ValueError, match="input b is float64, the model takes float32"):
        model.run({"a": a, "b": a.astype(np.float64)})
    assert (model.run({"a": a, "b": a})["sum"] == 2).all()


# Batches in flight


def test_the_next_batch_is_in_line_while_one_is_computed(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """With one instance two batches are on the device, computing and in line behind; a third waits for a slot."""
    model = on_gpu(tmp_path, models.identity())
    assert model.lookahead == 1
    session = gpu.sessions[0]
    before = len(session.shapes)
    gpu.cuda.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(model.run, {"x": np.full((1, 4), n, np.float32)}) for n in range(3)]
        until(lambda: len(session.shapes) == before + 2)
        assert not any(run.done() for run in runs)
        gpu.cuda.gate.set()
        assert [int(run.result(20)["y"][0, 0]) for run in runs] == [0, 1, 2]
    assert len(session.shapes) == before + 3


def test_every_instance_has_a_session_and_a_stream(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Two instances compute on two streams, each with a session of its own; batches go to them in turn."""
    model = on_gpu(tmp_path, models.identity(), instances=2)
    first, second = gpu.sessions
    assert first.stream != second.stream
    before = len(first.shapes), len(second.shapes)
    for _ in range(4):
        model.run({"x": np.zeros((1, 4), np.float32)})
    assert (len(first.shapes) - before[0], len(second.shapes) - before[1]) == (2, 2)


def test_interrupt_ends_runs_that_have_begun_only(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Each run has the options of its time: the flag of an interrupted one does not reach the next."""
    model = on_gpu(tmp_path, models.identity())
    model.interrupt()
    assert model.run({"x": np.zeros((1, 4), np.float32)})["y"].shape == (1, 4)


def test_a_worker_decodes_into_memory_the_device_reads(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """The pool hands over one run more than instances and decodes two ahead, into page-locked memory."""
    models.write(tmp_path, models.mlp())
    config = tmp_path / "worker.yaml"
    config.write_text(
        """
        input: {topics: [in], format: tensor}
        model: {path: model.onnx, providers: [cuda, cpu], instances: 2}
        output: {topic: out}
        dead_letter: {topic: dead}
        kafka: {bootstrap.servers: "localhost:1", group.id: test}
        """
    )
    rollout = load_rollouts(settings.load(config))["model"]
    servable = rollout.choose()
    assert (servable.lane.runs, servable.lane.ahead) == (3, 2)
    values: list[bytes | None] = [np.full(20, row, np.float32).tobytes() for row in range(3)]
    columns = columns_of(Partition("in", 0), range(3), values)
    batch = Batch(None, range(3), columns, rollout.route, servable, 0, 0.0)
    ((start, stop),) = Engine().shards(batch)
    assert batch.feed is not None
    assert batch.feed.arrays is not None
    assert batch.feed.arrays["x"].ctypes.data in gpu.cuda.locked
    Engine().decode(batch, start, stop)
    Engine().infer(batch)
    answers = batch.runs[0].outputs["y"]
    np.testing.assert_allclose(answers, gpu.sessions[0].plain({"x": batch.feed.arrays["x"]})[0], rtol=1e-5)


# Sizes


def test_sizes_are_padded_where_switching_is_dear(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """A session that is slow after every change of size is joined by one for each of a few sizes; answers stay."""
    gpu.switch_s = 0.05
    model = on_gpu(tmp_path, models.mlp())
    plain = gpu.sessions[0].plain
    assert model.warm(64, 1 << 20) == 64
    assert len(gpu.sessions) == 7
    gpu.switch_s = 0.0
    for session in gpu.sessions:
        session.shapes.clear()
    for rows, size in ((1, 1), (3, 4), (5, 8), (16, 16), (33, 64), (64, 64)):
        x = RANDOM.random((rows, 20), np.float32)
        np.testing.assert_allclose(model.run({"x": x})["y"], plain({"x": x})[0], rtol=1e-5)
        assert [s.shapes.pop() for s in gpu.sessions if s.shapes] == [(size, 20)]


def test_a_size_too_large_to_make_up_has_its_session_too(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Only batches of a few bytes may be made up at start; the largest is padded to all the same."""
    gpu.switch_s = 0.05
    model = on_gpu(tmp_path, models.identity())
    assert model.warm(64, 8 * model.sample_nbytes) == 64
    gpu.switch_s = 0.0
    model.run({"x": np.zeros((40, 4), np.float32)})
    assert [s.shapes[-1] for s in gpu.sessions if s.shapes and len(s.seen[-1]["x"]) > 8] == [(64, 4)]


def test_padding_is_made_of_the_batchs_own_rows(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """What an earlier batch left on the device may be what made it fail: it is never run again."""
    gpu.switch_s = 0.05
    model = on_gpu(tmp_path, models.identity())
    model.warm(16, 1 << 20)
    model.run({"x": np.full((16, 4), 666, np.float32)})
    model.run({"x": np.full((16, 4), 666, np.float32)})
    rows = np.arange(36, dtype=np.float32).reshape(9, 4)
    model.run({"x": rows})
    seen = next(s.seen[-1]["x"] for s in gpu.sessions if s.seen and len(s.seen[-1]["x"]) == 16)
    assert seen.shape == (16, 4)
    assert {tuple(row) for row in seen} == {tuple(row) for row in rows}


def test_sizes_are_as_they_come_where_switching_is_cheap(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """One session for all, nothing padded; warm-up has run every power of two in both slots."""
    model = on_gpu(tmp_path, models.mlp())
    (session,) = gpu.sessions
    session.shapes.clear()
    model.warm(16, 1 << 20)
    assert {rows for rows, _ in session.shapes} == {1, 2, 4, 8, 16}
    model.run({"x": np.zeros((13, 20), np.float32)})
    assert session.shapes[-1] == (13, 20)


def test_a_large_model_gets_fewer_sizes() -> None:
    """Each size costs the model's weights once more; the largest is always there, and nearly always one."""
    assert padded_sizes(64, 10) == [64, 32, 16, 8, 4, 2, 1]
    assert padded_sizes(100, 8) == [100, 64, 32, 16, 8, 4, 2, 1]
    assert padded_sizes(64, 4) == [64, 16, 4, 1]
    assert padded_sizes(64, 2) == [64, 1]
    assert padded_sizes(64, 1) == [64]
    assert padded_sizes(1, 5) == [1]


def test_kernels_that_round_otherwise_are_no_reason_to_run_alone(
    gpu: fake_gpu.Runtime, tmp_path: Path
) -> None:
    """A GPU answers a batch with other kernels than an item; items that really see each other stay alone."""
    gpu.noise = 3e-3
    assert on_gpu(tmp_path, models.mlp()).signature.batchable
    for mixed in (models.centred(), models.cumulative(), models.softmax_over_batch(), models.total()):
        assert not on_gpu(tmp_path, mixed).signature.batchable


# Failures


def test_a_broken_device_is_a_sick_model(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """After an illegal access every call fails: the run says so and so does the canary, which ends the worker."""
    model = on_gpu(tmp_path, models.mlp())
    assert model.canary()
    gpu.cuda.broken = fake_gpu.ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        model.run({"x": np.zeros((1, 20), np.float32)})
    assert not model.canary()
    assert model.empty((2, 4), np.dtype(np.float32)).shape == (2, 4)


def test_a_failed_run_gives_its_slot_back(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Errors more than there are slots, and the model still answers."""
    model = on_gpu(tmp_path, models.identity())
    gpu.error = RuntimeError("Failed to allocate memory for requested buffer of size 1")
    for _ in range(5):
        with pytest.raises(RuntimeError):
            model.run({"x": np.zeros((1, 4), np.float32)})
    gpu.error = None
    assert model.canary()


def test_no_driver_is_one_sentence(
    gpu: fake_gpu.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a GPU is told at start, with what was not found."""

    def absent(keep_interpreter: bool = False) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "load_library", absent)
    with pytest.raises(
        StartError, match=r"cuda did not start on this machine: libcuda\.so\.1.*likely no GPU"
    ):
        on_gpu(tmp_path, models.mlp())


def test_a_provider_that_the_runtime_leaves_out_is_refused(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """The runtime would answer from the CPU without a word."""
    gpu.working.clear()
    with pytest.raises(StartError, match="cuda did not start"):
        on_gpu(tmp_path, models.mlp())


# Closing


def left_over(gpu: fake_gpu.Runtime) -> tuple[int, int, int, int]:
    """Driver handles, runtime sessions, bindings and device buffers that nobody has given back."""
    gpu.sessions.clear()
    gpu.error = None  # its traceback holds what it went through
    gc.collect()
    return gpu.cuda.handles, len(gpu.open), len(gpu.bindings), len(fake_gpu.OrtValue.alive)


@pytest.mark.parametrize("model", [models.mlp(), models.identity(str)], ids=["bound", "strings"])
def test_a_closed_model_has_given_everything_back(
    gpu: fake_gpu.Runtime, tmp_path: Path, model: bytes
) -> None:
    """Streams, events, page-locked blocks, the context, sessions of every padded size, bindings and device buffers."""
    before = left_over(gpu)
    gpu.switch_s = 0.05
    loaded = on_gpu(tmp_path, model, instances=2)
    loaded.warm(8, 1 << 20)
    feeds = loaded.sample(1)
    assert feeds is not None
    loaded.run(feeds)
    assert gpu.cuda.handles > 0
    loaded.close()
    loaded.close()
    assert left_over(gpu) == before
    with pytest.raises(Closed):
        loaded.run(feeds)


def test_closing_waits_for_the_run_in_progress(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """A run that is on the device when the model is closed still gives its answer."""
    model = on_gpu(tmp_path, models.identity())
    session = gpu.sessions[0]
    before = len(session.shapes)
    gpu.cuda.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(model.run, {"x": np.full((1, 4), 5, np.float32)})
        until(lambda: len(session.shapes) == before + 1)
        closing = pool.submit(model.close)
        assert not closing.done()
        gpu.cuda.gate.set()
        assert (run.result(20)["y"] == 5).all()
        closing.result(20)
    assert gpu.cuda.contexts == 1  # the answer lies in page-locked memory
    del run
    gc.collect()
    assert gpu.cuda.handles == 0


def test_an_array_outlives_its_model(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Page-locked memory that somebody still reads when the model is closed goes back with its last array."""
    model = on_gpu(tmp_path, models.identity())
    answer = model.run({"x": np.full((2, 4), 7, np.float32)})["y"]
    buffer = model.empty((2, 4), np.dtype(np.float32))
    model.close()
    assert (answer == 7).all()
    assert len(gpu.cuda.locked) == 2
    del answer, buffer
    gc.collect()
    assert gpu.cuda.handles == 0


@pytest.mark.parametrize("providers", [["cuda", "cpu"], ["tensorrt", "cuda", "cpu"]])
def test_a_model_that_cannot_be_had_leaves_nothing_behind(
    gpu: fake_gpu.Runtime, tmp_path: Path, providers: list[str]
) -> None:
    """A load that fails, at the file or at the first run, gives back what it had opened by then."""
    before = left_over(gpu)
    with pytest.raises(StartError):
        load(models.write(tmp_path, b"no model"), providers=providers)
    gpu.error = RuntimeError("TensorRT EP failed to create engine")
    if "tensorrt" in providers:
        with pytest.raises(StartError):
            load(models.write(tmp_path, models.mlp()), providers=providers)
    assert left_over(gpu) == before


def test_a_broken_device_can_be_closed(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """After an illegal access every call fails, and closing the model raises nothing all the same."""
    model = on_gpu(tmp_path, models.mlp())
    gpu.cuda.broken = fake_gpu.ILLEGAL_ADDRESS
    model.close()


def test_a_model_can_be_on_another_device(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """Context, sessions, buffers and bindings are all on the device that was asked for."""
    model = on_gpu(tmp_path, models.identity(), devices=[1])
    assert (model.run({"x": np.ones((2, 4), np.float32)})["y"] == 1).all()
    assert gpu.cuda.devices == [1]
    assert gpu.sessions[0].options[fake_gpu.CUDA]["device_id"] == "1"
    assert {value.index for value in fake_gpu.OrtValue.alive if value.array.dtype == np.uint8} == {1}
    model.close()


# TensorRT


def test_tensorrt_builds_one_engine_for_all_sizes(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """The profile is written out, the cache is the model's and the device's, and both providers share the stream."""
    path = models.write(tmp_path, models.image(size=28))
    model = load(path, providers=["tensorrt", "cuda", "cpu"], max_size=32)
    session = gpu.sessions[-1]
    options = session.options[fake_gpu.TENSORRT]
    assert options["trt_profile_min_shapes"] == "x:1x3x28x28"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "x:32x3x28x28"
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.parts[-2:] == (model.sha256[:16], "nvidia-test-9000-sm90")
    assert options["user_compute_stream"] == session.options[fake_gpu.CUDA]["user_compute_stream"]
    assert model.provider == "tensorrt"
    assert session.queued  # no size makes it build again, so the next run is put in line behind
    feeds = {"x": RANDOM.random((9, 3, 28, 28), np.float32)}
    np.testing.assert_array_equal(model.run(feeds)["y"], session.plain(feeds)[0])


def test_tensorrt_that_takes_only_parts_of_a_model_finds_their_shapes_out(
    gpu: fake_gpu.Runtime, tmp_path: Path
) -> None:
    """A profile names the model's inputs, and those of the parts nobody knows: it is refused, and left out."""
    gpu.takes_parts = True
    model = load(
        models.write(tmp_path, models.image(size=28)), providers=["tensorrt", "cuda", "cpu"], instances=2
    )
    assert not [
        name for s in gpu.sessions for name in s.options.get(fake_gpu.TENSORRT, {}) if "profile" in name
    ]
    feeds = {"x": RANDOM.random((9, 3, 28, 28), np.float32)}
    np.testing.assert_array_equal(model.run(feeds)["y"], gpu.sessions[-1].plain(feeds)[0])


def test_tensorrt_that_cannot_build_an_engine_is_no_start(gpu: fake_gpu.Runtime, tmp_path: Path) -> None:
    """It says so only when it is asked to run; taken for a refusal of made-up items, every record would be one."""
    gpu.error = RuntimeError(
        "[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP failed to create engine from network."
    )
    with pytest.raises(StartError, match="cannot be run on tensorrt: TensorRT EP failed to create engine"):
        load(models.write(tmp_path, models.image(size=28)), providers=["tensorrt", "cuda", "cpu"])


# Page-locked memory


def test_a_block_is_used_again_once_no_array_needs_it(gpu: fake_gpu.Runtime) -> None:
    """A view keeps its block; when that is gone too, the next array of that size gets it."""
    memory = PinnedMemory(Driver())
    array = memory.empty((1000, 3), np.dtype(np.float32))
    address, view = array.ctypes.data, array[500:]
    assert address in gpu.cuda.locked
    del array
    assert memory.empty((1000, 3), np.dtype(np.float32)).ctypes.data != address
    del view
    taken = [memory.empty((1000, 3), np.dtype(np.float32)) for _ in range(2)]
    assert address in {array.ctypes.data for array in taken}
    assert len(gpu.cuda.locked) == 2


def test_plain_memory_will_do(gpu: fake_gpu.Runtime) -> None:
    """Where the system locks no more, arrays are as slow to copy as others, and that is all."""
    gpu.cuda.lockable_bytes = 0
    array = PinnedMemory(Driver()).empty((4, 4), np.dtype(np.int64))
    array[:] = 7
    assert not gpu.cuda.locked


def test_blocks_are_taken_back_from_any_thread(gpu: fake_gpu.Runtime) -> None:
    """Arrays that several threads drop at once cost no more blocks than were in use together."""
    memory = PinnedMemory(Driver())

    def use() -> None:
        for _ in range(200):
            memory.empty((64,), np.dtype(np.uint8))[:] = 1

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gpu.cuda.locked) <= 4
