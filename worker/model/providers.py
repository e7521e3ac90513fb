"""Execution providers: what runs the model, and the refusal to fall back in silence."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.errors import ConfigError, StartError

RUNTIME_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_LIKELY_CAUSES = (
    "no GPU, a driver that is too old (nvidia-smi shows both), or missing CUDA, cuDNN or TensorRT libraries"
)


def provider_options(
    wanted: Sequence[str], available: Sequence[str], model_sha256: str
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers argument for ``model.providers``, in the order given.

    Args:
        wanted: our names: cpu, cuda, tensorrt.
        available: what this build of the runtime contains, in the runtime's names.
        model_sha256: keys the TensorRT engine cache.

    Raises:
        ConfigError: an unknown name, or cpu anywhere but last (behind it nothing would ever be used).
        StartError: this build does not contain one of them.
    """
    if not wanted:
        raise ConfigError("model.providers is empty, expected at least one of cpu, cuda, tensorrt")
    for name in wanted:
        if name not in RUNTIME_NAMES:
            raise ConfigError(f"model.providers: {name!r} is unknown, expected cpu, cuda or tensorrt")
    if "cpu" in wanted[:-1]:
        raise ConfigError(
            "model.providers: cpu must be the last, it leaves nothing to a provider named after it"
        )
    for name in wanted:
        if RUNTIME_NAMES[name] not in available:
            raise StartError(
                f"model.providers: {name} is not in the installed ONNX Runtime; "
                "uninstall onnxruntime, then install streaminfer[gpu]"
            )
    return [(RUNTIME_NAMES[name], _options(name, model_sha256)) for name in wanted]


def provider_in_use(wanted: Sequence[str], in_use: Sequence[str]) -> str:
    """The first provider of a session, by our name; every wanted one but a trailing cpu must be in use.

    Raises:
        StartError: the runtime left one out (it only logs that, and answers from the CPU).
    """
    for name in wanted:
        if RUNTIME_NAMES[name] not in in_use:
            raise StartError(f"model.providers: {name} did not start on this machine: {_LIKELY_CAUSES}")
    return wanted[0]


def fallback_refused(path: Path, wanted: Sequence[str]) -> StartError:
    """Without a trailing cpu the whole model must run on the GPU; the runtime cannot tell why some of it does not."""
    return StartError(
        f"model.providers: not all of {path} can run on {' and '.join(wanted)}: put cpu behind for the rest; "
        f"or none of it can: {_LIKELY_CAUSES}"
    )


def preload_libraries(runtime: Any, wanted: Sequence[str]) -> str:
    """Loads the CUDA libraries that pip installed: they lie where the dynamic linker does not look.

    Returns:
        What the runtime prints about those it cannot load, on one line: standard output belongs to the command.
        They need not matter, the system may have them elsewhere.
    """
    printed = io.StringIO()
    if list(wanted) != ["cpu"] and hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            runtime.preload_dlls()
    return "; ".join(printed.getvalue().splitlines())


def _options(name: str, model_sha256: str) -> dict[str, str]:
    if name == "cuda":
        return {
            # Doubling the arena on every growth claims device memory that other processes could use.
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every convolution algorithm again for each new batch size: 634 ms instead of 2.
            "cudnn_conv_algo_search": "HEURISTIC",
        }
    if name == "tensorrt":
        cache = str(_engine_cache(model_sha256))
        return {
            "trt_engine_cache_enable": "1",  # building an engine takes minutes
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        }
    return {}


def _engine_cache(model_sha256: str) -> Path:
    """A writable folder for this model's engines; TensorRT puts the device's architecture into the file names."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "streaminfer" / "tensorrt" / model_sha256[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only root file system is normal in a container
        return Path(tempfile.mkdtemp(prefix="streaminfer-tensorrt-"))
    return folder
