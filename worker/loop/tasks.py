"""Calls that block, made beside the loop: the loop is given a way to start them and never makes a thread itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class Task(Protocol):
    """A call that is running, or has ended."""

    @property
    def done(self) -> bool: ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end at most so many seconds; returns :attr:`done`."""


Spawn = Callable[[str, Callable[[], None]], Task]
"""Starts a call, which must not raise, under a name for stack dumps."""


class _Thread:
    """See :class:`Task`."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=call, name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return self.done


def spawn(name: str, call: Callable[[], None]) -> Task:
    """Run a call on a thread of its own, which does not keep the process from ending."""
    return _Thread(name, call)
