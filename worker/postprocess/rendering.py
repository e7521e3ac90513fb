"""Arrays -> JSON text, a whole batch in one C call; every postprocess and encoder renders with it.

Floats are the shortest decimal that reads back as the same float32 or float64; float16 is rendered as float32.
NaN and infinity have no JSON text: find them with :func:`non_finite_items` and refuse those items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from worker import native
from worker.batch import Array
from worker.errors import Reject, Rejection


def scalars(values: Array) -> list[bytes]:
    """The JSON text of every element, in row-major order."""
    return items(values.reshape(-1))


def items(values: Array, before: bytes = b"", after: bytes = b"") -> list[bytes]:
    """``before``, JSON text and ``after`` of ``values[i]`` for every i: a nested list, or a scalar if the rank is 1."""
    if values.dtype == object or values.size == 0:
        return [before + orjson.dumps(item) + after for item in values.tolist()]
    if native.records is not None and (plain := _plain(values)) is not None:
        texts: list[bytes] = native.records.items(plain, before, after)
        return texts
    depth = values.ndim - 1
    opening, closing = b"[" * depth, b"]" * depth
    # Between two items every level closes and opens again; inside an item at least one stays open.
    inner = dumps(values)[1 + depth : -1 - depth].split(closing + b"," + opening)
    before, after = before + opening, closing + after
    return [before + text + after for text in inner] if before or after else inner


def mappings(values: Array, keys: Sequence[str], before: bytes = b"", after: bytes = b"") -> list[bytes]:
    """The JSON text of ``{key: values[i, k]}`` for every i, with ``before`` and ``after``; values (items, keys)."""
    template = before.replace(b"%", b"%%") + b"{"
    template += b",".join(orjson.dumps(key).replace(b"%", b"%%") + b":%b" for key in keys)
    template += b"}" + after.replace(b"%", b"%%")
    texts, count = scalars(np.ascontiguousarray(values.T)), len(values)
    columns = [texts[place * count : (place + 1) * count] for place in range(len(keys))]
    return list(map(template.__mod__, zip(*columns, strict=True))) if keys else [template % ()] * count


def _plain(values: Array) -> Array | None:
    """The same numbers in a form that the compiled path takes; None if it cannot take them."""
    if values.dtype.char == "e":
        return values.astype(np.float32, order="C")
    known = values.dtype.isnative and values.dtype.kind in "fiub" and values.dtype.char != "g"
    return np.ascontiguousarray(values) if known else None


def dumps(values: Array) -> bytes:
    """The JSON text of a whole array of rank 1 or more."""
    if values.dtype == object:
        return orjson.dumps(values.tolist())
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def non_finite_items(values: Array) -> list[int]:
    """Which items (first dimension) hold a NaN or an infinity."""
    if values.dtype.kind != "f":
        return []
    finite = np.isfinite(values)
    if finite.all():
        return []
    return [int(i) for i in np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))]


def non_finite(output: str, step: object) -> Rejection:
    """The rejection of an item whose ``output`` holds NaN or infinity, which JSON cannot express."""
    message = f"output {output!r} holds NaN or infinity, which JSON cannot say"
    return Rejection.of(Reject(message, "non_finite"), "postprocess", step)
