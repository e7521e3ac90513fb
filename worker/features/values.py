"""JSON values -> arrays, exactly: no value is wrapped, truncated, guessed or silently made infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from worker.batch import Array
from worker.errors import Reject

_EXACT = float(1 << 53)
"""Up to here every integer is an exact float64; beyond, a float may be a rounded integer."""

TYPE_NAMES = {
    bool: "a boolean",
    type(None): "null",
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "an integer",
    float: "a number",
    bytes: "bytes",
}
_EXPECTED: dict[str, tuple[frozenset[type], str]] = {
    "f": (frozenset((int, float)), "a number"),
    "i": (frozenset((int, float)), "an integer"),
    "u": (frozenset((int, float)), "an integer"),
    "b": (frozenset((bool,)), "a boolean"),
    "O": (frozenset((str,)), "a string"),
}


Missing = float | Literal["reject", "nan"]
"""``input.missing``."""


def missing_for(dtype: np.dtype[Any], missing: Missing) -> float | None:
    """The substitute for a missing number in a model input of this dtype; None if it cannot hold one."""
    if missing == "reject":
        return None
    standing = float(missing)
    if dtype.kind == "f":
        return standing
    if dtype.kind not in "iu" or not standing.is_integer():
        return None
    limits = np.iinfo(dtype)
    return standing if limits.min <= standing <= limits.max else None


def stack(
    rows: Sequence[Any], dtype: np.dtype[Any], item_shape: tuple[int, ...], missing: float | None = None
) -> Array:
    """One array from the values of several records, which are all flat or all nested like the item.

    Args:
        rows: per record a list of the item's elements in row-major order, flat or nested; a rank-0 item may also
            be the element itself.
        dtype: of the model's input; ``object`` for strings.
        item_shape: of one record's item.
        missing: see :func:`typed`.

    Returns:
        (len(rows), *item_shape).

    Raises:
        Reject: ``invalid``: an element of another kind, out of the dtype's range, or another number of them.
            With several rows it does not say which one.
    """
    level: Sequence[Any] = rows
    if len(rows) == 1 and isinstance(rows[0], list) and item_shape == (len(rows[0]),):
        level = rows[0]  # a list of a million elements is not copied
    elif item_shape or (rows and isinstance(rows[0], list)):
        nested = bool(rows) and bool(rows[0]) and isinstance(rows[0], list) and isinstance(rows[0][0], list)
        for length in item_shape if nested else (math.prod(item_shape),):
            level = _opened(level, length)
    return typed(level, dtype, missing).reshape(len(rows), *item_shape)


def typed(elements: Sequence[Any], dtype: np.dtype[Any], missing: float | None = None) -> Array:
    """A one-dimensional array of JSON scalars.

    Args:
        missing: the substitute for null and NaN; None = these are refused. If it is NaN, infinities are accepted too.

    Raises:
        Reject: ``invalid``, naming the first element that does not fit.
    """
    allowed, expected = _EXPECTED[dtype.kind]
    if missing is not None:
        elements = _filled(elements, missing, dtype)
    if not allowed.issuperset(map(type, elements)):
        index, wrong = next((i, e) for i, e in enumerate(elements) if type(e) not in allowed)
        hint = " (or input.missing: nan, or a number)" if wrong is None and dtype.kind in "fiu" else ""
        raise Reject(f"element {index} is {TYPE_NAMES[type(wrong)]}, expected {expected}{hint}")
    if dtype.kind == "f":
        return _floats(elements, dtype, missing)
    if dtype.kind in "iu":
        return _integers(elements, dtype)
    array = np.empty(len(elements), dtype)
    array[:] = elements
    return array


def shape_of(value: Any, item_shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape a value has as an item with free dimensions (None); a flat list may leave one of them open.

    Raises:
        Reject: ``invalid``: the dimensions are ambiguous, or do not agree with the fixed ones.
    """
    if None not in item_shape:
        return tuple(d for d in item_shape if d is not None)
    wanted = [d if d is not None else "any" for d in item_shape]
    found: list[int] = []
    level = value
    while isinstance(level, list):
        found.append(len(level))
        level = level[0] if level else None
    if len(found) == 1 and len(item_shape) > 1 and item_shape.count(None) == 1:
        known = math.prod(d for d in item_shape if d is not None)
        if known and found[0] % known == 0:
            return tuple(found[0] // known if d is None else d for d in item_shape)
    if len(found) != len(item_shape) or any(
        d not in (None, n) for d, n in zip(item_shape, found, strict=True)
    ):
        raise Reject(f"the lists have shape {found}, expected {wanted}".replace("'", ""))
    return tuple(found)


def _opened(level: Sequence[Any], length: int) -> list[Any]:
    """The elements of all lists of one level, each of which must have this length."""
    if not {list, tuple}.issuperset(map(type, level)):
        wrong = next(e for e in level if not isinstance(e, list | tuple))
        raise Reject(f"expected a list of {length} elements, got {TYPE_NAMES[type(wrong)]}")
    if not {length}.issuperset(map(len, level)):
        wrong = next(e for e in level if len(e) != length)
        raise Reject(f"expected {length} elements, got {len(wrong)}")
    return list(chain.from_iterable(level))


def _filled(elements: Sequence[Any], missing: float, dtype: np.dtype[Any]) -> Sequence[Any]:
    """The elements with ``missing`` in the place of null and NaN."""
    filling: Any = missing if dtype.kind == "f" else int(missing)
    # a NaN is the only value that is not itself
    return [filling if e is None or e != e else e for e in elements]


def _floats(elements: Sequence[float], dtype: np.dtype[Any], missing: float | None) -> Array:
    with np.errstate(over="ignore"):
        exact = np.array(elements, np.float64)
        array = exact.astype(dtype, copy=False)
    finite = np.isfinite(array)
    if missing is not None and math.isnan(missing):
        finite |= ~np.isfinite(exact)
    if not finite.all():
        raise Reject(f"element {int(np.argmin(finite))} is too large for {dtype}")
    return array


def _integers(elements: Sequence[float], dtype: np.dtype[Any]) -> Array:
    """Exactly, to 64 bits. 1.0 is an integer; beyond 2^53 a float is not, because it may have been rounded."""
    if float in set(map(type, elements)):
        for index, element in enumerate(elements):
            if isinstance(element, float) and not (element.is_integer() and abs(element) <= _EXACT):
                raise Reject(f"element {index} is no integer that fits {dtype}")
        elements = list(map(int, elements))
    limits = np.iinfo(dtype)
    if len(elements) and (min(elements) < limits.min or max(elements) > limits.max):
        index = next(i for i, e in enumerate(elements) if not limits.min <= e <= limits.max)
        raise Reject(f"element {index} is out of range for {dtype}")
    return np.array(elements, dtype)
