"""Makes the content of records safe to show on a terminal: anyone may have written their bytes and timestamps."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

import orjson

BREAKS = bytes.maketrans(b"\r\n", b"  ")


def json_value(value: bytes | None) -> Any:
    """A record's value for a line of JSON: JSON as it is, number for number; anything else as base64.

    JSON is not parsed and written again: that would lose digits, and fails for a value that is nested deeply.
    """
    if value is None:
        return None
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return {"base64": base64.b64encode(value).decode()}
    return orjson.Fragment(value.translate(BREAKS))  # a line break in JSON stands between tokens only


def moment(timestamp_ms: int, show: Callable[[datetime], str], zone: tzinfo | None = None) -> str:
    """A record's time as ``show`` writes it; one beyond the calendar, such as one in microseconds, as its number."""
    try:
        return show(datetime.fromtimestamp(timestamp_ms / 1000, zone))
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
