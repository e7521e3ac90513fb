"""Loading a model: identity, refusals in one sentence, runs, canary, warm-up."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
import structlog
from onnx import helper

from worker.errors import ConfigError, StartError
from worker.model.backend import Closed
from worker.model.session import Model, load


def loaded(folder: Path, model: bytes) -> Model:
    return load(models.write(folder, model))


# Identity


def test_name_is_the_stem_and_version_the_start_of_the_hash(tmp_path: Path) -> None:
    """Without a name and version the file gives both."""
    path = models.write(tmp_path, models.mlp(), "digits.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = load(path)
    assert (model.name, model.version, model.sha256) == ("digits", digest[:8], digest)


def test_given_name_and_version_win(tmp_path: Path) -> None:
    """A name and a version from the configuration are taken as they are."""
    model = load(models.write(tmp_path, models.mlp()), name="iris", version="7")
    assert (model.name, model.version) == ("iris", "7")


def test_sha256_covers_external_data(tmp_path: Path) -> None:
    """A changed weight in an external data file is another model."""
    path = models.external(tmp_path)
    parts = (path, tmp_path / "a.bin", tmp_path / "b.bin")
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert load(path, sha256=digest.upper()).version == digest[:8]

    (tmp_path / "a.bin").write_bytes(np.full(3, 9, np.float32).tobytes())
    with pytest.raises(StartError, match=rf"model\.sha256.* expected {digest}"):
        load(path, sha256=digest)


# Refusals


@pytest.mark.parametrize(
    ("size", "one_shape", "kept"),
    [(28, False, True), (None, False, False), (None, True, True)],
    ids=["fixed items", "any size", "made to fit"],
)
def test_memory_layouts_are_kept_where_they_have_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, one_shape: bool, kept: bool
) -> None:
    """The runtime keeps one for every set of input shapes: one per batch size, or one per picture ever seen."""
    opened: list[bool] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: onnxruntime.SessionOptions, **more: Any) -> onnxruntime.InferenceSession:
        opened.append(options.enable_mem_pattern)
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    load(models.write(tmp_path, models.image(size=size)), one_shape=one_shape)
    assert opened[-1] == kept


@pytest.mark.parametrize("one_shape", [False, True])
def test_memory_is_given_back_when_items_change_their_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_shape: bool
) -> None:
    """Not after every run: its pages would be made anew each time. The batch's size is no part of an item's shape."""
    gives_back: list[bool] = []

    class RunOptions(onnxruntime.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            super().add_run_config_entry(key, value)
            self.shrinks = key == "memory.enable_memory_arena_shrinkage"

    class Session(onnxruntime.InferenceSession):
        def run(self, names: Any, feeds: Any, options: Any = None) -> Any:
            gives_back.append(getattr(options, "shrinks", False))
            return super().run(names, feeds, options)

    monkeypatch.setattr(onnxruntime, "RunOptions", RunOptions)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    model = load(models.write(tmp_path, models.image(size=None)), one_shape=one_shape)
    gives_back.clear()
    for count, size in [(1, 30), (4, 30), (2, 30), (1, 40), (1, 40), (3, 30)]:
        model.run({"x": np.zeros((count, 3, size, size), np.float32)})
    assert gives_back == [not one_shape and changed for changed in (True, False, False, True, False, True)]


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    """A path that is no file is one sentence about model.path."""
    with pytest.raises(StartError, match=r"model\.path: .*absent\.onnx does not exist"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(StartError, match=r"model\.path: .* is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", models.mlp()[:200], b"\x80" * 100], ids=range(4))
def test_what_is_no_model_is_one_line_without_codes(tmp_path: Path, content: bytes) -> None:
    """Empty, foreign and cut files are refused with the runtime's reason, trimmed."""
    with pytest.raises(StartError, match=r"model\.path: .* cannot be loaded on cpu: \w") as caught:
        loaded(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


@pytest.mark.parametrize(
    ("versions", "named"), [({"ir_version": 99}, "IR version: 99"), ({"opset": 99}, "Opset 99")]
)
def test_too_new_versions_are_named(tmp_path: Path, versions: dict[str, int], named: str) -> None:
    """A model newer than the runtime says which version is too new, not where in the source."""
    shape = ["N", 2]
    model = models.build(
        [helper.make_node("Relu", ["x"], ["y"])],
        [models.tensor("x", np.float32, shape)],
        [models.tensor("y", np.float32, shape)],
        **versions,
    )
    with pytest.raises(StartError, match=named) as caught:
        loaded(tmp_path, model)
    assert "onnxruntime_src" not in str(caught.value)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    """The data file that is not there stands in the message."""
    path = models.external(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(StartError, match=r"b\.bin"):
        load(path)


def test_output_that_is_no_tensor_is_named_with_the_remedy(tmp_path: Path) -> None:
    """An output that is a sequence of tensors is named, with what is expected."""
    with pytest.raises(StartError, match=r"output 'y' of model is seq\(tensor\(float\)\), expected a tensor"):
        loaded(tmp_path, models.sequence())


def test_provider_of_another_build_is_refused(tmp_path: Path) -> None:
    """cuda on a CPU build is an error with the remedy, never a silent fallback."""
    path = models.write(tmp_path, models.mlp())
    with pytest.raises(StartError, match=r"model\.providers: cuda .*streaminfer\[gpu\]"):
        load(path, providers=["cuda", "cpu"])
    with pytest.raises(ConfigError, match=r"model\.providers: 'gpu' is unknown"):
        load(path, providers=["gpu"])


def test_absent_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX Runtime the sentence names both extras."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(StartError, match=r"streaminfer\[cpu\] or streaminfer\[gpu\]"):
        loaded(tmp_path, models.mlp())


# Runs


def test_outputs_come_in_the_models_order(tmp_path: Path) -> None:
    """A run answers every output, by name, in the order the model declares."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    outputs = loaded(tmp_path, models.two_outputs()).run({"x": x})
    assert list(outputs) == ["double", "negative"]
    np.testing.assert_array_equal(outputs["double"], 2 * x)
    np.testing.assert_array_equal(outputs["negative"], -x)


@pytest.mark.parametrize(
    "dtype", [bool, "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", str], ids=str
)
def test_every_dtype_loads_and_batches(tmp_path: Path, dtype: object) -> None:
    """Each tensor type of the protocol is taken, warmed and found batchable."""
    model = loaded(tmp_path, models.identity(dtype))
    assert model.signature.batchable
    assert model.canary()


def test_signature_describes_inputs_and_outputs(tmp_path: Path) -> None:
    """Names, dtypes and free dimensions come from the model."""
    signature = loaded(tmp_path, models.image(channels=3, size=None, dtype=np.uint8)).signature
    (x,), (y,) = signature.inputs, signature.outputs
    assert (x.name, x.datatype, x.shape, x.fixed) == ("x", "UINT8", (None, 3, None, None), False)
    assert (y.name, y.datatype, y.shape) == ("y", "FP32", (None, 3))


def test_output_of_unknown_rank_takes_the_rank_observed(tmp_path: Path) -> None:
    """A model file that does not say its output's rank is not taken for a scalar."""
    model = models.build(
        [
            helper.make_node("Shape", ["x"], ["size"]),
            helper.make_node("Compress", ["size", "all"], ["shape"]),  # of a length nothing declares
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("y", np.float32, None)],
        {"all": np.array([True, True])},
    )
    found = loaded(tmp_path, model).signature
    assert found.outputs[0].shape == (None, None)
    assert found.batchable


def test_interrupt_ends_the_run_in_progress_only(tmp_path: Path) -> None:
    """An interrupted run fails; the next one answers."""
    model = loaded(tmp_path, models.slow(steps=3000, width=64))
    feeds = {"x": np.ones((256, 64), np.float32)}
    failures: list[Exception] = []

    def run_until_interrupted() -> None:
        try:
            while True:
                model.run(feeds)
        except Exception as error:
            failures.append(error)

    runner = threading.Thread(target=run_until_interrupted)
    runner.start()
    while runner.is_alive():
        model.interrupt()
        runner.join(0.01)
    assert "terminate" in str(failures[0])
    assert model.run({"x": np.ones((1, 64), np.float32)})["y"].shape == (1, 64)


def test_nothing_is_printed_by_the_runtime(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A failing load and a failing run leave standard output and error to the worker's own logs."""
    with structlog.testing.capture_logs():
        model = loaded(tmp_path, models.raises_on())
        with pytest.raises(Exception, match="out of data bounds"):
            model.run({"x": np.full((1, 4), 666, np.float32)})
        with pytest.raises(StartError):
            loaded(tmp_path, b"no model")
    assert capfd.readouterr() == ("", "")


# Canary


def test_canary_fails_once_the_model_answers_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another answer, or none at all, to the known item is a sick model."""
    model = loaded(tmp_path, models.mlp())
    assert model.canary()
    healthy = model.run
    monkeypatch.setattr(model, "run", lambda feeds: {"y": healthy(feeds)["y"] + np.float32(0.1)})
    assert not model.canary()

    def fails(feeds: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(model, "run", fails)
    assert not model.canary()


def test_canary_allows_nan(tmp_path: Path) -> None:
    """A known answer that holds NaN is met by NaN."""
    model = models.build(
        [helper.make_node("Sub", ["x", "two"], ["low"]), helper.make_node("Log", ["low"], ["y"])],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("y", np.float32, ["N", 4])],
        {"two": np.float32(2)},
    )
    assert loaded(tmp_path, model).canary()


def test_model_that_refuses_made_up_items_adopts_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, not batchable, ready; the first answered record is its canary, kept apart from the caller's buffers."""
    with structlog.testing.capture_logs() as logs:
        model = loaded(tmp_path, models.refuses_small_ids())
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert not model.signature.batchable
    assert model.needs_canary
    assert model.canary()

    feeds = {"x": np.array([7])}
    model.adopt_canary(feeds, model.run(feeds))
    feeds["x"][0] = 8
    assert not model.needs_canary
    assert model.canary()
    healthy = model.run
    monkeypatch.setattr(model, "run", lambda feeds: {"y": -healthy(feeds)["y"]})
    assert not model.canary()


def test_model_that_never_repeats_itself_has_no_canary(tmp_path: Path) -> None:
    """Random answers are no sign of sickness, and never share a run."""
    with structlog.testing.capture_logs() as logs:
        model = loaded(tmp_path, models.noise())
    assert len(logs) == 1
    assert model.canary()
    assert not model.signature.batchable


# Warm-up


def test_warm_keeps_the_size_the_model_takes(tmp_path: Path) -> None:
    """A size the model takes is what may be used, however little of it may be made up."""
    model = loaded(tmp_path, models.mlp())
    assert model.warm(64, 1 << 20) == 64
    assert model.warm(64, 1) == 64


def test_warm_finds_the_largest_half_the_model_takes(tmp_path: Path) -> None:
    """A model that fails above five rows runs by four, with one warning."""
    model = loaded(tmp_path, models.raises_above(5))
    with structlog.testing.capture_logs() as logs:
        assert model.warm(64, 1 << 20) == 4
    assert len(logs) == 1


@pytest.mark.parametrize(("model", "batch"), [(models.fixed_batch(8), 8), (models.fixed_batch(1), None)])
def test_fixed_first_dimension_is_reported(tmp_path: Path, model: bytes, batch: int | None) -> None:
    """A model fixed to eight rows is not batchable and says eight; one row is simply one record."""
    found = loaded(tmp_path, model)
    assert found.fixed_batch == batch
    assert not found.signature.batchable
    assert found.canary()


# Closing


def test_a_closed_model_has_let_its_session_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime's session is gone once the model is closed, however long the model itself is kept."""
    opened: weakref.WeakSet[Any] = weakref.WeakSet()
    real = onnxruntime.InferenceSession

    def session(*arguments: Any, **options: Any) -> Any:
        opened.add(made := real(*arguments, **options))
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    model = loaded(tmp_path, models.mlp())
    assert len(opened) == 1
    model.close()
    model.close()
    gc.collect()
    assert len(opened) == 0
    with pytest.raises(Closed, match="closed"):
        model.run({"x": np.zeros((1, 20), np.float32)})


def test_memory_after_twenty_models_is_that_after_three(tmp_path: Path) -> None:
    """Models that are closed, and kept, cost no memory: twenty of 32 MiB take what three took, give or take one."""
    path = models.write(tmp_path, models.mlp(1024, 1024, 4096))
    script = f"""
        from pathlib import Path
        from worker.model.session import load
        from worker.process import runtime
        runtime.prepare()  # the allocator's limits of a worker
        kept, resident = [], []
        for _ in range(20):
            model = load(Path({str(path)!r}))
            model.warm(8, 1 << 20)
            model.close()
            kept.append(model)
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        print(resident[2], resident[-1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    third, last = map(int, done.stdout.split())
    assert last < third + (32 << 20)


def test_a_sick_model_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary tells how the answer differs from the known one, or why there is none."""
    model = loaded(tmp_path, models.mlp())
    assert model.sickness() is None
    healthy = model.run
    monkeypatch.setattr(model, "run", lambda feeds: {"y": healthy(feeds)["y"] + np.float32(0.5)})
    assert (model.sickness() or "").startswith("output y differs by 0.5")

    def fails(feeds: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(model, "run", fails)
    assert model.sickness() == "device lost"
