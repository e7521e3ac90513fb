"""Lanes and slots: how batches go through one GPU.

A *lane* is one run at a time: a compute stream and the sessions that work on it. A *slot* is the way of one batch
through a lane: copied in, computed, copied out.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worker.batch import Array
from worker.model.backend import Tensors
from worker.model.cuda import DeviceError, Driver, PinnedMemory
from worker.model.signature import TensorSpec

OpenOn = Callable[[int], Any]
"""A compute stream -> a runtime session on it."""


class Lane:
    """One run at a time on the device.

    Args:
        driver: of the device.
        open_on: makes a session on a compute stream.

    Raises:
        StartError: as ``open_on``.
    """

    def __init__(self, driver: Driver, open_on: OpenOn) -> None:
        self._driver = driver
        self.stream = driver.stream()
        self.turn = threading.Lock()
        """Held by the slot that puts its run into the stream: two runs may not mix."""
        self._open_on = open_on
        self._sized: list[tuple[int, Any]] = []
        """Ascending: (size in items, its session)."""
        self.session: Any = None
        """Takes batches of any size."""
        try:
            self.session = open_on(self.stream)
        except BaseException:
            self.close()
            raise

    def open_sizes(self, sizes: Sequence[int]) -> None:
        """Give each of these sizes, descending, a session; the largest one gets the session that is there."""
        smaller = [(size, self._open_on(self.stream)) for size in sizes[1:]]
        self._sized = [*reversed(smaller), (sizes[0], self.session)]

    def session_for(self, rows: int) -> tuple[int, Any]:
        """The size to pad ``rows`` to, and the session for it."""
        return next(((size, session) for size, session in self._sized if size >= rows), (rows, self.session))

    def close(self) -> None:
        """Let the sessions go, then give back the stream that they work on. No run may be in progress."""
        self._sized, self.session = [], None
        self._driver.drop_stream(self.stream)


class Slot:
    """One batch at a time on its way through the device: a stream, its events, buffers there and bindings to them.

    Args:
        runtime: the onnxruntime module.
        driver: of the device.
        memory: makes the arrays that outputs are copied to.
        lane: what computes the batch.
        inputs, outputs: the model's.
    """

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
        """Copy in, compute, copy out. One call at a time.

        Args:
            options: the runtime's RunOptions.

        Raises:
            DeviceError: a copy failed, or what was computed before it.
            ValueError: a feed is missing or has another dtype than the model's input.
            Exception: whatever the runtime raises.
        """
        try:
            return self._run(feeds, options)
        except BaseException:
            self._wait_for_the_device()
            raise

    def close(self) -> None:
        """Give back bindings, buffers, events and stream. No run may be in progress, and the lane closes after."""
        self._bindings.clear()
        self._buffers.clear()
        for event in (self._copied_in, self._computed, self._copied_out):
            self._driver.drop_event(event)
        self._driver.drop_stream(self._stream)

    def _run(self, feeds: Tensors, options: Any) -> Tensors:
        driver, lane = self._driver, self._lane
        rows = self._rows(feeds)
        size, session = lane.session_for(rows) if rows else (0, lane.session)
        binding = self._binding(session)
        checked = [self._checked(spec, feeds) for spec in self._inputs]  # kept until they are copied
        for spec, feed in zip(self._inputs, checked, strict=True):
            shape = (size, *feed.shape[1:]) if size else feed.shape
            address = self._copy_in(spec.name, feed, shape)
            binding.bind_input(spec.name, "cuda", driver.number, spec.dtype.type, shape, address)
        for spec in self._outputs:
            # Bound anew for each run: the runtime would write into the last run's outputs otherwise.
            binding.bind_output(spec.name, "cuda", driver.number)
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
        """The first dimension of all feeds; 0 if they have none in common, so that nothing can be padded."""
        lengths = {feed.shape[0] if feed.ndim else 0 for feed in feeds.values()}
        return lengths.pop() if len(lengths) == 1 else 0

    def _checked(self, spec: TensorSpec, feeds: Tensors) -> Array:
        """The feed in the form that the model's input needs. The runtime itself sees an address only."""
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

        The batch's own rows fill it up: a row that an earlier batch left there may be what made that batch fail.
        """
        wanted = math.prod(shape) * feed.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape()[0] < wanted:
            buffer = self._runtime.OrtValue.ortvalue_from_shape_and_type(
                [max(1, wanted)], np.uint8, "cuda", self._driver.number
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
        """Start copying an output to the host; only its first ``rows`` if the batch was padded."""
        shape = tuple(value.shape())
        if rows and shape and shape[0] > rows:
            shape = (rows, *shape[1:])
        array = self._memory.empty(shape, spec.dtype)
        if array.nbytes:
            self._driver.download(array.ctypes.data, value.data_ptr(), array.nbytes, self._stream)
        return array

    def _wait_for_the_device(self) -> None:
        """After a failure: wait until the device uses none of the caller's arrays any more."""
        for stream in (self._stream, self._lane.stream):
            try:
                self._driver.synchronize(stream)
            except DeviceError:
                return  # nothing runs on a device that is broken
