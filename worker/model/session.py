"""A loaded model: one ONNX Runtime session shared by all threads, its identity and its canary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from worker.errors import StartError
from worker.model.fingerprint import model_sha256
from worker.model.providers import fallback_refused, preload_libraries, provider_in_use, provider_options
from worker.model.signature import Signature, TensorSpec
from worker.model.warmup import Probe, Tensors, batch_of, probe, same, sizes_to_warm

log = structlog.get_logger()

_SILENT = 4
"""The runtime's log level "fatal": its errors reach us as exceptions, and standard error is for our own logs."""


class Model:
    """One model, ready to run; safe to use from several threads at once."""

    def __init__(
        self,
        session: Session,
        signature: Signature,
        found: Probe,
        *,
        name: str,
        version: str,
        sha256: str,
        provider: str,
    ) -> None:
        self.name = name
        self.version = version
        self.sha256 = sha256
        """Over the model file and its external data files."""
        self.provider = provider
        """What runs it: cpu, cuda or tensorrt."""
        self.signature = signature
        self.fixed_batch = _fixed_batch(signature.inputs)
        """The first dimension B > 1 that every input is fixed to, else None. Such a model is not batchable."""
        self.needs_canary = found.item is None
        """The made-up items were refused and no record has taken their place yet."""
        self._canary = (
            (found.item, found.outputs) if found.item and found.outputs and found.repeatable else None
        )
        self._found = found
        self._session = session

    def run(self, feeds: Tensors) -> Tensors:
        """Runs the model once.

        Args:
            feeds: every input by name, full rank, C order, in the model's dtype.

        Returns:
            The outputs by name, in the model's order.

        Raises:
            Exception: whatever the runtime raises; also after :meth:`interrupt`.
        """
        return self._session.run(feeds)

    def interrupt(self) -> None:
        """Makes the runs in progress fail before their next operator; later runs are not concerned."""
        self._session.interrupt()

    def canary(self) -> bool:
        """Whether the model is healthy: the warm-up item runs and gives its known answer.

        True also where no such item is known. Never raises.
        """
        if self._canary is None:
            return True
        feeds, outputs = self._canary
        try:
            return same(self.run(feeds), outputs)
        except Exception:
            return False

    def adopt_canary(self, feeds: Tensors, outputs: Tensors) -> None:
        """Takes an answered record as the canary where the made-up items were refused.

        It is run once more first: an answer that does not repeat itself says nothing about health.
        """
        if not self.needs_canary:
            return
        self.needs_canary = False
        feeds, outputs = _copied(feeds), _copied(outputs)  # the caller uses its buffers again
        try:
            repeated = self.run(feeds)
        except Exception:
            self.needs_canary = True
            return
        if same(repeated, outputs):
            self._canary = feeds, outputs

    def sample(self, count: int) -> Tensors | None:
        """A made-up batch of ``count`` items (1 unless batchable); None where the model refused them."""
        if self._found.item is None or count == 1:
            return self._found.item
        return batch_of(self._found.item, count)

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one made-up item and of its answer; 0 where the model refused them."""
        tensors = [*(self._found.item or {}).values(), *(self._found.outputs or {}).values()]
        return sum(array.nbytes for array in tensors)

    def warm(self, max_size: int, max_bytes: int) -> int:
        """Runs made-up batches of the sizes to come, so that the first records do not pay for them.

        Args:
            max_size: the largest batch there will be, in items.
            max_bytes: batches whose tensors take more are not made up; those sizes stay cold.

        Returns:
            The largest size that may be used: ``max_size``, or less where the model refuses that many at once.
        """
        if not self.signature.batchable:
            return max_size
        asked = max(1, min(max_size, max_bytes // max(1, self.sample_nbytes)))
        usable, refusal = asked, None
        while usable > 1 and (reason := self._refusal(usable)):
            usable, refusal = usable // 2, refusal or reason
        if refusal:
            log.warning(
                "the model refuses large batches", model=self.name, asked=asked, used=usable, reason=refusal
            )
        for size in sizes_to_warm(self.provider, usable):
            if size < usable:
                self._refusal(size)
        return max_size if usable == asked else usable

    def _refusal(self, size: int) -> str | None:
        """Why the model does not take a made-up batch of ``size`` items; None when it does."""
        try:
            self.run(self.sample(size) or {})
        except Exception as error:
            return one_line(str(error)) or type(error).__name__
        return None


class Session:
    """An ONNX Runtime session: all that is left of it behind the model is tensors in, tensors out."""

    def __init__(
        self, session: Any, runtime: Any, provider: str, output_names: Sequence[str], *, fixed: bool
    ) -> None:
        self._session = session
        self._runtime = runtime
        self._output_names = output_names
        # Items of many shapes leave the CPU arena at the sum of their peaks unless each run gives back its own.
        self._shrink = provider == "cpu" and not fixed
        self._options = self._run_options()

    def run(self, feeds: Tensors) -> Tensors:
        outputs = self._session.run(self._output_names, feeds, self._options)
        return dict(zip(self._output_names, outputs, strict=True))

    def interrupt(self) -> None:
        stopped, self._options = self._options, self._run_options()  # once set, the flag stays
        stopped.terminate = True

    def _run_options(self) -> Any:
        options = self._runtime.RunOptions()
        if self._shrink:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options


def load(
    path: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    sha256: str | None = None,
    providers: Sequence[str] = ("cpu",),
) -> Model:
    """Loads a model file and finds out what it takes, what it gives and whether items may share a run.

    Args:
        path: the ONNX file.
        name: default: the file's stem.
        version: default: the first 8 hexadecimal digits of the SHA-256 over the file and its external data.
        sha256: when given, what that SHA-256 must be.
        providers: ``model.providers``: every one must be in use, except a trailing cpu.

    Raises:
        StartError: no runtime, no such file, another SHA-256, not loadable, a provider that is not there, an
            input or output that is no tensor.
        ConfigError: ``providers`` makes no sense on any machine.
    """
    runtime = _import_runtime()
    digest = _sha256_of(path)
    if sha256 is not None and sha256.lower() != digest:
        raise StartError(
            f"model.sha256: {path} and its external data have {digest}, expected {sha256.lower()}"
        )
    options = provider_options(providers, runtime.get_available_providers(), digest)
    if missing := preload_libraries(runtime, providers):
        log.warning("the runtime found no CUDA libraries beside it", reason=missing)
    opened = _open(runtime, path, providers, options)
    provider = provider_in_use(providers, opened.get_providers())
    name = name or path.stem
    inputs = _specs("input", opened.get_inputs(), name)
    outputs = _specs("output", opened.get_outputs(), name)
    session = Session(
        opened, runtime, provider, [spec.name for spec in outputs], fixed=all(spec.fixed for spec in inputs)
    )
    found = probe(session.run, inputs, outputs)
    _warn(name, found)
    signature = Signature(inputs, _with_observed_ranks(outputs, found), found.batchable)
    return Model(
        session, signature, found, name=name, version=version or digest[:8], sha256=digest, provider=provider
    )


def one_line(message: str) -> str:
    """The runtime's reason without its codes, source locations and line breaks."""
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    message = re.sub(r"Load model from .*? failed:", "", message)
    message = re.sub(r"/onnxruntime_src/\S+:\d+ .*\) (?=[A-Z])", "", message, flags=re.DOTALL)
    return " ".join(message.split())[:500]


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise StartError(
            f"ONNX Runtime cannot be imported ({one_line(str(error))}): install streaminfer[cpu] or streaminfer[gpu]"
        ) from error
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


