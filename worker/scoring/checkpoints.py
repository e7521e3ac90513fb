"""Where labels must be read again from: a lower bound for the labels of results that are not counted yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST = 1_000


class _Checkpoint(NamedTuple):
    """Labels of results from ``results`` on are not before ``labels``."""

    results: tuple[int, ...]
    """An offset of each results topic."""
    labels: int


class Checkpoints:
    """Pairs of places that were reached at the same time.

    When results were read up to R and the oldest label that waited was at L, no label before L belongs to a result from R
    on: it had found its result, or was given up.

    Args:
        results, labels: where reading begins.
    """

    def __init__(self, results: Sequence[int], labels: int) -> None:
        self._kept = [_Checkpoint(tuple(results), labels)]
        self._lowest: int | None = None
        """The first of the labels that found a further result later than when they were passed."""

    def add(self, results: Sequence[int], labels: int) -> None:
        """A new pair of places; neither goes back."""
        self._lower()
        now = tuple(results)
        if now == self._kept[-1].results:
            self._kept.pop()  # nothing of what follows was read, so no label before the newer place belongs to it
        self._kept.append(_Checkpoint(now, labels))
        if len(self._kept) > MOST:
            del self._kept[1::2]

    def again(self, label: int) -> None:
        """A label that was passed belongs to a result that was read just now."""
        self._lowest = label if self._lowest is None else min(self._lowest, label)

    def labels_from(self, results: Sequence[int]) -> int:
        """No label before this belongs to a result from these offsets on. They never go back."""
        self._lower()
        passed = [
            each
            for each in self._kept
            if all(old <= new for old, new in zip(each.results, results, strict=True))
        ]
        del self._kept[: len(passed) - 1]
        return passed[-1].labels

    def _lower(self) -> None:
        if self._lowest is not None:
            lowest = self._lowest
            self._kept = [each._replace(labels=min(each.labels, lowest)) for each in self._kept]
            self._lowest = None
