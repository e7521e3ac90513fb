"""What a model takes and gives: names, dtypes, shapes. Pure data; nothing here imports ONNX Runtime."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

JSON = "JSON"
"""Stands for the datatype of an output that holds the prediction itself as JSON text, as custom model code gives it."""
_SIDE_MAX = 1 << 14
"""Most pixels of a side that a file may suggest."""


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
    names: tuple[str, ...] = ()
    """What the file calls each dimension; empty for a dimension of known length or without a name."""
    suggested: tuple[int, int] | None = None
    """Height and width that the file suggests for a picture whose sides it leaves free."""
    whole: tuple[int | None, ...] | None = None
    """Shape of the whole tensor, if one item is that: its first dimension counts no items. See :func:`with_wholes`."""
    keys: tuple[str, ...] = ()
    """Of an output that is a sequence of maps, as ZipMap gives it: what its columns are called. It is handled as a tensor of
    one row per map."""

    @classmethod
    def of(cls, name: str, ort_type: str, ort_shape: Any) -> TensorSpec:
        """From what ONNX Runtime reports.

        Raises:
            KeyError: the type is no dense tensor of a supported element type (a sequence, map, bfloat16, ...).
        """
        dtype, datatype = _TYPES[ort_type]
        shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in ort_shape or ())
        names = tuple(d if isinstance(d, str) else "" for d in ort_shape or ())
        return cls(name, np.dtype(dtype), datatype, shape, names)

    @property
    def item_shape(self) -> tuple[int | None, ...]:
        """Shape of one item: everything behind the first dimension, or the whole tensor (also one of rank 0)."""
        return self.shape[1:] if self.whole is None else self.whole

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension counts items, so that the tensor of one item is the item with a 1 before it."""
        return self.whole is None and bool(self.shape)

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
class Shown:
    """What a model file and made-up items have shown, for those that check at start whether settings fit the model."""

    answers: tuple[dict[str, NDArray[Any]], ...] = ()
    """Output name -> array with its batch dimension, for each made-up item alone; the first item is of scale 1.
    Empty once the model's encoder is made."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The file's own key-value pairs."""
    answer_share: float = 0.0
    """Bytes of an answer for each byte of its item, by the first made-up item."""
    class_names: tuple[str, ...] = ()
    """What the file, or config.json in its folder, calls the classes of a classifier's scores, in their order; empty if neither
    says."""
    pooling: str = ""
    """What ``1_Pooling/config.json`` in the model's folder says: mean, cls, max or another way; empty if nothing."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's inputs and outputs in the model's own order, and whether items may be run together."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool = False
    """Every input's first dimension is free, and made-up items together gave what each gave alone."""

    shown: Shown = field(default_factory=lambda: Shown(), compare=False, repr=False)
    """What else is known of the model."""

    constants: tuple[str, ...] = ()
    """Further inputs that are the same in every run; see :mod:`worker.model.wiring`."""
    states: tuple[str, ...] = ()
    """Further inputs that the model's own outputs fill: the items of a record run in order."""

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    @property
    def fixed(self) -> bool:
        """Whether one item of every input has a known shape."""
        return all(spec.fixed for spec in self.inputs)


def with_suggested_size(
    inputs: tuple[TensorSpec, ...], metadata: Mapping[str, str]
) -> tuple[TensorSpec, ...]:
    """The inputs, those of four dimensions with the size that Ultralytics writes into a file: ``imgsz``, height and width."""
    try:
        height, width = ast.literal_eval(metadata.get("imgsz", ""))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return inputs
    if not all(isinstance(side, int) and 0 < side <= _SIDE_MAX for side in (height, width)):
        return inputs
    return tuple(
        replace(spec, suggested=(height, width)) if len(spec.shape) == 4 else spec for spec in inputs
    )


def with_wholes(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The inputs, with those marked whose first dimension counts no items: one item gives such an input whole.

    An example is the state [2, batch, 128] of a recurrent network beside its audio [batch, samples]. There are two signs:
    a first dimension of a fixed length above 1 that the other inputs do not share; or a later dimension that is called
    a batch, while the first one is not. In a whole input, every dimension that another input's items are counted by, or
    that is called a batch, has length 1.
    """
    firsts = {spec.shape[0] for spec in inputs if spec.shape}
    if len(firsts) == 1 and None not in firsts:
        return inputs  # a model of a fixed batch
    return tuple(_marked(spec, inputs) for spec in inputs)


def _marked(spec: TensorSpec, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if not spec.shape:
        return spec
    first_is_fixed = spec.shape[0] not in (None, 1)
    batch_is_later = any(map(_is_batch, spec.names[1:])) and not _is_batch(spec.names[0])
    if not first_is_fixed and not batch_is_later:
        return spec
    counted_by = {other.names[0] for other in inputs if other.shape and other is not spec} - {""}
    whole = tuple(
        1 if length is None and (_is_batch(name) or name in counted_by) else length
        for length, name in zip(spec.shape, spec.names, strict=True)
    )
    return replace(spec, whole=whole)


def _is_batch(name: str) -> bool:
    return "batch" in name.lower()
