"""Runs of made-up items, which must end: a loop in a model file may go on for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from worker.errors import StartError
from worker.model.backend import Sessions, Tensors
from worker.model.signature import TensorSpec


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of made-up items."""

    run_s: float = 60.0
    """Seconds in which each run must end."""
    fits: Callable[[int], None] = lambda _: None
    """Raises if one item's tensors of so many bytes are too large; asked before one is made."""

    def over(self, sessions: Sessions, tensors: Iterable[TensorSpec]) -> BoundedRuns:
        """Runs of a model with these inputs and outputs."""
        self.fits(sum(spec.item_nbytes for spec in tensors))
        return BoundedRuns(sessions, self.run_s)


class BoundedRuns:
    """Runs of a model at its start, each within a time.

    Args:
        sessions: of the model; the run in progress is interrupted at the end of the time.
        seconds: the time.
    """

    def __init__(self, sessions: Sessions, seconds: float) -> None:
        self._sessions = sessions
        self._seconds = seconds
        self._over = False

    def run(self, feeds: Tensors) -> Tensors:
        """One run.

        Raises:
            TimeoutError: an earlier run was interrupted.
        """
        if self._over:
            raise TimeoutError("an earlier run did not end")
        timer = threading.Timer(self._seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            return self._sessions.run(feeds)
        finally:
            timer.cancel()

    def check(self, path: Path) -> None:
        """Refuse a model of which a run had to be interrupted.

        Raises:
            StartError: it was.
        """
        if self._over:
            raise StartError(
                f"model.path: {path} runs for more than {self._seconds:g} s on one made-up item "
                "(limits.batch_timeout_s); expected a model whose runs end"
            )

    def _end(self) -> None:
        self._over = True
        self._sessions.interrupt()
