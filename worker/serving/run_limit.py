"""How many items one model run may have: lowered when a run is out of memory, raised again after many good batches."""

from __future__ import annotations

import threading

import structlog

GOOD_BATCHES = 256
"""Batches without a failure after which twice as many items are tried again."""
MOST_GOOD_BATCHES = 64 * GOOD_BATCHES
"""The wait doubles with every failure, up to this: a model that never has the memory again costs little."""

log = structlog.get_logger()


class RunLimit:
    """The limit of one servable. Any pool thread calls it.

    Args:
        label: the model's ``name@version``, for the log.
        max_size: the limit where memory suffices.
    """

    def __init__(self, label: str, max_size: int) -> None:
        self.items = max_size
        """Most items in one run now."""
        self._label = label
        self._max_size = max_size
        self._lock = threading.Lock()
        self._good = 0
        self._wanted = GOOD_BATCHES
        self._told = False

    def out_of_memory(self, items: int) -> None:
        """A run of so many items was out of memory: at most half as many go into the next ones."""
        with self._lock:
            lowered = max(1, min(self.items, items // 2))
            if (
                lowered < self.items and self._good
            ):  # one failure is met by several runs that were under way with it
                self._wanted = min(2 * self._wanted, MOST_GOOD_BATCHES)
            self.items, self._good = lowered, 0
            first, self._told = not self._told, True
        if first:
            log.warning("model run out of memory", model=self._label, items=items, items_per_run=lowered)

    def good(self) -> None:
        """A batch was answered without a failure."""
        if self.items >= self._max_size:
            return
        with self._lock:
            self._good += 1
            if self._good < self._wanted:
                return
            self.items, self._good = min(2 * self.items, self._max_size), 0
            raised = self.items
        if raised == self._max_size:
            log.info("model runs have their full size again", model=self._label, items_per_run=raised)