def _sha256_of(path: Path) -> str:
    if path.is_dir():
        raise StartError(f"model.path: {path} is a directory, expected an ONNX file")
    try:
        return model_sha256(path)
    except FileNotFoundError:
        raise StartError(f"model.path: {path} does not exist") from None
    except OSError as error:
        raise StartError(f"model.path: {path} cannot be read: {error.strerror}") from None


def _open(
    runtime: Any, path: Path, providers: Sequence[str], options: list[tuple[str, dict[str, str]]]
) -> Any:
    """The runtime's session; its own silent retry on the CPU is switched off."""
    try:
        return runtime.InferenceSession(
            str(path), _session_options(runtime, providers), providers=options, enable_fallback=0
        )
    except Exception as error:
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise fallback_refused(path, providers) from error
        raise StartError(
            f"model.path: {path} cannot be loaded on {providers[0]}: {one_line(str(error))}"
        ) from error


def _session_options(runtime: Any, providers: Sequence[str]) -> Any:
    """One thread per run and no spinning: runs share the cores by being many, which costs no CPU on top."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # it remembers one layout per batch size and gains nothing measurable
    options.log_severity_level = _SILENT
    if "cpu" not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _specs(kind: str, described: Sequence[Any], model: str) -> tuple[TensorSpec, ...]:
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


def _fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and size > 1 else None


def _warn(name: str, found: Probe) -> None:
    if found.item is None:
        log.warning(
            "the model refuses the made-up warm-up items: records run one at a time",
            model=name,
            reason=one_line(found.refusal),
        )
    elif not found.repeatable:
        log.warning(
            "the model answers the same item differently each time: records run one at a time, its health is not checked",
            model=name,
        )


def _copied(tensors: Tensors) -> Tensors:
    return {name: array.copy() for name, array in tensors.items()}


def _with_observed_ranks(outputs: tuple[TensorSpec, ...], found: Probe) -> tuple[TensorSpec, ...]:
    """The runtime reports an unknown rank as rank 0; an answer tells them apart."""
    if found.outputs is None:
        return outputs
    return tuple(
        spec if spec.shape else replace(spec, shape=(None,) * found.outputs[spec.name].ndim)
        for spec in outputs
    )
