"""A GPU made of lists: the CUDA driver's library and an ONNX Runtime whose CUDA provider computes on the processor.

Work put into a stream is done when somebody waits for it and not before, in the order that streams and events ask for.
So code that reads a result too early, or gives a buffer away too early, gets a wrong answer here every time.
"""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NAME, CAPABILITY = "NVIDIA Test 9000", (9, 0)
INVALID_DEVICE, ILLEGAL_ADDRESS = 101, 700


@dataclass(eq=False)
class Marker:
    """What recording an event leaves in a stream."""

    stream: int
    reached: bool = False


class Cuda:
    """The driver's library, as ctypes would call it."""

    def __init__(self) -> None:
        self.broken = 0
        """The error that every call gives from now on, as after an illegal access."""
        self.lockable_bytes = 1 << 30
        self.locked: dict[int, Any] = {}
        """Address -> page-locked block."""
        self.gate = threading.Event()
        """Nothing is done until it is set."""
        self.gate.set()
        self.contexts = 0
        """References to the device's primary context."""
        self.devices: list[int] = []
        """Numbers of the devices that were asked for."""
        self.missing: set[int] = set()
        """Numbers of devices that are not there."""
        self._work: dict[int, deque[Callable[[], None] | Marker]] = {}
        self._events: dict[int, Marker | None] = {}
        self._handles = iter(range(0x1000, 0x100000))
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name != "cuGetErrorName" and self.broken:
            return lambda *_: self.broken
        return super().__getattribute__(name)

    @property
    def handles(self) -> int:
        """Streams, events, page-locked blocks and references to the context that nobody has given back."""
        return len(self._work) + len(self._events) + len(self.locked) + self.contexts

    def put(self, stream: int, work: Callable[[], None]) -> None:
        with self._lock:
            self._work[stream].append(work)

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the names are the driver's
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        if number in self.missing:
            return INVALID_DEVICE
        device._obj.value = number
        self.devices.append(number)
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = NAME.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: CAPABILITY[0], 76: CAPABILITY[1]}[number]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 1
        self.contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.contexts -= 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = handle = next(self._handles)
        self._work[handle] = deque()
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:  # noqa: N802
        assert not self._work.pop(stream.value), "a stream is given back before its work is done"
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:  # noqa: N802
        del self._events[event.value]
        return 0

    def cuEventCreate(self, event: Any, flags: int) -> int:  # noqa: N802
        event._obj.value = handle = next(self._handles)
        self._events[handle] = None
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:  # noqa: N802
        with self._lock:
            self._events[event.value] = marker = Marker(stream.value)
            self._work[stream.value].append(marker)
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> int:  # noqa: N802
        with self._lock:
            marker = self._events[event.value]
            if marker is not None:
                self._work[stream.value].append(lambda: self._reach(marker))
        return 0

    def cuEventSynchronize(self, event: Any) -> int:  # noqa: N802
        self.gate.wait(30)
        with self._lock:
            marker = self._events[event.value]
            if marker is not None:
                self._reach(marker)
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        self.gate.wait(30)
        with self._lock:
            marker = Marker(stream.value)
            self._work[stream.value].append(marker)
            self._reach(marker)
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:  # noqa: N802
        return self._copy(target, source, nbytes, stream)

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:  # noqa: N802
        return self._copy(target, source, nbytes, stream)

    def cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:  # noqa: N802
        return self._copy(target, source, nbytes, stream)

    def cuMemHostAlloc(self, address: Any, nbytes: Any, flags: int) -> int:  # noqa: N802
        if nbytes.value > self.lockable_bytes:
            return 2
        self.lockable_bytes -= nbytes.value
        block = ctypes.create_string_buffer(nbytes.value)
        address._obj.value = ctypes.addressof(block)
        self.locked[ctypes.addressof(block)] = block
        return 0

    def cuMemFreeHost(self, address: Any) -> int:  # noqa: N802
        self.lockable_bytes += len(self.locked.pop(address.value))
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:  # noqa: N802
        names = {
            2: b"CUDA_ERROR_OUT_OF_MEMORY",
            INVALID_DEVICE: b"CUDA_ERROR_INVALID_DEVICE",
            ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS",
        }
        name._obj.value = names.get(code)
        return 0

    def _copy(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:
        self.put(stream.value, lambda: _memmove(target.value, source.value, nbytes.value))
        return 0

    def _reach(self, marker: Marker) -> None:
        while not marker.reached:
            work = self._work[marker.stream].popleft()
            if isinstance(work, Marker):
                work.reached = True
            else:
                work()


def _memmove(target: int, source: int, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


class OrtValue:
    """Memory on the device."""

    alive: ClassVar[weakref.WeakSet[OrtValue]] = weakref.WeakSet()

    def __init__(self, array: np.ndarray, index: int = 0) -> None:
        self.array = array
        self.index = index
        self.alive.add(self)

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: Any, dtype: Any, device: str, index: int) -> OrtValue:
        assert device == "cuda"
        return cls(np.full(shape, 0xAB, dtype), index)

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def data_ptr(self) -> int:
        return self.array.ctypes.data


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.terminate = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


@dataclass(eq=False)
class Binding:
    device: int
    inputs: dict[str, tuple[Any, tuple[int, ...], int]] = field(default_factory=dict)
    outputs: dict[str, OrtValue | None] = field(default_factory=dict)

    def bind_input(self, name: str, device: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", self.device)
        self.inputs[name] = (dtype, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int) -> None:
        assert (device, index) == ("cuda", self.device)
        self.outputs[name] = None

    def get_outputs(self) -> list[OrtValue]:
        return [value for value in self.outputs.values() if value is not None]


class Session:
    """A session of the fake runtime: it computes with the real one, on the processor."""

    def __init__(self, runtime: Runtime, path: str, options: Any, providers: Any, **_: Any) -> None:
        self._runtime = runtime
        self.options = {
            p if isinstance(p, str) else p[0]: {} if isinstance(p, str) else p[1] for p in providers
        }
        self._check_tensorrt(self.options.get(TENSORRT, {}))
        self.shapes: list[tuple[int, ...]] = []
        """Of the first input, of every run."""
        self.queued = False
        """Whether a run returned before it was computed."""
        self.seen: list[dict[str, np.ndarray]] = []
        self._real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
        self.get_modelmeta = self._real.get_modelmeta

    def _check_tensorrt(self, options: dict[str, str]) -> None:
        """In the words of onnxruntime-gpu 1.31.1 with TensorRT 10."""
        for name, value in options.items():
            if name.endswith("_enable") and value not in ("True", "False"):
                raise RuntimeError(
                    f"[ERROR] [TensorRT] The value for the key '{name}' should be 'True' or 'False'."
                )
        if self._runtime.takes_parts and any(name.startswith("trt_profile_") for name in options):
            raise RuntimeError(
                "[ONNXRuntimeError] : 11 : EP_FAIL : User needs to provide all the dynamic shape inputs with associated "
                "profiles if they want to explicitly set profiles through provider options."
            )

    @property
    def stream(self) -> int:
        return int(self.options[CUDA]["user_compute_stream"])

    def get_providers(self) -> list[str]:
        return [name for name in self.options if name in self._runtime.working] + [CPU]

    def plain(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """What the model answers without any of this."""
        return self._real.run(None, feeds)

    def io_binding(self) -> Binding:
        binding = Binding(int(self.options[CUDA]["device_id"]))
        self._runtime.bindings.add(binding)
        return binding

    def run(self, names: Any, feeds: Any, options: Any) -> Any:
        return self._real.run(names, feeds)

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        runtime = self._runtime
        error = runtime.errors.get(binding.device, runtime.error)
        if error is not None:
            raise error
        if options.terminate:
            raise RuntimeError("Exiting due to terminate flag being set to true.")
        bound = dict(binding.inputs)
        shape = next(iter(bound.values()))[1]
        if self.shapes and self.shapes[-1] != shape:
            time.sleep(runtime.switch_s)
        self.shapes.append(shape)
        # the real one allocates its outputs before anything is computed, too
        shapes = self._real.run(None, {name: np.zeros(s, dtype) for name, (dtype, s, _) in bound.items()})
        for name, like in zip(list(binding.outputs), shapes, strict=True):
            binding.outputs[name] = OrtValue(np.zeros_like(like))
        outputs = binding.get_outputs()

        def compute() -> None:
            feeds = {
                name: np.frombuffer(ctypes.string_at(address, _nbytes(dtype, s)), dtype).reshape(s)
                for name, (dtype, s, address) in bound.items()
            }
            self.seen.append(feeds)
            for value, answer in zip(outputs, self._real.run(None, feeds), strict=True):
                value.array[...] = answer
                if runtime.noise and len(answer) > 1:
                    rows = np.abs(answer).max(axis=tuple(range(1, answer.ndim)), keepdims=True)
                    value.array[...] += runtime.noise * rows

        runtime.cuda.put(self.stream, compute)
        self.queued |= options.entries.get("disable_synchronize_execution_providers") == "1"
        if options.entries.get("disable_synchronize_execution_providers") != "1":
            runtime.cuda.cuStreamSynchronize(ctypes.c_void_p(self.stream))


class Runtime:
    """The onnxruntime module."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    ExecutionMode = onnxruntime.ExecutionMode
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
    OrtValue = OrtValue
    RunOptions = RunOptions

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.working = {CUDA, TENSORRT}
        """Providers whose libraries load."""
        self.switch_s = 0.0
        """What a session takes longer for another shape than its last."""
        self.noise = 0.0
        """What the floats of a batch of several rows are off by, of the largest of their row."""
        self.takes_parts = False
        """Whether TensorRT takes only parts of the model."""
        self.errors: dict[int, Exception] = {}
        """By the device's number: what every run there raises."""
        self.error: Exception | None = None
        """What every run raises."""
        self.sessions: list[Session] = []
        self.open: weakref.WeakSet[Session] = weakref.WeakSet()
        """Sessions that somebody other than this object still holds, once :attr:`sessions` is cleared."""
        self.bindings: weakref.WeakSet[Binding] = weakref.WeakSet()

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def set_default_logger_severity(self, level: int) -> None:
        pass

    def InferenceSession(self, path: str, options: Any, providers: Any, **more: Any) -> Session:  # noqa: N802
        session = Session(self, path, options, providers, **more)
        self.sessions.append(session)
        self.open.add(session)
        return session


def _nbytes(dtype: Any, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
