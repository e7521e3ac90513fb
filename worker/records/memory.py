"""Estimates the memory that reading a record needs, besides its bytes and its slots in the batch, from its bytes alone.

Parsed JSON is many times as large as its text: ``0.5,`` becomes a pointer of 8 bytes, a number of 32 and some 20 in the
parser. The figures are upper bounds of measurements (``tests/unit/test_registry_contract.py``). The loop's thread charges
them to the byte budget before the record is parsed, so they are computed by counting characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from worker.errors import Reject
from worker.model.signature import Signature, TensorSpec
from worker.settings import LimitsSettings

CHUNK_BYTES = 256 << 10
"""Most bytes of text parsed together, unless a single record is longer. The memory for parsing one chunk, below 8 MiB per
thread, is not charged."""
NEVER = 1 << 62
"""As ``free_bytes``: a record of any length needs only its bytes and its slots."""
CODE_FACTOR = 16
"""Assumed memory of custom code, as a multiple of the record's length: as much as parsing JSON numbers needs."""

WORST_FACTOR = 32
"""Upper bound of the memory for parsing JSON, as a multiple of its length, if the text cannot be read yet."""
ROUGHLY_BYTES = 16 << 20
"""A record that certainly takes no more memory than this is not looked at more closely."""
_NO_SIGNS = bytes(set(range(256)) - set(b',:"[{'))
_ELEMENT, _NUMBER, _NUMBER_PER_BYTE, _STRING, _BRACKET, _KEY = 28, 32, 8, 66, 100, 150


def json_bytes(text: bytes) -> int:
    """Bytes that parsing a JSON text needs, including its values as Python objects and as an array."""
    signs = text.translate(
        None, _NO_SIGNS
    )  # one pass over the text, so that the counts pass over a short one
    elements, keys, strings = signs.count(b",") + 1, signs.count(b":"), signs.count(b'"') // 2
    # a number that is not a small integer has at least four characters, including its comma
    numbers = min(_NUMBER * max(0, elements + keys - strings), _NUMBER_PER_BYTE * len(text))
    brackets = signs.count(b"[") + signs.count(b"{")
    return (
        2 * len(text) + _ELEMENT * elements + numbers + _STRING * strings + _BRACKET * brackets + _KEY * keys
    )


def check_room(value: bytes, scratch: int, signature: Signature, limits: LimitsSettings) -> int:
    """Return ``scratch`` if the record fits into the whole budget.

    Raises:
        Reject: ``too_large``: the record can never be read within ``limits.in_flight_bytes``.
    """
    tensors = 2 * sum(spec.item_nbytes for spec in (*signature.inputs, *signature.outputs))
    needed = len(value) + scratch + tensors
    if needed > limits.in_flight_bytes:
        raise Reject(
            f"reading the record needs {needed} bytes of memory, "
            f"limits.in_flight_bytes is {limits.in_flight_bytes}",
            "too_large",
        )
    return scratch


def further_items_bytes(elements: int, signature: Signature) -> int:
    """Bytes of the tensors of all items but the first, in a record of at most ``elements`` elements per input."""
    if not signature.batchable:
        return 0
    most = min((elements // _elements(spec) for spec in signature.inputs if _elements(spec)), default=1)
    nbytes = 2 * sum(spec.item_nbytes for spec in (*signature.inputs, *signature.outputs))
    return max(0, most - 1) * nbytes


def check_empty(shape: Sequence[int]) -> None:
    """Refuse a tensor without elements that declares many items: its answers would need memory that was not charged.

    Raises:
        Reject: ``invalid``.
    """
    if not math.prod(shape) and max(shape, default=0) > 1024:
        raise Reject(
            f"shape is {[*shape][:16]}, which has no elements; expected no dimension above 1024 then"
        )


def _elements(spec: TensorSpec) -> int:
    """Least number of elements of an item."""
    return math.prod(d for d in spec.item_shape if d is not None)
