"""Makes the content of records safe to show on a terminal: anyone may have written their bytes and timestamps."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

import orjson

_STEERS = re.compile(
    "[\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]"
)
"""Control characters that JSON lets pass, and characters that are invisible or change the direction of text."""
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


def harmless(line: bytes) -> bytes:
    """JSON that a terminal may show: what steers one, or turns text round, is written as ``\\u...``.

    JSON asks for that below U+0020 only, and a terminal takes U+009B for the beginning of an escape sequence. Who parses
    the line gets the same.
    """
    if line.isascii() and b"\x7f" not in line:
        return line
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def moment(timestamp_ms: int, show: Callable[[datetime], str], zone: tzinfo | None = None) -> str:
    """A record's time as ``show`` writes it; one beyond the calendar, such as one in microseconds, as its number."""
    try:
        return show(datetime.fromtimestamp(timestamp_ms / 1000, zone))
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
