"""When a model's canary runs although nothing failed: a model may go wrong without an error."""

from __future__ import annotations

import sys
import threading

EVERY_S = 60.0
"""Least time between two checkups."""
SHARE = 0.001
"""Most of the time that checkups may take: after a slow one, the next is later."""
_UNSET = -1
_IN_PROGRESS = sys.maxsize


class Checkup:
    """The checkup times of one servable. Any pool thread may ask; one of them at a time is told to do it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due_ns = _UNSET

    def begin(self, now_ns: int) -> bool:
        """Whether the caller must run the canary now and then call :meth:`end`.

        Args:
            now_ns: monotonic clock. The time to the first checkup counts from the first call.
        """
        if now_ns < self._due_ns:
            return False
        with self._lock:
            due_ns = self._due_ns
            if due_ns == _UNSET:
                self._due_ns = now_ns + round(EVERY_S * 1e9)
                return False
            if now_ns < due_ns:
                return False
            self._due_ns = _IN_PROGRESS
            return True

    def end(self, started_ns: int, ended_ns: int) -> None:
        """The checkup is done; it took from ``started_ns`` to ``ended_ns`` on the monotonic clock."""
        pause_ns = max(round(EVERY_S * 1e9), round((ended_ns - started_ns) / SHARE))
        with self._lock:
            self._due_ns = ended_ns + pause_ns
