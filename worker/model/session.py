"""A loaded model: its identity, its signature, its canary, and what runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog

from worker.batch import Array
from worker.errors import StartError
from worker.model import folder
from worker.model.backend import Backend, Opened, Opening, Sessions, Tensors
from worker.model.bounded import Bounds
from worker.model.compare import difference, same
from worker.model.cpu import Cpu
from worker.model.devices import OpenedOnDevices
from worker.model.fingerprint import model_sha256
from worker.model.gpu import Cuda
from worker.model.graph import read_graph
from worker.model.made_up import batch_of
from worker.model.observed import as_observed, warn
from worker.model.opening import import_runtime, one_line, specs_of
from worker.model.probe import Probe, beside_variants, probe
from worker.model.providers import check_providers, preload_libraries, provider_in_use
from worker.model.shapes import run_each, side_by_side
from worker.model.signature import Shown, Signature, TensorSpec, with_suggested_size, with_wholes
from worker.model.tensorrt import TensorRt
from worker.model.wiring import Constants, WiredSessions, why_apart, wired

log = structlog.get_logger()

LARGEST_UNKNOWN_SIZE = 128
"""Items in the largest batch that TensorRT builds for if that figure is still to be measured."""
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Cpu(), Cuda(), TensorRt())}
"""By the name in ``model.providers``."""


class Model:
    """One model, ready to run. Safe to use from several threads at once.

    Args:
        sessions: what runs it; closed with the model.
        backend: what it runs on.
        signature: what it takes and gives.
        found: what made-up items showed about it.
        name, version, sha256: its identity.
    """

    def __init__(
        self,
        sessions: Sessions,
        backend: Backend,
        signature: Signature,
        found: Probe,
        *,
        name: str,
        version: str,
        sha256: str,
    ) -> None:
        self.name = name
        self.version = version
        self.sha256 = sha256
        """Over the model file and its external data files."""
        self.backend = backend
        self.provider = backend.name
        """What runs it: cpu, cuda or tensorrt."""
        self.signature = replace(signature, shown=replace(signature.shown, answers=()))
        self.described: Signature | None = signature
        """The signature with the answers to made-up items, until :meth:`forget`."""
        self.fixed_batch = _fixed_batch(signature.inputs)
        """The first dimension B > 1 that every input is fixed to, else None. Such a model is not batchable."""
        self.needs_canary = found.item is None
        """The model refused the made-up items, and no record has taken their place yet."""
        self._canary = (
            (found.item, found.outputs) if found.item and found.outputs and found.repeatable else None
        )
        self._found = replace(found, answers=())
        self.why_alone = found.reason
        """Why each record runs alone; empty if items may share a run."""
        self.largest_difference = found.largest_difference
        """The largest difference between a made-up item's floats alone and in a batch, absolute."""
        self._sessions = sessions
        self.lookahead = sessions.lookahead
        """Runs worth handing over beyond ``model.instances``: a GPU copies their batches in meanwhile."""
        self.ahead = sessions.ahead
        """Batches worth decoding beyond those."""

    def forget(self) -> None:
        """Let the answers to made-up items go: only the making of an encoder needs them."""
        self.described = None

    def close(self) -> None:
        """Give everything back: sessions, streams, events, device and page-locked memory.

        Waits for the runs in progress. A second call does nothing. A later run raises
        :class:`worker.model.backend.Closed`; arrays made by :meth:`empty` stay valid.
        """
        self.forget()
        self._canary, self._found = None, Probe(None)  # their tensors may lie in page-locked memory
        self._sessions.close()

    def run(self, feeds: Tensors) -> Tensors:
        """Runs the model once.

        Args:
            feeds: every input by name, full rank, C order, in the model's dtype.

        Returns:
            The outputs by name, in the model's order.

        Raises:
            Exception: whatever the runtime raises; also after :meth:`interrupt`.
            Closed: after :meth:`close`.
        """
        return self._sessions.run(feeds)

    def run_in_order(self, feeds: Tensors, counts: Sequence[int]) -> Tensors:
        """See :meth:`worker.model.wiring.WiredSessions.run_in_order`; only where the signature has ``states``."""
        assert isinstance(self._sessions, WiredSessions)
        return self._sessions.run_in_order(feeds, counts)

    def interrupt(self) -> None:
        """Make the runs in progress fail before their next operator. Later runs are not affected."""
        self._sessions.interrupt()

    def canary(self) -> bool:
        """Whether the model is healthy: it still gives the known answer to the canary item.

        True also if no such item is known. Never raises.
        """
        return self.sickness() is None

    def sickness(self) -> str | None:
        """Run the canary item; what is wrong with the answer, or None if it is the known one.

        None also if no such item is known. Never raises.
        """
        if self._canary is None:
            return None
        feeds, known = self._canary
        try:
            return difference(self.run(feeds), known, self.backend.tolerance).reason
        except Exception as error:
            return one_line(str(error)) or type(error).__name__

    def adopt_canary(self, feeds: Tensors, outputs: Tensors) -> None:
        """Take an answered record as the canary if the model refused the made-up items.

        The record is run once more first: an answer that does not repeat itself says nothing about health.
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
        if same(repeated, outputs, self.backend.tolerance):
            self._canary = feeds, outputs

    def beside_others(self, feeds: Tensors) -> str:
        """Why a real item may not share a run, although made-up ones may: what differs beside others. Empty if nothing.

        Args:
            feeds: one item, or several of which the first is looked at.
        """
        if not self.signature.batchable:
            return ""
        item = {name: array[:1] for name, array in feeds.items()}
        return beside_variants(self.run, item, self.backend.tolerance)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A C-order array of undefined content, for feeds; in page-locked memory if a GPU runs the model."""
        return self._sessions.empty(shape, dtype)

    def sample(self, count: int) -> Tensors | None:
        """A made-up batch of ``count`` items (1 unless batchable); None if the model refused them."""
        if self._found.item is None or count == 1:
            return self._found.item
        return batch_of(self._found.item, count)

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one made-up item and of its answer; 0 if the model refused them."""
        tensors = [*(self._found.item or {}).values(), *(self._found.outputs or {}).values()]
        return sum(array.nbytes for array in tensors)

    def warm(self, max_size: int, max_bytes: int) -> int:
        """Run made-up batches of the sizes to come, so that the first records do not pay for a first run.

        Args:
            max_size: the largest batch there will be, in items.
            max_bytes: a batch whose tensors take more is not made up; such sizes stay cold.

        Returns:
            The largest size that may be used, in items: ``max_size``, or less if the model refuses that many at once.
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
            self._sessions.warm(
                self.backend.sizes_to_warm(usable),
                lambda size: item if size == 1 else batch_of(item, size),
                largest,
            )
        return largest

    def _refusal(self, size: int) -> str | None:
        """Why the model does not take a made-up batch of ``size`` items; None if it does."""
        try:
            self.run(self.sample(size) or {})
        except Exception as error:
            return one_line(str(error)) or type(error).__name__
        return None


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
    few_shapes: bool = False,
    sizes: Sequence[int] = (),
    constants: Constants | None = None,
    state: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[Sequence[int]]] = MappingProxyType({}),
    devices: Sequence[int] = (0,),
    described_by: Path | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
) -> Model:
    """Load a model file and find out what it takes, what it gives and whether items may share a run.

    Args:
        path: the ONNX file.
        name: default: the file's stem.
        version: default: the first 8 hexadecimal digits of the SHA-256 over the file and its external data.
        sha256: when given, what that SHA-256 must be.
        providers: ``model.providers``: every one must be in use, except a trailing cpu.
        instances: runs at once on a GPU, each with buffers and sessions of its own.
        max_size: items in the largest batch, which TensorRT builds for.
        one_shape: items will have one shape even if the model takes any.
        few_shapes: items will have few shapes, such as lengths of certain steps up to a limit.
        sizes: lengths that an item's free dimension is known to have, for the made-up items.
        constants: which inputs are the same in every run.
        state: input -> output that fills it with the next item of a record.
        shapes: ``model.shapes``: by input, shapes of an item's tensor for the made-up items.
        devices: numbers of the GPUs among the visible ones, each of which runs the whole model.
        described_by: a folder in Hugging Face's layout whose files say how classes are called and tokens are pooled.
        bounds: of made-up items and their runs.

    Raises:
        StartError: no runtime, no such file, another SHA-256, not loadable, a provider that is not there, an
            input or output that is no tensor.
        ConfigError: ``providers`` makes no sense on any machine, or ``state`` does not fit the model.
    """
    runtime = import_runtime()
    digest = _checked_sha256(path, sha256)
    check_providers(providers, runtime.get_available_providers())
    _preload(runtime, providers)
    backend = BACKENDS[providers[0]]
    opening = Opening(
        runtime, path, providers, digest, instances, max_size, one_shape, few_shapes, devices[0]
    )
    opened = backend.open(opening) if len(devices) == 1 else OpenedOnDevices(backend, opening, devices)
    try:
        wiring = constants, state or {}
        identity = name or path.stem, version or digest[:8]
        return _probed(backend, opened, opening, *identity, sizes, wiring, shapes, described_by, bounds)
    except BaseException:
        opened.close()
        raise


