"""What reading a record takes on top of its bytes and its slots in the batch, told from its bytes alone.

Parsed JSON is many times as large as its text: ``0.5,`` becomes a pointer of 8 bytes, a number of 32 and some 20 in the
parser. The figures are bounds of what was measured (``tests/unit/test_registry_contract.py``); they are charged to the byte budget before the
record is parsed, on the loop's thread, so they come from counting signs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from worker.errors import Reject
from worker.model.signature import Signature, TensorSpec
from worker.settings import LimitsSettings

CHUNK_BYTES = 256 << 10
"""Records parsed together at most, in bytes of text, beyond the first one. What parsing a chunk takes, below 8 MiB in
each thread, is not charged."""
NEVER = 1 << 62
"""As ``free_bytes``: no record of any length takes more than its bytes and its slots."""
CODE_FACTOR = 16
"""What custom code is taken to need, in lengths of the record: as much as parsing JSON numbers takes."""

WORST_FACTOR = 32
"""What parsing JSON takes at most, in lengths of its text, where the text cannot be looked at yet."""
_NO_SIGNS = bytes(set(range(256)) - set(b',:"[{'))
_ELEMENT, _NUMBER, _NUMBER_PER_BYTE, _STRING, _BRACKET, _KEY = 28, 32, 8, 66, 100, 150


def json_bytes(text: bytes) -> int:
    """Bytes that parsing a JSON text takes, its values as Python objects and as an array included."""
    signs = text.translate(None, _NO_SIGNS)  # one pass over the text; the counts then go over what is left
    elements, keys, strings = signs.count(b",") + 1, signs.count(b":"), signs.count(b'"') // 2
    # a number that is no small integer has at least four characters, its comma included
    numbers = min(_NUMBER * max(0, elements + keys - strings), _NUMBER_PER_BYTE * len(text))
    brackets = signs.count(b"[") + signs.count(b"{")
    return (
        2 * len(text) + _ELEMENT * elements + numbers + _STRING * strings + _BRACKET * brackets + _KEY * keys
    )


def check_room(value: bytes, scratch: int, signature: Signature, limits: LimitsSettings) -> int:
    """``scratch``, where the whole budget has room for it.

    Raises:
        Reject: ``too_large``: it can never be read within ``limits.in_flight_bytes``.
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
    """Bytes of the tensors of all items but the first, in a record of at most so many elements per input."""
    if not signature.batchable:
        return 0
    most = min((elements // _elements(spec) for spec in signature.inputs if _elements(spec)), default=1)
    nbytes = 2 * sum(spec.item_nbytes for spec in (*signature.inputs, *signature.outputs))
    return max(0, most - 1) * nbytes


def check_empty(shape: Sequence[int]) -> None:
    """Refuse a tensor without elements that stands for many items: its answers would take memory that nobody counted.

    Raises:
        Reject: ``invalid``.
    """
    if not math.prod(shape) and max(shape, default=0) > 1024:
        raise Reject(
            f"shape is {[*shape][:16]}, which has no elements; expected no dimension above 1024 then"
        )


def _elements(spec: TensorSpec) -> int:
    """Elements that an item has at least."""
    return math.prod(d for d in spec.item_shape if d is not None)
