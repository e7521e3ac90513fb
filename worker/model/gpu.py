"""Batches on a GPU: copied in, computed and copied out side by side.

The device does one run per *lane* at a time, and there are as many lanes as ``model.instances``. Each lane has two
*slots*: while the batch of one is computed, the other's is copied in and its kernels are put in line behind, so the
device goes from one batch to the next without waiting for the host (a ResNet-50 of halves on an H100 with TensorRT: 16,600 images/s
against 14,900 with a wait in between). A slot owns its buffers on the device, its
bindings and its stream, and has one batch at a time; what it returns are copies.

cuDNN plans every convolution again when a session sees another batch size than last time: 150 ms on a ResNet-50
against 6 ms for the run of 64 (NVIDIA H200, onnxruntime-gpu 1.31.1). Where warming up shows that, each of a few sizes gets a
session of its own and a batch is padded to the next of them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import structlog

from worker.batch import Array
from worker.errors import StartError
from worker.model.cuda import DEVICE, DeviceError, Driver, PinnedMemory
from worker.model.fingerprint import external_locations
from worker.model.opening import described_inputs, open_session
from worker.model.providers import Engines, did_not_start, engine_cache, provider_options, shape_profile
from worker.model.signature import TensorSpec

log = structlog.get_logger()

Tensors = dict[str, Array]
OpenOn = Callable[[int], Any]
"""A compute stream -> a runtime session on it."""

SLOTS_PER_LANE = 2
SPARE_BYTES = 2 << 30
"""Device memory that a lane's further sessions may take together; a large model gets fewer sizes, padded further."""
DEAR_SWITCH_S = 0.01
"""How much longer a run right after one of another size may take before sizes get sessions of their own."""
_PROFILE_REFUSED = "explicitly set profiles"
"""TensorRT takes only parts of the model, and wants to be told the shapes between them: left to find them out as they
come. INT8 with zero points, as ``quantize`` writes it for CPUs, is such a model."""
_UNSYNCHRONIZED = "disable_synchronize_execution_providers"


def open_on_gpu(
    runtime: Any, path: Path, providers: Sequence[str], digest: str, instances: int, max_size: int
) -> GpuSession:
    """The model on the device; :meth:`GpuSession.bind` comes before its first run.

    Args:
        providers: ``model.providers``, cuda or tensorrt first.
        digest: the model's SHA-256.
        max_size: items in the largest batch, for TensorRT.

    Raises:
        StartError: the device or the model's sessions cannot be had.
    """
    try:
        driver = Driver()
    except (OSError, DeviceError) as error:
        raise did_not_start(providers[0], str(error)) from error
    engines = None
    if "tensorrt" in providers:
        cache, inputs = engine_cache(digest, driver.label), described_inputs(runtime, path)
        engines = Engines(cache, shape_profile(inputs, max_size))
        one_shape = bool(inputs) and not any(None in spec.shape for spec in inputs)
        if not any(cache.glob("*.engine")):
            log.info("TensorRT builds its engines, which can take minutes", model=path.stem, kept=str(cache))

    def on_stream(stream: int) -> Any:
        nonlocal engines
        try:
            return open_session(runtime, path, providers, provider_options(providers, stream, engines))
        except StartError as error:
            if engines is None or not engines.profile or _PROFILE_REFUSED not in str(error):
                raise
        engines = replace(engines, profile={})
        return open_session(runtime, path, providers, provider_options(providers, stream, engines))

    files = (path, *(path.parent / location for location in external_locations(path)))
    session = GpuSession(
        runtime,
        driver,
        on_stream,
        instances,
        model_nbytes=sum(file.stat().st_size for file in files if file.is_file()),
    )
    # a run that finds a size beyond the engine's builds another, and lets go of the one that may still be computing
    session.queues = engines is None or bool(engines.profile) or one_shape
    return session


def bindable(specs: Sequence[TensorSpec]) -> bool:
    """Whether all these tensors can lie on a device: strings cannot."""
    return all(spec.dtype != object for spec in specs)


