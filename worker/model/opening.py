"""Opening a model file with ONNX Runtime: options, refusals in one sentence, what the runtime reports of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.errors import StartError
from worker.model.providers import fallback_refused, provider_options
from worker.model.signature import TensorSpec

_SILENT = 4
"""The runtime's log level "fatal": its errors reach us as exceptions, and standard error is for our own logs."""


def import_runtime() -> Any:
    """The onnxruntime module, quiet.

    Raises:
        StartError: it is not installed, or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise StartError(
            f"ONNX Runtime cannot be imported ({one_line(str(error))}): install streaminfer[cpu] or streaminfer[gpu]"
        ) from error
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


def open_on_cpu(runtime: Any, path: Path, providers: Sequence[str], one_shape: bool) -> Any:
    """The runtime's session on the CPU, with kept memory layouts where there is an end to them.

    With the layout of a batch size known, a run takes its memory in one piece. Piece by piece two threads get in each
    other's way: a frame through a SqueezeNet takes 6.9 ms of CPU alone, and beside another 8.6 singly and 8.0 in batches of
    four; with layouts 6.9 (medians of seven processes, onnxruntime 1.31.1). A layout of some hundred bytes is kept for
    every set of input shapes: as many as batch sizes, but without end where items have any shape.

    Args:
        one_shape: items will have one shape even where the model takes any.

    Raises:
        StartError: as :func:`open_session`.
    """
    options = provider_options(providers)
    session = open_session(runtime, path, providers, options, layouts=True)
    if one_shape or all(
        isinstance(length, int) for value in session.get_inputs() for length in value.shape[1:]
    ):
        return session
    del session  # before the next one takes as much memory
    return open_session(runtime, path, providers, options)


def open_session(
    runtime: Any,
    path: Path,
    providers: Sequence[str],
    options: list[tuple[str, dict[str, str]]],
    *,
    layouts: bool = False,
) -> Any:
    """The runtime's session; its own silent retry on the CPU is switched off.

    Args:
        providers: ``model.providers``.
        options: the same as the runtime wants them, see :func:`worker.model.providers.provider_options`.
        layouts: keep the memory layout of every set of input shapes.

    Raises:
        StartError: the file cannot be loaded, or not all of it runs on the providers named.
    """
    try:
        return runtime.InferenceSession(
            str(path), _session_options(runtime, providers, layouts), providers=options, enable_fallback=0
        )
    except Exception as error:
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise fallback_refused(path, providers) from error
        raise StartError(
            f"model.path: {path} cannot be loaded on {providers[0]}: {one_line(str(error))}"
        ) from error


def described_inputs(runtime: Any, path: Path) -> tuple[TensorSpec, ...]:
    """The model's inputs before it is opened for TensorRT, which has to know; empty where the CPU cannot load it."""
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return specs_of("input", session.get_inputs(), path.stem)
    except Exception:  # whatever it is, opening it in earnest says so
        return ()


def specs_of(kind: str, described: Sequence[Any], model: str) -> tuple[TensorSpec, ...]:
    """What the runtime reports of the inputs or outputs.

    Raises:
        StartError: one of them is no tensor of a supported type.
    """
    specs = []
    for value in described:
        try:
            specs.append(TensorSpec.of(value.name, value.type, value.shape))
        except KeyError:
            advice = " (scikit-learn converters: zipmap=False)" if "map(" in value.type else ""
            raise StartError(
                f"model.path: {kind} {value.name!r} of {model} is {value.type}, "
                f"expected a tensor of numbers, booleans or strings{advice}"
            ) from None
    return tuple(specs)


def one_line(message: str) -> str:
    """The runtime's reason without its codes, source locations and line breaks."""
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    message = re.sub(r"Load model from .*? failed:", "", message)
    message = re.sub(r"/onnxruntime_src/\S+:\d+ .*\) (?=[A-Z])", "", message, flags=re.DOTALL)
    return " ".join(message.split())[:500]


def _session_options(runtime: Any, providers: Sequence[str], layouts: bool) -> Any:
    """One thread per run and no spinning: runs share the cores by being many, which costs no CPU on top."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = layouts
    options.log_severity_level = _SILENT
    if "cpu" not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options
