"""Every provider named must be in use; a trailing cpu is the only fallback. Needs no GPU: the runtime's lists are given."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.errors import ConfigError, StartError
from worker.model.providers import (
    Engines,
    check_providers,
    engine_cache,
    preload_libraries,
    provider_in_use,
    provider_options,
    shape_profile,
)
from worker.model.signature import TensorSpec

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHA256 = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_order_is_kept() -> None:
    """The runtime tries providers in the order given."""
    check_providers(["tensorrt", "cuda", "cpu"], [TENSORRT, CUDA, CPU])
    assert [name for name, _ in provider_options(["tensorrt", "cuda", "cpu"])] == [TENSORRT, CUDA, CPU]


def test_what_runs_on_a_gpu_shares_the_stream() -> None:
    """Copies wait for what is computed, so both providers have to compute on the stream given."""
    options = dict(provider_options(["tensorrt", "cuda", "cpu"], stream=4096))
    assert options[TENSORRT]["user_compute_stream"] == options[CUDA]["user_compute_stream"] == "4096"
    assert options[CPU] == {}


def test_tensorrt_engines_are_cached_per_model_and_device(cache: Path) -> None:
    """Building takes minutes: each model has a folder on each kind of device that the next start finds again."""
    folder = engine_cache(SHA256, "nvidia-h100-sm90")
    assert folder.is_dir()
    assert cache in folder.parents
    assert engine_cache(SHA256, "nvidia-h100-sm90") == folder
    assert engine_cache(SHA256[::-1], "nvidia-h100-sm90") != folder
    assert engine_cache(SHA256, "nvidia-l4-sm89") != folder
    ((_, options),) = provider_options(["tensorrt"], 1, Engines(folder, {}))
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"  # nothing else


def test_tensorrt_starts_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a writable cache the engines go to a temporary folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = engine_cache(SHA256, "nvidia-h100-sm90")
    assert folder.is_dir()
    folder.rmdir()


@pytest.mark.parametrize(
    ("shapes", "least", "most"),
    [
        ([[None, 3, 224, 224]], "x0:1x3x224x224", "x0:32x3x224x224"),
        ([[None, 20], [None]], "x0:1x20,x1:1", "x0:32x20,x1:32"),
        ([[None, 20], [1, 5]], "x0:1x20,x1:1x5", "x0:32x20,x1:1x5"),
    ],
)
def test_tensorrt_builds_for_the_sizes_to_come(shapes: list[list[int | None]], least: str, most: str) -> None:
    """From one item to the largest batch, and best for that: under load batches are full."""
    inputs = [TensorSpec.of(f"x{i}", "tensor(float)", shape) for i, shape in enumerate(shapes)]
    assert shape_profile(inputs, 32) == {
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": most,
        "trt_profile_max_shapes": most,
    }


@pytest.mark.parametrize("shape", [[None, 3, None, None], [8, 4], []])
def test_tensorrt_is_left_alone_where_nothing_is_known_or_free(shape: list[int | None]) -> None:
    """Items of any size have no bounds, a fixed batch needs none."""
    assert shape_profile([TensorSpec.of("x", "tensor(float)", shape)], 32) == {}


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ([], ConfigError, "model.providers is empty"),
        (["cpu", "gpu"], ConfigError, "'gpu' is unknown, expected cpu, cuda or tensorrt"),
        (["cpu", "cuda"], ConfigError, "cpu must be the last"),
        (["tensorrt", "cpu"], StartError, "tensorrt is not in the installed ONNX Runtime"),
    ],
)
def test_impossible_lists_are_refused(wanted: list[str], error: type[Exception], message: str) -> None:
    """What no machine can do is a configuration error; what this build cannot do keeps it from starting."""
    with pytest.raises(error, match=re.escape(message)):
        check_providers(wanted, [CUDA, CPU])


@pytest.mark.parametrize(
    ("wanted", "in_use", "expected"),
    [
        (["cpu"], [CPU], "cpu"),
        (["cuda", "cpu"], [CUDA, CPU], "cuda"),
        (["cuda"], [CUDA, CPU], "cuda"),
        (["tensorrt", "cuda", "cpu"], [TENSORRT, CUDA, CPU], "tensorrt"),
    ],
)
def test_first_provider_runs_the_model(wanted: list[str], in_use: list[str], expected: str) -> None:
    """When all are in use the first is what runs the model."""
    assert provider_in_use(wanted, in_use) == expected


@pytest.mark.parametrize(
    ("wanted", "in_use", "named"),
    [(["cuda", "cpu"], [CPU], "cuda"), (["tensorrt", "cuda", "cpu"], [CUDA, CPU], "tensorrt")],
)
def test_provider_left_out_is_an_error(wanted: list[str], in_use: list[str], named: str) -> None:
    """The runtime leaves out a provider whose libraries do not load, and answers from the next: refused."""
    with pytest.raises(StartError, match=rf"model\.providers: {named} did not start"):
        provider_in_use(wanted, in_use)


def test_preloading_keeps_standard_output_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """What the runtime prints about libraries is no part of the command's output; a CPU model loads none."""
    runtime = SimpleNamespace(preload_dlls=lambda: print("no libcudart\nno libcublas"))
    assert preload_libraries(runtime, ("cpu",)) == ""
    assert preload_libraries(runtime, ("cuda", "cpu")) == "no libcudart; no libcublas"
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs to see what is loaded")
def test_tensorrt_installed_by_pip_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is a folder of libraries that the dynamic linker does not know; a broken one is not our concern."""
    package = tmp_path / "tensorrt_libs"
    package.mkdir()
    (package / "__init__.py").touch()
    library = package / "libnvinfer.so.10"
    library.write_bytes(Path(_loaded_library()).read_bytes())
    (package / "libnvonnxparser.so.10").write_bytes(b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload_libraries(SimpleNamespace(), ("cuda", "cpu"))
    assert str(library) not in _maps()
    preload_libraries(SimpleNamespace(), ("tensorrt", "cuda", "cpu"))
    assert str(library) in _maps()


def _maps() -> str:
    return Path("/proc/self/maps").read_text()


def _loaded_library() -> str:
    return next(part for part in _maps().split() if "libm.so" in part or "libstdc++.so" in part)
