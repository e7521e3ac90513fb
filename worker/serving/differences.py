"""How an answer differs from the expected one: the parts that are expected are compared, others may be there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import orjson

SHOWN = 80
"""Characters of a value in a sentence."""


def differences(wanted: Any, got: Any, part: str, tolerance: float) -> Iterator[str]:
    """Where ``got`` lacks or changes what is ``wanted``, one sentence each.

    Mappings may have further names; lists have the same length.

    Args:
        part: what is compared, for the sentences.
        tolerance: largest difference between two numbers.
    """
    if isinstance(wanted, dict) and isinstance(got, dict):
        for name, each in wanted.items():
            if name in got:
                yield from differences(each, got[name], f"{part}.{name}", tolerance)
            else:
                yield f"{part} has no {name}"
    elif isinstance(wanted, list) and isinstance(got, list):
        if len(wanted) != len(got):
            yield f"{part} has {len(got)} entries, expected {len(wanted)}"
            return
        for index, (each, other) in enumerate(zip(wanted, got, strict=True)):
            yield from differences(each, other, f"{part}[{index}]", tolerance)
    elif _is_number(wanted) and _is_number(got):
        if not math.fabs(wanted - got) <= tolerance:  # a NaN is never within the tolerance
            yield f"{part} is {got}, expected {wanted}"
    elif wanted != got or isinstance(wanted, bool) != isinstance(got, bool):
        yield f"{part} is {shown(got)}, expected {shown(wanted)}"


def shown(value: Any) -> str:
    """A value in a sentence, shortened where it is long."""
    text = "absent" if value is None else orjson.dumps(value, default=str).decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