def _probed(
    backend: Backend,
    opened: Opened,
    opening: Opening,
    name: str,
    version: str,
    sizes: Sequence[int],
    wiring: tuple[Constants | None, Mapping[str, str]],
    shapes: Mapping[str, Sequence[Sequence[int]]],
    described_by: Path | None,
    bounds: Bounds,
) -> Model:
    """The model behind an opened file, once made-up items have shown what it does.

    Raises:
        StartError: a provider is not in use, an input or output is no tensor, the backend cannot run the model.
    """
    path, described = opening.path, opened.described
    provider_in_use(opening.providers, described.get_providers())
    inputs = with_wholes(specs_of("input", described.get_inputs(), name))
    graph = read_graph(path)
    outputs = specs_of("output", described.get_outputs(), name, graph.maps if backend.name == "cpu" else None)
    if not inputs:
        raise StartError(f"model.path: {path} has no input, so that nothing of a record would reach it")
    known = side_by_side(shapes, inputs)
    sessions = opened.bind(inputs, outputs)
    try:
        sessions, inputs, outputs, constants = wired(sessions, inputs, outputs, *wiring)
        bounded = bounds.over(sessions, (*inputs, *outputs))
        found = probe(
            bounded.run,
            inputs,
            tolerance=backend.tolerance,
            max_size=opening.max_size,
            sizes=sizes,
            shapes=known,
            mixes=graph.mixes,
        )
        bounded.check(path)
        if wiring[1] and found.batchable and found.item is not None and isinstance(sessions, WiredSessions):
            found = replace(found, reason=why_apart(sessions, found.item, backend.tolerance))
        if found.item is None and backend.refuses_the_model(found.refusal):
            raise StartError(f"model.path: {path} cannot be run on {backend.name}: {one_line(found.refusal)}")
    except BaseException:
        sessions.close()
        raise
    warn(name, found)
    run_each(sessions.run, inputs, known[1:], name)
    metadata = described.get_modelmeta().custom_metadata_map
    class_names = graph.class_names or folder.class_names(described_by)
    shown = Shown(found.answers, metadata, found.answer_share, class_names, folder.pooling(described_by))
    inputs = with_suggested_size(inputs, metadata)
    seen, states = as_observed(outputs, found), tuple(wiring[1])
    signature = Signature(inputs, seen, found.batchable, constants=constants, states=states, shown=shown)
    return Model(sessions, backend, signature, found, name=name, version=version, sha256=opening.sha256)


def _checked_sha256(path: Path, expected: str | None) -> str:
    """The model's SHA-256.

    Raises:
        StartError: the file cannot be read, or has another SHA-256 than ``expected``.
    """
    digest = _sha256_of(path)
    if expected is not None and expected.lower() != digest:
        raise StartError(
            f"model.sha256: {path} and its external data have {digest}, expected {expected.lower()}"
        )
    return digest


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


def _preload(runtime: Any, providers: Sequence[str]) -> None:
    if missing := preload_libraries(runtime, providers):
        log.warning("the runtime found no CUDA libraries beside it", reason=missing)


def _copied(tensors: Tensors) -> Tensors:
    return {name: array.copy() for name, array in tensors.items()}
