"""Spans of topics as users write them: ``topic:NAME[/PARTITION][@FROM..TO]``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.kafka.spans import Span

PREFIX = "topic:"
_SPAN = re.compile(r"topic:([A-Za-z0-9._-]{1,249})(?:/(\d{1,9}))?(?:@(.*))?")
_AGO = re.compile(r"-(\d{1,9})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXPECTED = "expected topic:NAME[/PARTITION][@FROM..TO], FROM and TO times such as -2h or 2026-11-30T12:00Z, or offsets of a PARTITION"


def is_span(text: str) -> bool:
    return text.startswith(PREFIX)


def span_of(option: str, text: str, now_s: Callable[[], float] = time.time) -> Span:
    """The span that a text stands for.

    Args:
        option: its name, for errors. now_s: Unix seconds.

    Raises:
        ConfigError: it is none, or an offset stands there without a partition.
    """
    from worker.kafka.spans import Span

    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigError(f"{option} {text}: {EXPECTED}")
    topic, number, part = found.groups()
    partition = int(number) if number is not None else None
    if part is None:
        return Span(topic, partition)
    start, dots, stop = part.partition("..")
    if not dots:
        raise ConfigError(f"{option} {text}: {EXPECTED}")

    def bound(given: str) -> tuple[int | None, int | None]:
        """(offset, Unix milliseconds)"""
        if not given:
            return None, None
        if given.isdecimal():
            if partition is None:
                raise ConfigError(
                    f"{option} {text}: {given} is an offset, which counts in one partition; expected topic:{topic}/PARTITION@..."
                )
            return int(given), None
        if ago := _AGO.fullmatch(given):
            return None, round((now_s() - int(ago[1]) * _SECONDS[ago[2]]) * 1000)
        try:
            when = datetime.fromisoformat(given)
        except ValueError:
            raise ConfigError(f"{option} {text}: {given} is no offset and no time; {EXPECTED}") from None
        return None, round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)

    (start_offset, start_ms), (stop_offset, stop_ms) = bound(start), bound(stop)
    return Span(topic, partition, start_offset, start_ms, stop_offset, stop_ms)
