"""Every provider named must be in use; a trailing cpu is the only fallback. Needs no GPU: the runtime's lists are given."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.errors import ConfigError, StartError
from worker.model.providers import preload_libraries, provider_in_use, provider_options

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHA256 = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_order_is_kept() -> None:
    """The runtime tries providers in the order given."""
    chosen = provider_options(["tensorrt", "cuda", "cpu"], [TENSORRT, CUDA, CPU], SHA256)
    assert [name for name, _ in chosen] == [TENSORRT, CUDA, CPU]


def test_tensorrt_engines_are_cached_per_model(cache: Path) -> None:
    """Building takes minutes: each model has a folder of its own that the next start finds again."""
    ((_, options),) = provider_options(["tensorrt"], [TENSORRT], SHA256)
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir()
    assert cache in folder.parents
    ((_, again),) = provider_options(["tensorrt"], [TENSORRT], SHA256)
    ((_, other),) = provider_options(["tensorrt"], [TENSORRT], SHA256[::-1])
    assert again == options
    assert other != options


def test_tensorrt_starts_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a writable cache the engines go to a temporary folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ((_, options),) = provider_options(["tensorrt"], [TENSORRT], SHA256)
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir()
    folder.rmdir()


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
        provider_options(wanted, [CUDA, CPU], SHA256)


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
