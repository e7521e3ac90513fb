"""What records hold, as a terminal may show it: their bytes and times come from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo


def printable(text: str, keep: str = "") -> str:
    """Control characters written out, except those to ``keep``: a record must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def moment(timestamp_ms: int, show: Callable[[datetime], str], zone: tzinfo | None = None) -> str:
    """A record's time as ``show`` writes it; one beyond the calendar, such as one in microseconds, as its number."""
    try:
        return show(datetime.fromtimestamp(timestamp_ms / 1000, zone))
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
