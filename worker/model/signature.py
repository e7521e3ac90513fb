"""What a model takes and gives: names, dtypes, shapes. Pure data; nothing here imports ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# ONNX Runtime's type string -> (numpy dtype, Open Inference Protocol datatype)
_TYPES: dict[str, tuple[Any, str]] = {
    "tensor(bool)": (np.bool_, "BOOL"),
    "tensor(uint8)": (np.uint8, "UINT8"),
    "tensor(uint16)": (np.uint16, "UINT16"),
    "tensor(uint32)": (np.uint32, "UINT32"),
    "tensor(uint64)": (np.uint64, "UINT64"),
    "tensor(int8)": (np.int8, "INT8"),
    "tensor(int16)": (np.int16, "INT16"),
    "tensor(int32)": (np.int32, "INT32"),
    "tensor(int64)": (np.int64, "INT64"),
    "tensor(float16)": (np.float16, "FP16"),
    "tensor(float)": (np.float32, "FP32"),
    "tensor(double)": (np.float64, "FP64"),
    "tensor(string)": (np.object_, "BYTES"),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: np.dtype[Any]
    """numpy dtype; ``object`` (Python str) for string tensors."""
    datatype: str
    """Open Inference Protocol v2 name: BOOL, UINT8 ... FP64, BYTES."""
    shape: tuple[int | None, ...]
    """Full shape, the batch dimension included; None = free."""

    @classmethod
    def of(cls, name: str, ort_type: str, ort_shape: Any) -> TensorSpec:
        """From what ONNX Runtime reports.

        Raises:
            KeyError: the type is no dense tensor of a supported element type (a sequence, map, bfloat16, ...).
        """
        dtype, datatype = _TYPES[ort_type]
        shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in ort_shape or ())
        return cls(name, np.dtype(dtype), datatype, shape)

    @property
    def item_shape(self) -> tuple[int | None, ...]:
        """Shape of one item: everything behind the first dimension (a rank-0 tensor is its own item)."""
        return self.shape[1:]

    @property
    def fixed(self) -> bool:
        """Whether every dimension of one item is known."""
        return all(d is not None for d in self.item_shape)

    @property
    def item_nbytes(self) -> int:
        """Bytes of one item; free dimensions count as 1, strings as 64 bytes each."""
        size = 64 if self.dtype == object else self.dtype.itemsize
        return size * math.prod(d or 1 for d in self.item_shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's inputs and outputs in the model's own order, and whether items may be run together."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool = False
    """Every first dimension is free and two warm-up items together gave what each gave alone."""

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    @property
    def fixed(self) -> bool:
        """Whether one item of every input has a known shape."""
        return all(spec.fixed for spec in self.inputs)
