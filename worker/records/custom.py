"""Custom code as an input format: a function from bytes to the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from worker import frames
from worker.batch import Array, Columns, Feed, Headers
from worker.errors import Reject, Retry
from worker.model.signature import Signature, TensorSpec
from worker.records.memory import CHUNK_BYTES, CODE_FACTOR, check_room
from worker.records.rows import decode_each, put
from worker.settings import LimitsSettings, PipelineSettings, import_attribute

Function = Callable[[bytes, Headers], Mapping[str, Any]]


class CustomDecoder:
    """Custom code: ``function(value, headers)`` returns an array of one item for each model input.

    If the function raises, the record is refused: for the reason of a :class:`Reject`, else as ``undecodable``.
    """

    contents = ()
    has_fields = False
    takes_missing = False
    shard_rows = 0  # it is Python code: threads do not speed it up

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        self.function: Function = import_attribute(settings.input.format, "input.format")
        self.specs = signature.inputs
        self.fixed = signature.fixed
        self.free_bytes = CHUNK_BYTES if self.fixed else 0
        self.signature = signature
        self.limits = limits

    def cost(self, value: bytes) -> int:
        return check_room(value, CODE_FACTOR * len(value), self.signature, self.limits)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        def decode_row(row: int) -> None:
            try:
                tensors = self.function(payloads[row] or b"", columns.headers[row] or [])
            except (Reject, Retry):
                raise
            except Exception as error:
                frames.mark(error)
                raise
            put(feed, row, self.specs, self._items(tensors))

        decode_each(self.function, feed, range(start, stop), decode_row)

    def _items(self, tensors: Mapping[str, Any]) -> dict[str, Array]:
        """The function's result, as items in the model's dtypes."""
        names = [spec.name for spec in self.specs]
        if not isinstance(tensors, Mapping) or set(tensors) != set(names):
            got = sorted(map(str, tensors)) if isinstance(tensors, Mapping) else type(tensors).__name__
            raise Reject(f"the input function gave {got}, expected arrays for {names}")
        return {spec.name: _item(tensors[spec.name], spec) for spec in self.specs}


def _item(tensor: Any, spec: TensorSpec) -> Array:
    """One item in the model's dtype; a conversion that would change a value is refused."""
    array: Array = np.asarray(tensor)
    shape = spec.item_shape
    if len(array.shape) != len(shape) or any(
        e not in (None, d) for d, e in zip(array.shape, shape, strict=True)
    ):
        expected = str(list(shape)).replace("None", "any")
        raise Reject(f'the array for "{spec.name}" has shape {list(array.shape)}, expected {expected}')
    if spec.dtype == object and array.dtype.kind == "U":
        return array.astype(object)
    kinds = {array.dtype.kind, spec.dtype.kind}
    if array.dtype != spec.dtype and not (kinds <= {"i", "u"} or _widens(array.dtype, spec.dtype)):
        raise Reject(f'the array for "{spec.name}" is {array.dtype}, expected {spec.dtype}')
    with np.errstate(over="ignore"):
        item = np.ascontiguousarray(array, spec.dtype).reshape(array.shape)
    if kinds <= {"i", "u"} and not np.array_equal(item, array):
        raise Reject(f'the array for "{spec.name}" has integers out of range for {spec.dtype}')
    return item


def _widens(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether a conversion stays within a kind of number, or goes from integers to floats."""
    return wanted.kind != "O" and np.can_cast(found, wanted, "same_kind") and found.kind in "fiub"
