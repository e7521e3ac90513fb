"""The text of a JSON record -> an object, or a plain sentence that says why it is not one."""

from __future__ import annotations

import json
from typing import Any

import orjson

from worker.errors import Reject
from worker.features.values import TYPE_NAMES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FRAME_BYTES = 5
"""Length of the prefix that clients of a schema registry write: a zero byte, and the schema's number in four bytes."""


def parsed(text: bytes, takes_nan: bool = False) -> dict[str, Any]:
    """One JSON object.

    Args:
        takes_nan: read ``NaN`` and ``Infinity`` as the numbers they are, though JSON does not have them.

    Raises:
        Reject: ``undecodable``: not JSON; ``invalid``: not an object, or a number beyond float64.
    """
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        record = _second_look(text, error, takes_nan)
    if not isinstance(record, dict):
        raise Reject(f"expected a JSON object, got {TYPE_NAMES[type(record)]}")
    return record


def _second_look(text: bytes, error: orjson.JSONDecodeError, takes_nan: bool) -> Any:
    """The value of a text that orjson refused, if it can be read in another way.

    Raises:
        Reject: with the most likely reason.
    """
    if text.startswith(_BYTE_ORDER_MARK):
        return parsed(text[len(_BYTE_ORDER_MARK) :], takes_nan)
    if b"NaN" in text or b"Infinity" in text:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            pass  # NaN or Infinity is not the fault, or not the only one
        else:
            if takes_nan:
                return record
            raise Reject(
                "NaN and Infinity are not JSON; expected null, or input.missing: nan to take them",
                "undecodable",
            ) from None
    if "infinity" in str(error):
        raise Reject("a number is too large for float64") from None
    if text[:1] == b"\0" and text[_FRAME_BYTES : _FRAME_BYTES + 1] in (b"{", b"["):
        number = int.from_bytes(text[1:_FRAME_BYTES], "big")
        raise Reject(
            f"not JSON: the frame of a schema registry (schema {number}) is in front of it; expected JSON alone",
            "undecodable",
        ) from None
    where = f" (at byte {error.pos})" if error.doc else ""
    raise Reject(f"not JSON: {error.msg}{where}", "undecodable") from None
