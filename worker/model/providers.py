"""ONNX Runtime's execution providers: their options, and the refusal of a silent fallback to the processor."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import ConfigError, StartError
from worker.model.signature import TensorSpec

RUNTIME_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_LIKELY_CAUSES = (
    "no GPU, a driver that is too old (nvidia-smi shows both), or missing CUDA, cuDNN or TensorRT libraries"
)

_CUDA = {
    # The default doubles the arena each time it grows, and takes device memory that other processes could use.
    "arena_extend_strategy": "kSameAsRequested",
    # The default tries all convolution algorithms for each new batch size: 634 ms instead of 2.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Tensor cores compute with channels last: a ResNet-50 in half precision is 1.4 times faster on an H200.
    "prefer_nhwc": "1",
}


def check_providers(wanted: Sequence[str], available: Sequence[str]) -> None:
    """Whether ``model.providers`` makes sense on this build of the runtime.

    Args:
        wanted: our names: cpu, cuda, tensorrt.
        available: what this build contains, in the runtime's names.

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


@dataclass(frozen=True, slots=True)
class Engines:
    """Where TensorRT keeps its engines, and for which shapes it builds them."""

    cache: Path
    profile: dict[str, str]
    """See :func:`shape_profile`."""


def provider_options(
    wanted: Sequence[str], stream: int = 0, engines: Engines | None = None, device: int = 0
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers argument for ``model.providers``, in the order given.

    Args:
        wanted: as :func:`check_providers` has found good.
        stream: the CUDA stream that everything is computed on, for cuda and tensorrt.
        engines: for tensorrt.
        device: number of the GPU, for cuda and tensorrt.
    """
    on_stream = {"device_id": str(device), "user_compute_stream": str(stream)}
    options: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {**_CUDA, **on_stream}, "tensorrt": on_stream}
    if engines is not None:
        cache = str(engines.cache)
        options["tensorrt"] |= {
            "trt_engine_cache_enable": "True",  # building an engine takes minutes; "1" is refused
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": cache,
            **engines.profile,
        }
    return [(RUNTIME_NAMES[name], options[name]) for name in wanted]


def shape_profile(inputs: Sequence[TensorSpec], max_size: int) -> dict[str, str]:
    """TensorRT's options for one engine that takes every batch of 1 to ``max_size`` items, and is fastest with the largest.

    Without these options TensorRT builds again, for minutes, whenever a batch is larger than all before. Empty if an
    item has free dimensions, because their bounds are not known, and if no dimension is free.
    """
    if not all(spec.fixed for spec in inputs) or not any(None in spec.shape[:1] for spec in inputs):
        return {}

    def shapes(size: int) -> str:
        return ",".join(
            f"{spec.name}:{'x'.join(str(size if d is None else d) for d in spec.shape)}" for spec in inputs
        )

    return {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(max_size),
        "trt_profile_max_shapes": shapes(max_size),
    }


def engine_cache(model_sha256: str, device: str) -> Path:
    """A writable folder for the engines of one model on one kind of device.

    Args:
        model_sha256: over the model file and its external data.
        device: name and compute capability, such as "nvidia-h200-sm90".
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "streaminfer" / "tensorrt" / model_sha256[:16] / device
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only root file system is normal in a container
        return Path(tempfile.mkdtemp(prefix="streaminfer-tensorrt-"))
    return folder


def did_not_start(name: str, reason: str = "") -> StartError:
    """The error for a provider that the runtime contains and that does not work on this machine."""
    found = f"{reason}; likely " if reason else ""
    return StartError(f"model.providers: {name} did not start on this machine: {found}{_LIKELY_CAUSES}")


def provider_in_use(wanted: Sequence[str], in_use: Sequence[str]) -> str:
    """The name, as in ``model.providers``, of a session's first provider. Every wanted provider must be in use.

    Raises:
        StartError: the runtime left one out. It only logs that, and answers from the CPU.
    """
    for name in wanted:
        if RUNTIME_NAMES[name] not in in_use:
            raise did_not_start(name)
    return wanted[0]


def fallback_refused(path: Path, wanted: Sequence[str]) -> StartError:
    """The error for a model that cannot run on the GPU as a whole, if no trailing cpu allows that.

    The runtime does not say which part cannot, nor why.
    """
    return StartError(
        f"model.providers: not all of {path} can run on {' and '.join(wanted)}: put cpu behind for the rest; "
        f"or none of it can: {_LIKELY_CAUSES}"
    )


def preload_libraries(runtime: Any, wanted: Sequence[str]) -> str:
    """Loads the CUDA and TensorRT libraries that pip installed, in folders where the dynamic linker does not look.

    Returns:
        What the runtime prints about libraries that it cannot load, on one line; standard output belongs to the
        command. Such a library is no error: the system may have it elsewhere.
    """
    printed = io.StringIO()
    if list(wanted) != ["cpu"] and hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            runtime.preload_dlls()
    if "tensorrt" in wanted:
        _preload_tensorrt()
    return "; ".join(printed.getvalue().splitlines())


def _preload_tensorrt() -> None:
    """Load the libraries of packages such as tensorrt-cu13-libs, which the runtime's own preloading leaves out.

    If one does not load, the provider says so when it starts.
    """
    package = importlib.util.find_spec("tensorrt_libs")
    for folder in (package.submodule_search_locations or []) if package else []:
        for name in (
            "libnvinfer.so.*",
            "libnvinfer_plugin.so.*",
            "libnvonnxparser.so.*",
        ):  # a library before those that need it
            for library in Path(folder).glob(name):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