class GpuSession:
    """Sessions on one device behind one ``run``; safe to use from several threads.

    Args:
        runtime: the onnxruntime module.
        driver: of the device the sessions are on.
        open_on: makes a session on a compute stream.
        instances: runs at once.
        model_nbytes: about what one more session takes of the device's memory.

    Raises:
        StartError: as ``open_on``.
    """

    lookahead = 1
    """Runs worth handing over beyond ``instances``: they are copied in meanwhile."""
    ahead = 2
    """Batches worth decoding beyond those: 64 raw frames of 150 KB take a thread as long as an H200 takes to run a ResNet-50
    on them. One at a time left it 72-82 % busy, two 99 %."""

    queues = True
    """Whether a run may return with its kernels still in line; set before :meth:`bind`."""

    def __init__(
        self,
        runtime: Any,
        driver: Driver,
        open_on: OpenOn,
        instances: int,
        *,
        model_nbytes: int,
    ) -> None:
        self._runtime = runtime
        self._model_nbytes = model_nbytes
        self._memory = PinnedMemory(driver)
        self._lanes = [Lane(driver, open_on) for _ in range(instances)]
        self._slots: list[Slot] = []
        self._free: SimpleQueue[Slot] = SimpleQueue()
        self._fixed = False
        self._driver = driver
        self._options: Any = None

    @property
    def described(self) -> Any:
        """A session to ask for the model's inputs, outputs and providers."""
        return self._lanes[0].session

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Makes the slots; called once, before any run."""
        self._fixed = all(spec.fixed for spec in inputs)
        self._options = self._run_options()
        for _ in range(SLOTS_PER_LANE):
            for lane in self._lanes:  # in turn, so that two batches in a row go to two lanes
                slot = Slot(self._runtime, self._driver, self._memory, lane, inputs, outputs)
                self._slots.append(slot)
                self._free.put(slot)

    def run(self, feeds: Tensors) -> Tensors:
        """See :meth:`worker.model.session.Model.run`; waits while every slot has a batch."""
        slot = self._free.get()
        try:
            return slot.run(feeds, self._options)
        finally:
            self._free.put(slot)

    def interrupt(self) -> None:
        stopped, self._options = self._options, self._run_options()  # once set, the flag stays
        stopped.terminate = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array, its content undefined, that is copied to the device at full speed."""
        return self._memory.empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        """Runs a made-up batch of every size, in every slot, so that no record pays for a first time.

        Args:
            sizes: descending.
            sample: size -> feeds.
            largest: the largest batch there will be, in items; more than ``sizes[0]`` where that many are not made up.
        """
        if self._fixed and self.queues and self._switching_is_dear(sample, sizes[0]):
            padded = padded_sizes(largest, 1 + SPARE_BYTES // max(1, self._model_nbytes))
            for lane in self._lanes:
                lane.open_sizes(padded)
            sizes = [size for size in padded if size <= sizes[0]]
        for size in sizes:
            feeds = sample(size)
            for slot in self._slots:
                with suppress(Exception):  # if a record fails as well, it says why
                    slot.run(feeds, self._options)

    def _switching_is_dear(self, sample: Callable[[int], Tensors], largest: int) -> bool:
        """Whether a run takes much longer right after one of another size."""
        if largest == 1:
            return False
        slot, large, small = self._slots[0], sample(largest), sample(1)

        def seconds(feeds: Tensors) -> float:
            started = time.perf_counter()
            slot.run(feeds, self._options)
            return time.perf_counter() - started

        try:
            for feeds in (small, large):  # claims memory
                slot.run(feeds, self._options)
            steady = min(seconds(large) for _ in range(3))
            switched = []
            for _ in range(2):  # a disturbance is not mistaken for a plan
                slot.run(small, self._options)
                switched.append(seconds(large))
            return min(switched) > steady + DEAR_SWITCH_S
        except Exception:  # then there are not two sizes to switch between
            return False

    def _run_options(self) -> Any:
        options = self._runtime.RunOptions()
        if self.queues:
            options.add_run_config_entry(_UNSYNCHRONIZED, "1")
        return options


def padded_sizes(largest: int, most: int) -> list[int]:
    """Batch sizes that get a session of their own, descending: the largest, and powers below it.

    Args:
        most: sizes there may be; powers of two where they are not too many, else of four, and so on.
    """
    if most == 1:
        return [largest]
    step = 2
    while True:
        sizes = {largest}
        size = 1
        while size < largest:
            sizes.add(size)
            size *= step
        if len(sizes) <= most:
            return sorted(sizes, reverse=True)
        step *= 2


class Lane:
    """One run at a time on the device: a compute stream and the sessions that work on it."""

    def __init__(self, driver: Driver, open_on: OpenOn) -> None:
        self.stream = driver.stream()
        self.turn = threading.Lock()
        """Held by the slot that puts its run into the stream: two runs may not mix."""
        self.session = open_on(self.stream)
        """Takes any size."""
        self._open_on = open_on
        self._sized: list[tuple[int, Any]] = []
        """Ascending: (size, its session)."""

    def open_sizes(self, sizes: Sequence[int]) -> None:
        """Gives each of these sizes, descending, a session; the largest keeps the one there is."""
        smaller = [(size, self._open_on(self.stream)) for size in sizes[1:]]
        self._sized = [*reversed(smaller), (sizes[0], self.session)]

    def session_for(self, rows: int) -> tuple[int, Any]:
        """The size to pad ``rows`` to, and the session for it."""
        return next(((size, session) for size, session in self._sized if size >= rows), (rows, self.session))


class Slot:
    """One batch's way through the device: its stream, its events, its buffers there and their bindings."""

    def __init__(
        self,
        runtime: Any,
        driver: Driver,
        memory: PinnedMemory,
        lane: Lane,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self._runtime = runtime
        self._driver = driver
        self._memory = memory
        self._lane = lane
        self._inputs = inputs
        self._outputs = outputs
        self._stream = driver.stream()
        self._copied_in, self._computed, self._copied_out = (driver.event() for _ in range(3))
        self._buffers: dict[str, Any] = {}
        """Input -> bytes on the device, as many as its largest batch took."""
        self._bindings: dict[int, Any] = {}
        """``id`` of a session, which lives as long as the lane -> the binding to it."""

    def run(self, feeds: Tensors, options: Any) -> Tensors:
        """Copy in, compute, copy out; one call at a time.

        Raises:
            DeviceError: a copy failed, or what was computed before it.
            ValueError: a feed is missing or has another dtype than the model's input.
            Exception: whatever the runtime raises.
        """
        try:
            return self._run(feeds, options)
        except BaseException:
            self._let_go()
            raise

    def _run(self, feeds: Tensors, options: Any) -> Tensors:
        rows = self._rows(feeds)
        size, session = self._lane.session_for(rows) if rows else (0, self._lane.session)
        binding = self._binding(session)
        checked = [self._checked(spec, feeds) for spec in self._inputs]  # kept until they are copied
        for spec, feed in zip(self._inputs, checked, strict=True):
            shape = (size, *feed.shape[1:]) if size else feed.shape
            address = self._copy_in(spec.name, feed, shape)
            binding.bind_input(spec.name, "cuda", DEVICE, spec.dtype.type, shape, address)
        for spec in self._outputs:  # again for each run: what is bound would be taken for where to write
            binding.bind_output(spec.name, "cuda", DEVICE)
        driver, lane = self._driver, self._lane
        driver.record(self._copied_in, self._stream)
        with lane.turn:
            driver.hold(lane.stream, self._copied_in)
            session.run_with_iobinding(binding, options)
            driver.record(self._computed, lane.stream)
        driver.hold(self._stream, self._computed)
        outputs = {
            spec.name: self._copy_out(spec, value, rows if size > rows else 0)
            for spec, value in zip(self._outputs, binding.get_outputs(), strict=True)
        }
        driver.record(self._copied_out, self._stream)
        driver.wait(self._copied_out)
        return outputs

    def _rows(self, feeds: Tensors) -> int:
        """The first dimension of all feeds; 0 where they have none in common, so that nothing can be padded."""
        lengths = {feed.shape[0] if feed.ndim else 0 for feed in feeds.values()}
        return lengths.pop() if len(lengths) == 1 else 0

    def _checked(self, spec: TensorSpec, feeds: Tensors) -> Array:
        """The feed as the model's input needs it: the runtime sees an address only."""
        feed = feeds.get(spec.name)
        if feed is None:
            raise ValueError(f"input {spec.name} is missing")
        if feed.dtype != spec.dtype:
            raise ValueError(f"input {spec.name} is {feed.dtype}, the model takes {spec.dtype}")
        return np.ascontiguousarray(feed) if feed.ndim else feed

    def _binding(self, session: Any) -> Any:
        binding = self._bindings.get(id(session))
        if binding is None:
            binding = self._bindings[id(session)] = session.io_binding()
        return binding

    def _copy_in(self, name: str, feed: Array, shape: tuple[int, ...]) -> int:
        """Start copying a feed to the device, its rows repeated up to ``shape``; returns the address.

        Repeated rather than left as they are: a row of an earlier batch may be what made that batch fail.
        """
        wanted = math.prod(shape) * feed.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape()[0] < wanted:
            buffer = self._runtime.OrtValue.ortvalue_from_shape_and_type(
                [max(1, wanted)], np.uint8, "cuda", DEVICE
            )
            self._buffers[name] = buffer
        address: int = buffer.data_ptr()
        done = feed.nbytes
        if done:
            self._driver.upload(address, feed.ctypes.data, done, self._stream)
        while 0 < done < wanted:
            step = min(done, wanted - done)
            self._driver.copy(address + done, address, step, self._stream)
            done += step
        return address

    def _copy_out(self, spec: TensorSpec, value: Any, rows: int) -> Array:
        """Start copying an output to the host; only its first ``rows`` where it was padded."""
        shape = tuple(value.shape())
        if rows and shape and shape[0] > rows:
            shape = (rows, *shape[1:])
        array = self._memory.empty(shape, spec.dtype)
        if array.nbytes:
            self._driver.download(array.ctypes.data, value.data_ptr(), array.nbytes, self._stream)
        return array

    def _let_go(self) -> None:
        """Whoever called may use its arrays again: wait until nothing on the device does."""
        for stream in (self._stream, self._lane.stream):
            try:
                self._driver.synchronize(stream)
            except DeviceError:
                return  # nothing runs on a device that is broken
