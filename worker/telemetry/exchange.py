"""Gives other threads a consistent snapshot: a thread asks, and the conductor answers at its next turn."""

from __future__ import annotations

import threading

from worker.telemetry.meters import Snapshot


class SnapshotExchange:
    """Snapshots on demand. The one lock here is taken only when someone asks.

    Args:
        first: the snapshot returned until the conductor has answered for the first time.
        patience_s: how long `ask` waits for an answer before it returns the last one.
    """

    def __init__(self, first: Snapshot, patience_s: float = 1.0) -> None:
        self.wanted = False
        """Whether a thread waits for a snapshot; the conductor checks this every turn."""
        self._latest = first
        self._answers = 0
        self._patience_s = patience_s
        self._answered = threading.Condition()

    def ask(self) -> Snapshot:
        """A snapshot made after this call; the last one if the conductor does not answer within ``patience_s``."""
        with self._answered:
            seen = self._answers
            self.wanted = True
            self._answered.wait_for(lambda: self._answers > seen, self._patience_s)
            return self._latest

    def answer(self, snapshot: Snapshot) -> None:
        """Give a snapshot of this turn to every waiting thread."""
        with self._answered:
            self.wanted = False
            self._latest = snapshot
            self._answers += 1
            self._answered.notify_all()
