"""The CUDA driver, as far as batches need it: page-locked memory, streams, events, asynchronous copies.

Called through ctypes, because ONNX Runtime's Python interface has no copy that leaves the processor free. The driver's
library has one name whatever CUDA release a runtime was built for, and its primary context is the one that ONNX Runtime
works in, so the addresses and streams are good for both.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
import weakref
from typing import Any

import numpy as np

from worker.batch import Array

DEVICE = 0
"""Which of the visible devices; ``CUDA_VISIBLE_DEVICES`` chooses what is visible."""
LIBRARY = "libcuda.so.1"

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_SLEEPING_EVENT = (
    3  # CU_EVENT_BLOCKING_SYNC, whoever waits sleeps instead of spinning; CU_EVENT_DISABLE_TIMING
)
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # enum CUdevice_attribute
_NAME_BYTES = 256
_SMALLEST_BLOCK = 1 << 12


class DeviceError(Exception):
    """A call of the CUDA driver failed; the message names the call and the driver's error.

    Most such errors stay: every later call in this process fails alike.
    """


def load_library(keep_interpreter: bool = False) -> Any:
    """The driver's library.

    Args:
        keep_interpreter: whether other Python threads stand still during its calls.

    Raises:
        OSError: there is no driver on this machine.
    """
    return (ctypes.PyDLL if keep_interpreter else ctypes.CDLL)(LIBRARY)


class Driver:
    """The driver, bound to one device's primary context; safe to use from several threads.

    Raises:
        OSError: there is no driver on this machine.
        DeviceError: there is no device, or it cannot be used.
    """

    def __init__(self) -> None:
        self._lib = load_library()
        # A call that only puts work in line takes less time than giving the interpreter away and getting it back.
        self._quick = load_library(keep_interpreter=True)
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), DEVICE)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        self.name = name.value.decode()
        """Such as "NVIDIA H100 80GB HBM3"."""
        self.capability = (
            self._attribute(_CAPABILITY_MAJOR, device),
            self._attribute(_CAPABILITY_MINOR, device),
        )
        """Compute capability: (major, minor)."""
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._local = threading.local()

    @property
    def label(self) -> str:
        """The kind of device, fit for a file's name: such as "nvidia-h200-sm90"."""
        name = re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")
        major, minor = self.capability
        return f"{name}-sm{major}{minor}"

    def stream(self) -> int:
        """A new stream; it lives as long as the process."""
        self._enter()
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def event(self) -> int:
        """A new event, not recorded yet; it lives as long as the process."""
        self._enter()
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), _SLEEPING_EVENT)
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        """The event comes true once everything in the stream so far is done."""
        self._enter()
        self._call_quickly("cuEventRecord", _pointer(event), _pointer(stream))

    def hold(self, stream: int, event: int) -> None:
        """What comes into the stream from now on starts once the event, as recorded last, has come true."""
        self._enter()
        self._call_quickly("cuStreamWaitEvent", _pointer(stream), _pointer(event), 0)

    def wait(self, event: int) -> None:
        """Sleep until the event has come true; other threads run meanwhile.

        Raises:
            DeviceError: the work before it failed.
        """
        self._enter()
        self._call("cuEventSynchronize", _pointer(event))

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done; other threads run meanwhile."""
        self._enter()
        self._call("cuStreamSynchronize", _pointer(stream))

    def upload(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Start copying ``nbytes`` from host address ``source`` to device address ``target``.

        Truly asynchronous from page-locked memory; of other memory the driver takes a copy first. ``source`` must stay
        as it is until that is done.
        """
        self._enter()
        self._call(
            "cuMemcpyHtoDAsync_v2", _address(target), _pointer(source), _size(nbytes), _pointer(stream)
        )

    def download(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Start copying ``nbytes`` from device address ``source`` to host address ``target``."""
        self._enter()
        self._call(
            "cuMemcpyDtoHAsync_v2", _pointer(target), _address(source), _size(nbytes), _pointer(stream)
        )

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Start copying ``nbytes`` between two addresses of the device."""
        self._enter()
        self._call_quickly(
            "cuMemcpyDtoDAsync_v2", _address(target), _address(source), _size(nbytes), _pointer(stream)
        )

    def lock_memory(self, nbytes: int) -> int:
        """The address of new page-locked host memory. Slow: a block is worth keeping."""
        self._enter()
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), _size(nbytes), 0)
        return address.value or 0

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _enter(self) -> None:
        """A thread works in the context it has made current; that lasts."""
        if not getattr(self._local, "entered", False):
            self._call("cuCtxSetCurrent", self._context)
            self._local.entered = True

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._lib, function)(*arguments))

    def _call_quickly(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._quick, function)(*arguments))

    def _check(self, function: str, code: int) -> None:
        if code:
            raise DeviceError(f"{function} failed: {self._error_name(code)}")

    def _error_name(self, code: int) -> str:
        name = ctypes.c_char_p()
        self._lib.cuGetErrorName(code, ctypes.byref(name))
        return f"{(name.value or b'unknown error').decode()} ({code})"


class PinnedMemory:
    """Arrays in page-locked memory, which the device reads and writes at full speed while the processor does other work.

    An array owns its memory like any other: when the last reference to it and its views is gone, the block is kept
    for the next array of about that size. So a block cannot be used again too early, whoever holds the array.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[int]] = {}
        """Size of a block -> addresses that no array uses. No lock: a block is given back wherever its array dies, also
        inside whatever a lock would guard, and a list's append and pop are one step each."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new C-order array, its content undefined; in plain memory where the system has no more to lock."""
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(_SMALLEST_BLOCK, 1 << (max(1, nbytes) - 1).bit_length())
        free = self._free.setdefault(size, [])
        try:
            address = free.pop()
        except IndexError:
            try:
                address = self._driver.lock_memory(size)
            except DeviceError:  # all it gives is speed; a device that is broken says so again when it runs
                return np.empty(shape, dtype)
        memory = (ctypes.c_byte * size).from_address(address)
        # the array's base is this object: numpy keeps it for as long as there is a view
        weakref.finalize(memory, free.append, address).atexit = False
        return np.frombuffer(memoryview(memory), dtype, count=nbytes // dtype.itemsize).reshape(shape)


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


def _address(address: int) -> ctypes.c_uint64:  # CUdeviceptr
    return ctypes.c_uint64(address)


def _size(nbytes: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(nbytes)
