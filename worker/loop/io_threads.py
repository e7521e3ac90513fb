"""Threads for calls that wait for something outside. They are made when they are needed, up to a number."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Back:
    """A call that has ended: what it returned, or what it raised."""

    job: Any
    """What the call was started for."""
    result: Any = None
    error: BaseException | None = None


class Calls(Protocol):
    """Runs calls beside the loop."""

    def start(self, job: Any, call: Callable[[], Any]) -> None:
        """Run the call soon; its end comes back as :class:`Back` with this job."""

    def back(self) -> list[Back]:
        """The calls that have ended since the last time. Does not wait."""

    def close(self) -> None:
        """Start nothing more. Calls that are running are left alone."""


class IoThreads:
    """See the module.

    Args:
        most: most threads.
        wake: called on an I/O thread when a call has ended, so that whoever waits looks.
    """

    def __init__(self, most: int, wake: Callable[[], None]) -> None:
        self._most = most
        self._wake = wake
        self._todo: SimpleQueue[tuple[Any, Callable[[], Any]] | None] = SimpleQueue()
        self._done: SimpleQueue[Back] = SimpleQueue()
        self._told = False
        """The loop was woken, and has not looked since."""
        self._threads = 0
        self._idle = threading.Semaphore(0)

    def start(self, job: Any, call: Callable[[], Any]) -> None:
        self._todo.put((job, call))
        if self._threads < self._most and not self._idle.acquire(blocking=False):
            self._threads += 1
            # A thread that waits for a store must not keep the process from ending.
            threading.Thread(target=self._work, name=f"io-{self._threads}", daemon=True).start()

    def back(self) -> list[Back]:
        found: list[Back] = []
        self._told = False  # before the look: what ends from now on wakes the loop again
        try:
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            return found

    def close(self) -> None:
        for _ in range(self._threads):
            self._todo.put(None)

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            job, call = task
            try:
                back = Back(job, call())
            except BaseException as error:  # whatever it is, the loop must hear of it
                back = Back(job, error=error)
            self._done.put(back)
            # The names would keep the last payload alive until the next call.
            del task, job, call, back
            self._idle.release()
            if not self._told:
                self._told = True
                self._wake()
