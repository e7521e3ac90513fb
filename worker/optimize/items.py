"""What a model is measured with: prepared inputs, with the true classes where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.batch import Array, Batch

Tensors = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Item:
    """One record as the model gets it."""

    name: str
    """Which one it is: a file's path inside the data, with ``:n`` behind for its line or row."""
    feeds: Tensors
    """Every input by name, full rank: the batch dimension is 1, or what the model fixes it to."""
    label: int | None = None
    """The true class; None if nobody said."""
    batch: Batch | None = None
    """The decoded record, for the pipeline's own postprocess; None if the data are not records."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.feeds.values())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.feeds.values())


@dataclass(frozen=True, slots=True)
class Split:
    """The data in two parts, drawn by a seed."""

    calibration: list[Item]
    """What methods may look at: ranges, sensitivities, least squares."""
    held_out: list[Item]
    """What every candidate is measured on. No method ever sees it."""


def split(items: Sequence[Item], calibrate: int, seed: int) -> Split:
    """At most ``calibrate`` items, and at most half of all, calibrate; the others are held out.

    Both parts keep the order of the data. Where classes are known, each has its share of the calibration part.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    if all(item.label is not None for item in items):
        order = order[_by_turns([items[i].label or 0 for i in order])]
    count = min(calibrate, len(items) // 2)
    chosen, others = np.sort(order[:count]), np.sort(order[count:])
    return Split([items[i] for i in chosen], [items[i] for i in others])


def _by_turns(labels: Sequence[int]) -> NDArray[np.int64]:
    """Places in an order in which the classes alternate: the first of each class, then the second of each."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels:
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return np.argsort(turns, kind="stable")
