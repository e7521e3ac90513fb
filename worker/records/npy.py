"""NumPy's .npy files, versions 1 to 3; never pickles."""

from __future__ import annotations

import ast
import math
from functools import lru_cache
from typing import Any

import numpy as np

from worker.batch import Array, Columns, Feed, Item
from worker.errors import Reject
from worker.model.signature import Signature
from worker.records.memory import check_empty, check_room, further_items_bytes
from worker.records.rows import check_one_input, decode_each, full_rank
from worker.settings import LimitsSettings, PipelineSettings

_MAX_HEADER_BYTES = 10_000  # numpy's own limit: a longer header is an attack on the parser

_STRING_FACTOR = 24
"""A character of 4 bytes becomes a string of 80 and a pointer."""


class NpyDecoder:
    """One array as a NumPy file: an item of the model's only input, or several with their batch dimension.

    Raises:
        ConfigError: the model has several inputs.
    """

    contents = ()
    has_fields = False
    takes_missing = False
    fixed = False
    shard_rows = 0
    free_bytes = 0

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        check_one_input("npy", signature)
        self.spec = signature.inputs[0]
        self.signature = signature
        self.limits = limits
        self.batchable = signature.batchable

    def cost(self, value: bytes) -> int:
        """Bytes of the tensors of all items but one, of a copy in the model's byte order, and of a text's strings."""
        scratch = 2 * len(value)
        if self.spec.dtype == object:
            scratch += _STRING_FACTOR * len(value)
            scratch += further_items_bytes(len(value) // 4, self.signature)
        else:
            scratch += further_items_bytes(len(value) // self.spec.dtype.itemsize, self.signature)
        return check_room(value, scratch, self.signature, self.limits)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        def decode_row(row: int) -> None:
            feed.items[row] = self._item(payloads[row] or b"")

        decode_each(self, feed, range(start, stop), decode_row)

    def _item(self, value: bytes) -> Item:
        array, spec = parse_npy(value), self.spec
        if spec.dtype == object and array.dtype.kind == "U":
            array = _strings(array)
        elif array.dtype.newbyteorder("=") != spec.dtype:
            raise Reject(f"the array is {array.dtype}, expected {spec.datatype} ({spec.dtype})")
        elif spec.dtype == bool and (np.require(array, requirements=("C",)).view(np.uint8) > 1).any():
            raise Reject("a boolean is a byte of 0 or 1")  # the model would compute with the byte
        check_empty(array.shape)
        array = np.require(array, spec.dtype, ("C", "A"))
        if _matches(array.shape, spec.item_shape):
            return Item({spec.name: full_rank(spec, array)})
        if _matches(array.shape, spec.shape) and len(array) > 0:
            return Item({spec.name: array}, len(array) if self.batchable else 1, single=False)
        shapes = f"{list(spec.item_shape)} or {list(spec.shape)}".replace("None", "any")
        raise Reject(f"the array has shape {list(array.shape)}, expected {shapes}")


def parse_npy(value: bytes) -> Array:
    """The array in a .npy file, in the file's dtype and order, without a copy.

    Raises:
        Reject: ``undecodable``: not .npy, a broken header, or data of another length than it says;
            ``invalid``: Python objects, structured records or empty ones.
    """
    if value[:6] != b"\x93NUMPY" or len(value) < 10:
        raise Reject("not an .npy file", "undecodable")
    version = value[6]
    if version not in (1, 2, 3) or value[7] != 0:
        raise Reject(f"an .npy file of version {version}.{value[7]}, expected 1.0, 2.0 or 3.0", "undecodable")
    start = 10 if version == 1 else 12
    end = start + int.from_bytes(value[8:start], "little")
    if end > len(value) or end - start > _MAX_HEADER_BYTES:
        raise Reject("an .npy file whose header is cut short or too long", "undecodable")
    dtype, fortran, shape = _header(value[start:end], "utf-8" if version == 3 else "latin-1")
    if dtype.hasobject:
        raise Reject("the array holds Python objects, which are never unpickled")
    if dtype.fields is not None or dtype.subdtype is not None or dtype.itemsize == 0:
        raise Reject(f"the array holds {dtype}, expected numbers or strings")
    expected = math.prod(shape) * dtype.itemsize
    if len(value) - end != expected:
        raise Reject(
            f"an .npy file with {len(value) - end} bytes of data, expected {expected}", "undecodable"
        )
    if expected == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(value, dtype, offset=end).reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=64)  # parsing it takes 10 times as long as the rest, and a stream repeats its headers
def _header(text: bytes, encoding: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """(dtype, Fortran order, shape) from the header's Python literal."""
    try:
        header = ast.literal_eval(text.decode(encoding))
        dtype = np.dtype(header["descr"])
        fortran, shape = header["fortran_order"], header["shape"]
        sound = len(header) == 3 and isinstance(fortran, bool) and isinstance(shape, tuple)
        sound = sound and all(type(d) is int for d in shape)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        sound = False
    if not sound or any(d < 0 for d in shape):
        raise Reject("an .npy file whose header is broken", "undecodable")
    return dtype, fortran, shape


def _strings(array: Array) -> Array:
    """Python strings of a text array, which numpy keeps as numbers that need not be characters.

    Raises:
        Reject: ``invalid``: beyond Unicode, or half of a surrogate pair.
    """
    codes = np.require(array, array.dtype.newbyteorder("="), ("C",)).view(np.uint32)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise Reject("the array holds text that is not Unicode")
    return array.astype(object)


def _matches(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (None, d) for d, e in zip(shape, expected, strict=True))
