"""The CUDA driver, as far as batches need it: page-locked memory, streams, events, asynchronous copies.

The driver is called through ctypes, because ONNX Runtime's Python interface has no copy that leaves the processor free.
The driver's library has one name for every CUDA release. ONNX Runtime works in the device's primary context, and so does
this module: addresses and streams are valid for both.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

from worker.batch import Array

LIBRARY = "libcuda.so.1"

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream
_SLEEPING_EVENT = 3  # CU_EVENT_BLOCKING_SYNC: a waiting thread sleeps; CU_EVENT_DISABLE_TIMING
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # enum CUdevice_attribute
_FOR_ALL_CONTEXTS = (
    1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every device, whichever context asked for it
)
_NAME_BYTES = 256
_SMALLEST_BLOCK = 1 << 12


class DeviceError(Exception):
    """A call of the CUDA driver failed; the message names the call and the driver's error.

    After most such errors every later call in this process fails with the same error.
    """


def load_library(keep_interpreter: bool = False) -> Any:
    """The driver's library.

    Args:
        keep_interpreter: the calling thread keeps the interpreter lock during its calls.

    Raises:
        OSError: there is no driver on this machine.
    """
    return (ctypes.PyDLL if keep_interpreter else ctypes.CDLL)(LIBRARY)


class Driver:
    """The driver, bound to one device's primary context. Safe to use from several threads.

    Args:
        device: number of the device among those that ``CUDA_VISIBLE_DEVICES`` leaves visible.

    Raises:
        OSError: there is no driver on this machine.
        DeviceError: there is no device, or it cannot be used.
    """

    def __init__(self, device: int = 0) -> None:
        self.number = device
        self._lib = load_library()
        # A call that only queues work takes less time than to release the interpreter lock and to take it again.
        self._quick = load_library(keep_interpreter=True)
        self._call("cuInit", 0)
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), device)
        self._handle = handle
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, handle)
        self.name = name.value.decode()
        """Such as "NVIDIA H100 80GB HBM3"."""
        self.capability = (
            self._attribute(_CAPABILITY_MAJOR, handle),
            self._attribute(_CAPABILITY_MINOR, handle),
        )
        """Compute capability: (major, minor)."""
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)
        self._retained = [True]
        """Empty once the context is given back. A list, because its pop succeeds in one thread only."""
        self._local = threading.local()

    def close(self) -> None:
        """Give the context back, after everything that was made in it. A second call does nothing.

        ONNX Runtime holds the context as well, so another model on this device goes on.
        """
        with suppress(IndexError, DeviceError):
            self._retained.pop()
            self._call("cuDevicePrimaryCtxRelease_v2", self._handle)

    @property
    def label(self) -> str:
        """The kind of device, fit for a file's name: such as "nvidia-h200-sm90"."""
        name = re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")
        major, minor = self.capability
        return f"{name}-sm{major}{minor}"

    def stream(self) -> int:
        """A new stream, until :meth:`drop_stream`."""
        self._enter()
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def drop_stream(self, stream: int) -> None:
        """Give a stream back. On a device that is broken nothing is left to give back."""
        with suppress(DeviceError):
            self._enter()
            self._call("cuStreamDestroy_v2", _pointer(stream))

    def event(self) -> int:
        """A new event, not recorded yet, until :meth:`drop_event`."""
        self._enter()
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), _SLEEPING_EVENT)
        return event.value or 0

    def drop_event(self, event: int) -> None:
        """Give an event back. On a device that is broken nothing is left to give back."""
        with suppress(DeviceError):
            self._enter()
            self._call("cuEventDestroy_v2", _pointer(event))

    def record(self, event: int, stream: int) -> None:
        """The event occurs once everything that is in the stream now is done."""
        self._enter()
        self._call_quickly("cuEventRecord", _pointer(event), _pointer(stream))

    def hold(self, stream: int, event: int) -> None:
        """What is put into the stream from now on starts after the event, as it was recorded last."""
        self._enter()
        self._call_quickly("cuStreamWaitEvent", _pointer(stream), _pointer(event), 0)

    def wait(self, event: int) -> None:
        """Sleep until the event has occurred; other threads run meanwhile.

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

        From page-locked memory the copy is asynchronous; other memory the driver copies first. ``source`` must stay as it
        is until the stream has done this.
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
        """The address of new page-locked memory of the host, until :meth:`unlock_memory`. Slow: blocks are kept."""
        self._enter()
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), _size(nbytes), _FOR_ALL_CONTEXTS)
        return address.value or 0

    def unlock_memory(self, address: int) -> None:
        """Give page-locked memory back. On a device that is broken nothing is left to give back."""
        with suppress(DeviceError):
            self._enter()
            self._call("cuMemFreeHost", _pointer(address))

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _enter(self) -> None:
        """Make the context this thread's current one; it stays so."""
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

    An array owns its memory like any other. The block becomes free for the next array of about that size when the last
    reference to the array and to its views is gone, so no holder of an array can see its memory used again.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._closed = False
        self._blocks: set[int] = set()
        """Addresses of all blocks, used and free."""
        self._free: dict[int, list[int]] = {}
        """Size of a block -> addresses that no array uses. There is no lock: an array may die while this very thread
        holds it. A list's append and pop are atomic."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new C-order array of undefined content; in ordinary memory if the system has no more to lock."""
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(_SMALLEST_BLOCK, 1 << (max(1, nbytes) - 1).bit_length())
        free = self._free.setdefault(size, [])
        try:
            address = free.pop()
        except IndexError:
            if self._closed:
                return np.empty(shape, dtype)
            try:
                address = self._driver.lock_memory(size)
            except DeviceError:  # the array is only slower; if the device is broken, the run says so
                return np.empty(shape, dtype)
            self._blocks.add(address)
        memory = (ctypes.c_byte * size).from_address(address)
        # numpy keeps the array's base, this object, as long as there is a view of it
        weakref.finalize(memory, self._keep, free, address).atexit = False
        return np.frombuffer(memoryview(memory), dtype, count=nbytes // dtype.itemsize).reshape(shape)

    def close(self) -> None:
        """Give back the free blocks, each other one as soon as its array is gone, and the driver after the last."""
        self._closed = True
        self._give_back()

    def _keep(self, free: list[int], address: int) -> None:
        free.append(address)
        if self._closed:
            self._give_back()

    def _give_back(self) -> None:
        for free in list(self._free.values()):
            with suppress(IndexError):
                while True:
                    address = free.pop()
                    self._driver.unlock_memory(address)
                    self._blocks.discard(address)
        if not self._blocks:
            self._driver.close()


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


def _address(address: int) -> ctypes.c_uint64:  # CUdeviceptr
    return ctypes.c_uint64(address)


def _size(nbytes: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(nbytes)
