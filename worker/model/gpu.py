"""Models on a GPU: batches are copied in, computed and copied out side by side.

The device does one run per *lane* at a time, and there are as many lanes as ``model.instances``. Each lane has two
*slots*. While the batch of one slot is computed, the batch of the other one is copied in and its kernels are queued behind.
So the device goes from one batch to the next without waiting for the host: a ResNet-50 in half precision on an H100 with
TensorRT answers 16,600 images/s, and 14,900 with a wait in between. A slot owns its buffers on the device, its bindings and
its stream, and has one batch at a time; it returns copies.

cuDNN plans every convolution again when a session sees another batch size than last time: 150 ms on a ResNet-50
against 6 ms for the run of 64 (NVIDIA H200, onnxruntime-gpu 1.31.1). If warming up shows that, each of a few sizes gets a
session of its own, and a batch is padded to the next of these sizes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np

from worker.batch import Array
from worker.model.backend import Backend, Closed, Opened, Opening, Sessions, Tensors
from worker.model.cuda import DeviceError, Driver, PinnedMemory
from worker.model.fingerprint import external_locations
from worker.model.opening import open_session
from worker.model.plain import PlainSession
from worker.model.providers import did_not_start, provider_options
from worker.model.signature import TensorSpec
from worker.model.slots import Lane, OpenOn, Slot

SLOTS_PER_LANE = 2
SPARE_BYTES = 2 << 30
"""Device memory that a lane's further sessions may take together; a large model gets fewer sizes, padded further."""
DEAR_SWITCH_S = 0.01
"""How much longer a run right after one of another size may take before sizes get sessions of their own."""
_UNSYNCHRONIZED = "disable_synchronize_execution_providers"


class Cuda(Backend):
    """Sessions of the CUDA provider."""

    name = "cuda"
    tolerance = 1e-2
    """A GPU picks another kernel for another batch size, and multiplies float32 with the 10 bits of TF32. Items that
    see each other differ by as much as their values."""
    plans_each_size = True

    def open(self, opening: Opening) -> Opened:
        driver = self._driver(opening)

        def open_on(stream: int) -> Any:
            options = provider_options(opening.providers, stream, device=opening.device)
            return open_session(opening.runtime, opening.path, opening.providers, options)

        return OpenedOnGpu(GpuSession(opening, driver, open_on))

    def runs_at_once(self, threads: int) -> int:
        """One: further runs would only wait for the first."""
        return 1

    def _driver(self, opening: Opening) -> Driver:
        try:
            return Driver(opening.device)
        except (OSError, DeviceError) as error:
            raise did_not_start(self.name, str(error)) from error


class OpenedOnGpu:
    """A model on the device, before its inputs and outputs are known."""

    def __init__(self, gpu: GpuSession, queues: Callable[[], bool] = lambda: True) -> None:
        self._gpu = gpu
        self._queues = queues
        """Whether a run may return with its kernels still in line; asked once the sessions are open."""
        self.close = gpu.close

    @property
    def described(self) -> Any:
        return self._gpu.described

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Sessions:
        if any(spec.dtype == object for spec in (*inputs, *outputs)):
            # strings cannot lie on a device: the runtime copies what it can by itself
            gpu = self._gpu
            return PlainSession(gpu.described, gpu.runtime, outputs, shrinks=False, on_close=gpu.close)
        self._gpu.bind(inputs, outputs, self._queues())
        return self._gpu


