"""A loaded model: one ONNX Runtime session shared by all threads, its identity and its canary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from worker.batch import Array
from worker.errors import StartError
from worker.model.fingerprint import model_sha256
from worker.model.gpu import GpuSession, bindable, open_on_gpu
from worker.model.memory import KeptMemory
from worker.model.opening import import_runtime, one_line, open_on_cpu, specs_of
from worker.model.providers import check_providers, preload_libraries, provider_in_use
from worker.model.signature import Signature, TensorSpec
from worker.model.warmup import GPU_TOLERANCE, Probe, Tensors, batch_of, probe, same, sizes_to_warm

log = structlog.get_logger()

LARGEST_UNKNOWN_SIZE = 128
"""Items in the largest batch that TensorRT builds for where that is still to be measured."""


class Model:
    """One model, ready to run; safe to use from several threads at once."""

    def __init__(
        self,
        session: Session | GpuSession,
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
        self._of_largest = _tolerance(provider)
        self.lookahead = session.lookahead
        """Runs worth handing over beyond ``model.instances``: a GPU copies them in while it computes those."""
        self.ahead = session.ahead
        """Batches worth decoding beyond those."""

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
            return same(self.run(feeds), outputs, self._of_largest)
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
        if same(repeated, outputs, self._of_largest):
            self._canary = feeds, outputs

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array for feeds, C order, its content undefined; where a GPU runs the model, in page-locked memory."""
        return self._session.empty(shape, dtype)

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
        largest = max_size if usable == asked else usable
        if self._found.item is not None:
            item = self._found.item
            self._session.warm(
                sizes_to_warm(self.provider, usable),
                lambda size: item if size == 1 else batch_of(item, size),
                largest,
            )
        return largest

    def _refusal(self, size: int) -> str | None:
        """Why the model does not take a made-up batch of ``size`` items; None when it does."""
        try:
            self.run(self.sample(size) or {})
        except Exception as error:
            return one_line(str(error)) or type(error).__name__
        return None


class Session:
    """An ONNX Runtime session: all that is left of it behind the model is tensors in, tensors out."""

    lookahead = 0
    ahead = 1

    def __init__(
        self, session: Any, runtime: Any, provider: str, output_names: Sequence[str], *, fixed: bool
    ) -> None:
        self._session = session
        self._runtime = runtime
        self._output_names = output_names
        # Items of many shapes leave the CPU arena at the sum of their peaks unless a run of another shape than the last
        # gives back what nothing uses. Where each run does, its pages are made anew: 1.5 times the CPU for a SqueezeNet.
        self._shrinks = provider == "cpu" and not fixed
        self._shapes: list[tuple[int, ...]] = []
        """Of the last run's items."""
        self._options, self._shrinking = self._run_options()
        self._memory = KeptMemory()

    def run(self, feeds: Tensors) -> Tensors:
        options = self._options
        if self._shrinks:
            shapes = [feed.shape[1:] for feed in feeds.values()]
            if shapes != self._shapes:
                options, self._shapes = self._shrinking, shapes
        outputs = self._session.run(self._output_names, feeds, options)
        return dict(zip(self._output_names, outputs, strict=True))

    def interrupt(self) -> None:
        stopped = self._options, self._shrinking
        self._options, self._shrinking = self._run_options()  # once set, the flag stays
        for options in stopped:
            options.terminate = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._memory.empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        for size in sizes:
            with suppress(Exception):  # if a record fails as well, it says why
                self.run(sample(size))

    def _run_options(self) -> tuple[Any, Any]:
        """For a run, and for one that gives back the arena's unused memory at its end."""
        options, shrinking = self._runtime.RunOptions(), self._runtime.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options, shrinking


def load(
    path: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    sha256: str | None = None,
    providers: Sequence[str] = ("cpu",),
    instances: int = 1,
    max_size: int = LARGEST_UNKNOWN_SIZE,
    one_shape: bool = False,
) -> Model:
    """Loads a model file and finds out what it takes, what it gives and whether items may share a run.

    Args:
        path: the ONNX file.
        name: default: the file's stem.
        version: default: the first 8 hexadecimal digits of the SHA-256 over the file and its external data.
        sha256: when given, what that SHA-256 must be.
        providers: ``model.providers``: every one must be in use, except a trailing cpu.
        instances: runs at once on a GPU, each with buffers and sessions of its own.
        max_size: items in the largest batch, which TensorRT builds for.
        one_shape: items will have one shape even where the model takes any.

    Raises:
        StartError: no runtime, no such file, another SHA-256, not loadable, a provider that is not there, an
            input or output that is no tensor.
        ConfigError: ``providers`` makes no sense on any machine.
    """
    runtime = import_runtime()
    digest = _sha256_of(path)
    if sha256 is not None and sha256.lower() != digest:
        raise StartError(
            f"model.sha256: {path} and its external data have {digest}, expected {sha256.lower()}"
        )
    check_providers(providers, runtime.get_available_providers())
    if missing := preload_libraries(runtime, providers):
        log.warning("the runtime found no CUDA libraries beside it", reason=missing)
    gpu = None
    if providers[0] == "cpu":
        opened = open_on_cpu(runtime, path, providers, one_shape)
    else:
        gpu = open_on_gpu(runtime, path, providers, digest, instances, max_size)
        opened = gpu.described
    provider = provider_in_use(providers, opened.get_providers())
    name = name or path.stem
    inputs = specs_of("input", opened.get_inputs(), name)
    outputs = specs_of("output", opened.get_outputs(), name)
    if not inputs:
        raise StartError(f"model.path: {path} has no input, so that nothing of a record would reach it")
    session: Session | GpuSession
    if gpu is not None and bindable((*inputs, *outputs)):
        gpu.bind(inputs, outputs)
        session = gpu
    else:
        fixed = one_shape or all(spec.fixed for spec in inputs)
        session = Session(opened, runtime, provider, [spec.name for spec in outputs], fixed=fixed)
    found = probe(session.run, inputs, outputs, _tolerance(provider))
    if found.item is None and "TensorRT" in found.refusal:
        # not the items' fault: it could not build an engine
        raise StartError(f"model.path: {path} cannot be run on tensorrt: {one_line(found.refusal)}")
    _warn(name, found)
    signature = Signature(inputs, _with_observed_ranks(outputs, found), found.batchable)
    return Model(
        session, signature, found, name=name, version=version or digest[:8], sha256=digest, provider=provider
    )


def _sha256_of(path: Path) -> str:
    if path.is_dir():
        raise StartError(f"model.path: {path} is a directory, expected an ONNX file")
    try:
        return model_sha256(path)
    except FileNotFoundError:
        raise StartError(f"model.path: {path} does not exist") from None
    except OSError as error:
        raise StartError(f"model.path: {path} cannot be read: {error.strerror}") from None


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


def _tolerance(provider: str) -> float:
    return 0.0 if provider == "cpu" else GPU_TOLERANCE


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
