"""Opening a model file with ONNX Runtime: options, refusals in one sentence, what the runtime reports of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.errors import StartError
from worker.model.providers import fallback_refused
from worker.model.signature import TensorSpec
from worker.shortage import check_address_space, shortage

_SOURCE_LINE = re.compile(r"/onnxruntime_src/\S+:\d+ ")
_SIGNATURE_GOES_ON = re.compile(
    r"::<lambda\(|>|::operator\(\)\(| const\b| noexcept\b| mutable\b| \[(?=with )"
)
_MAPS = {
    f"seq(map({key},tensor({element})))": element
    for key in ("string", "int64")
    for element in ("float", "double")
}
"""The runtime's types of what ZipMap gives -> type of its values."""
_SILENT = 4
"""The runtime's log level "fatal": its errors reach us as exceptions, and standard error is for our own logs."""


def import_runtime() -> Any:
    """The onnxruntime module, quiet.

    Raises:
        StartError: it is not installed, or does not load.
    """
    check_address_space()
    try:
        import onnxruntime
    except ImportError as error:
        if (sentence := shortage(error)) is not None:
            raise StartError(sentence) from error
        raise StartError(
            f"ONNX Runtime cannot be imported ({one_line(str(error))}): install streaminfer[cpu] or streaminfer[gpu]"
        ) from error
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


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
        raise StartError(_cannot_be_loaded(path, providers[0], str(error))) from error


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


def specs_of(
    kind: str, described: Sequence[Any], model: str, maps: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[TensorSpec, ...]:
    """What the runtime reports of the inputs or outputs.

    Args:
        maps: keys of the outputs that are sequences of maps, where they are known: see :attr:`worker.model.graph.Graph.maps`.

    Raises:
        StartError: one of them is no tensor of a supported type.
    """
    specs = []
    for value in {value.name: value for value in described}.values():  # a file may list one output twice
        try:
            specs.append(TensorSpec.of(value.name, value.type, value.shape))
        except KeyError:
            element = _MAPS.get(value.type)
            if element is not None and maps and value.name in maps:
                keys = maps[value.name]
                one = TensorSpec.of(value.name, f"tensor({element})", (None, len(keys)))
                specs.append(replace(one, keys=keys))
                continue
            advice = " (scikit-learn converters: zipmap=False)" if "map(" in value.type else ""
            raise StartError(
                f"model.path: {kind} {value.name!r} of {model} is {value.type}, "
                f"expected a tensor of numbers, booleans or strings{advice}"
            ) from None
    return tuple(specs)


def one_line(message: str) -> str:
    """The runtime's reason without its codes, its source files and functions, and without line breaks."""
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    message = re.sub(r"Load model from .*? failed:", "", message)
    while found := _SOURCE_LINE.search(message):
        end = _signature_end(message, found.end())
        message = f"{message[: found.start()]} {message[end:]}"
    return " ".join(message.split())[:500]


def _signature_end(text: str, start: int) -> int:
    """Where the C++ function ends that begins at ``start``; ``start`` itself if there is none.

    The runtime writes ``<file>:<line> <function> <reason>``. A function may be a lambda inside another one, a
    template, or have attributes; its arguments hold brackets of their own.
    """
    opening = text.find("(", start)
    if opening < 0 or "\n" in text[start:opening]:
        return start
    end = _closing(text, opening)
    while follows := _SIGNATURE_GOES_ON.match(text, end):
        end = _closing(text, follows.end() - 1) if follows[0].endswith(("(", "[")) else follows.end()
    return end


def _closing(text: str, opening: int) -> int:
    """The place behind the bracket that closes the one at ``opening``; the end of the text if none does."""
    pair = {"(": ")", "[": "]"}[text[opening]]
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == text[opening]) - (text[place] == pair)
        if depth == 0:
            return place + 1
    return len(text)


def _cannot_be_loaded(path: Path, provider: str, reason: str) -> str:
    """One sentence on a model that the runtime refuses; it says what to do for the refusals that users meet."""
    if found := re.search(r"Failed to construct locale with name:([\w.@-]+)", reason):
        return (
            f"model.path: {path} needs the locale {found[1]}, which this system does not have: install it (Debian and "
            f"Ubuntu: apt-get install locales && localedef -i {found[1].split('.')[0]} -f UTF-8 {found[1]}; "
            "Fedora and RHEL: dnf install glibc-langpack-en)"
        )
    if found := re.search(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op", reason):
        domain, operator = found[1], found[2]
        where = (
            "which this build of ONNX Runtime does not contain: export the model for a CPU, or install a newer onnxruntime"
            if domain == "com.microsoft"
            else "which comes with a library of custom operators: streaminfer loads no such library, "
            "export the model without it (pre- and postprocessing can move into the configuration or custom code)"
        )
        return f"model.path: {path} needs the operator {operator} of {domain}, {where}"
    return f"model.path: {path} cannot be loaded on {provider}: {one_line(reason)}"


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