class GpuSession:
    """Sessions on one device behind one ``run``. Safe to use from several threads.

    Args:
        opening: what the model is opened with.
        driver: of the device the sessions are on; closed with them.
        open_on: makes a session on a compute stream.

    Raises:
        StartError: as ``open_on``.
    """

    lookahead = 1
    """Runs worth handing over beyond ``instances``: they are copied in meanwhile."""
    ahead = 2
    """Batches worth decoding beyond those. To decode 64 raw frames of 150 KB takes a thread as long as an H200 takes to
    run a ResNet-50 on them. With one batch ahead the GPU was busy for 72-82 % of the time, with two for 99 %."""

    def __init__(self, opening: Opening, driver: Driver, open_on: OpenOn) -> None:
        self.runtime = opening.runtime
        self._queues = False
        self._model_nbytes = _nbytes(opening)
        self._driver = driver
        self._memory = PinnedMemory(driver)
        self._lanes: list[Lane] = []
        self._slots: list[Slot] = []
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        """Slots without a batch; None once the sessions are closed."""
        self._fixed = False
        self._closing = threading.Lock()
        self._closed = False
        self._options: Any = None
        try:
            for _ in range(opening.instances):
                self._lanes.append(Lane(driver, open_on))
        except BaseException:
            self.close()
            raise

    @property
    def described(self) -> Any:
        """A session to ask for the model's inputs, outputs and providers."""
        return self._lanes[0].session

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], queues: bool) -> None:
        """Make the slots. Called once, before any run.

        Args:
            queues: a run may return with its kernels still in line.
        """
        self._fixed = all(spec.fixed for spec in inputs)
        self._queues = queues
        self._options = self._run_options()
        for _ in range(SLOTS_PER_LANE):
            for lane in self._lanes:  # in turn, so that two batches in a row go to two lanes
                slot = Slot(self.runtime, self._driver, self._memory, lane, inputs, outputs)
                self._slots.append(slot)
                self._free.put(slot)

    def run(self, feeds: Tensors) -> Tensors:
        """See :meth:`worker.model.session.Model.run`; waits while every slot has a batch."""
        slot = self._free.get()
        try:
            if slot is None or self._closed:
                raise Closed("the model is closed")
            return slot.run(feeds, self._options)
        finally:
            self._free.put(slot)

    def interrupt(self) -> None:
        stopped, self._options = self._options, self._run_options()  # a flag that is set stays set
        stopped.terminate = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined content that is copied to the device at full speed."""
        return self._memory.empty(shape, dtype)

    def close(self) -> None:
        """Give everything back, after the runs in progress. A second call does nothing.

        Arrays made by :meth:`empty` and outputs stay valid; their memory goes back with the last of them.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for _ in self._slots:
                self._free.get()  # waits for the slot's run
            for slot in self._slots:
                slot.close()
            self._free.put(None)
            for lane in self._lanes:
                lane.close()
            self._slots, self._lanes = [], []
            self._memory.close()

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        """Run a made-up batch of every size in every slot, so that no record pays for a first run.

        Args:
            sizes: in items, descending.
            sample: size -> feeds.
            largest: the largest batch there will be, in items; more than ``sizes[0]`` if such a batch is not made up.
        """
        if self._fixed and self._queues and self._switching_is_dear(sample, sizes[0]):
            padded = padded_sizes(largest, 1 + SPARE_BYTES // max(1, self._model_nbytes))
            for lane in self._lanes:
                lane.open_sizes(padded)
            sizes = [size for size in padded if size <= sizes[0]]
        for size in sizes:
            feeds = sample(size)
            for slot in self._slots:
                with suppress(Exception):  # a record that fails alike says why
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
            for feeds in (small, large):  # the first run of a size claims memory
                slot.run(feeds, self._options)
            steady = min(seconds(large) for _ in range(3))
            switched = []
            for _ in range(2):  # one slow run may have another cause
                slot.run(small, self._options)
                switched.append(seconds(large))
            return min(switched) > steady + DEAR_SWITCH_S
        except Exception:  # then there are not two sizes to switch between
            return False

    def _run_options(self) -> Any:
        options = self.runtime.RunOptions()
        if self._queues:
            options.add_run_config_entry(_UNSYNCHRONIZED, "1")
        return options


def padded_sizes(largest: int, most: int) -> list[int]:
    """Batch sizes that get a session of their own, in items, descending: the largest, and powers below it.

    Args:
        most: how many sizes there may be: powers of two if these are not more, else powers of four, and so on.
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


def _nbytes(opening: Opening) -> int:
    """About what one more session takes of the device's memory, in bytes."""
    path = opening.path
    files = (path, *(path.parent / location for location in external_locations(path)))
    return sum(file.stat().st_size for file in files if file.is_file())
