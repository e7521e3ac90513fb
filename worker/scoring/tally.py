"""What was counted of results and their labels. Tallies add up: over partitions, windows and processes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.scoring import boxes
from worker.scoring.boxes import ClassBoxes

OTHER = "(other)"
"""Stands for every class beyond `MOST_CLASSES`."""
MOST_CLASSES = 1_000
MOST_CELLS = 20_000
"""Most cells of one confusion matrix; what would be another one counts under `OTHER`."""
Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def _edges() -> list[int]:
    """1 ms, then 10 % apart, up to a hundred days."""
    edges = [1]
    while edges[-1] < 100 * 86_400_000:
        edges.append(max(edges[-1] + 1, int(edges[-1] * 1.1)))
    return edges


DELAY_EDGES_MS = _edges()
"""Upper ends of the buckets that label delays are counted in: a percentile is at most 10 % too large."""


@dataclass(slots=True)
class Tally:
    """Counts of results and of what their labels said."""

    results: int = 0
    """Results that have an outcome."""
    labelled: int = 0
    """Of these, those whose label came in time."""
    unlabelled: int = 0
    """Those whose label did not come within ``labels.wait_s``."""
    given_up: int = 0
    """Those that could not wait, because more than ``labels.max_pending`` waited."""
    unscored: int = 0
    """Labelled ones whose label says nothing that can be compared with the prediction."""
    items: int = 0
    """Items that were compared by class: one for each result with one prediction."""
    correct: int = 0
    cells: dict[tuple[str, str], int] = field(default_factory=dict)
    """(true class, predicted class) -> items."""
    numbers: int = 0
    """Numbers that were compared."""
    error_sum: float = 0.0
    absolute_sum: float = 0.0
    square_sum: float = 0.0
    boxes: dict[str, ClassBoxes] = field(default_factory=dict)
    delays: dict[int, int] = field(default_factory=dict)
    """Index of the delay's bucket -> labelled results; a label that came first has no delay."""

    def add_class(self, true: str, predicted: str) -> None:
        """Count one item."""
        self.items += 1
        self.correct += true == predicted
        cell = (true, predicted)
        if cell not in self.cells and len(self.cells) >= MOST_CELLS:
            cell = (OTHER, OTHER)
        self.cells[cell] = self.cells.get(cell, 0) + 1

    def add_error(self, error: float) -> None:
        """Count one number: predicted minus true."""
        self.numbers += 1
        self.error_sum += error
        self.absolute_sum += abs(error)
        self.square_sum += error * error

    def add_boxes(self, compared: Mapping[str, ClassBoxes]) -> None:
        """Count one picture."""
        for label, its in compared.items():
            self.boxes.setdefault(label, ClassBoxes()).merge(its)

    def add_delay(self, delay_ms: int) -> None:
        """Count how long after its result a label came; negative: before it."""
        bucket = bisect_left(DELAY_EDGES_MS, delay_ms)
        self.delays[bucket] = self.delays.get(bucket, 0) + 1

    def merge(self, other: Tally) -> None:
        """Add everything that another one counted."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cell, count in other.cells.items():
            self.cells[cell] = self.cells.get(cell, 0) + count
        self.add_boxes(other.boxes)
        for bucket, count in other.delays.items():
            self.delays[bucket] = self.delays.get(bucket, 0) + count

    def plain(self) -> dict[str, Any]:
        """Everything as plain data, for :meth:`of`; what is empty is left out."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _COUNTS}
        if self.items:
            found["confusion"] = [[*cell, count] for cell, count in sorted(self.cells.items())]
        if self.numbers:
            found["errors"] = {name: getattr(self, name) for name in _ERRORS}
        if self.boxes:
            found["boxes"] = {label: its.plain() for label, its in sorted(self.boxes.items())}
        if self.delays:
            found["delays_ms"] = [[_edge(bucket), count] for bucket, count in sorted(self.delays.items())]
        return found

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Tally:
        """The tally that :meth:`plain` wrote.

        Raises:
            KeyError, TypeError, ValueError: it did not write this.
        """
        tally = cls()
        for name in _COUNTS:
            setattr(tally, name, int(plain[name]))
        tally.cells = {(true, predicted): int(n) for true, predicted, n in plain.get("confusion", [])}
        for name, value in plain.get("errors", {}).items():
            setattr(tally, name, type(getattr(tally, name))(value))
        tally.boxes = {label: ClassBoxes.of(its) for label, its in plain.get("boxes", {}).items()}
        tally.delays = {bisect_left(DELAY_EDGES_MS, ms): int(n) for ms, n in plain.get("delays_ms", [])}
        return tally


_COUNTS = ("results", "labelled", "unlabelled", "given_up", "unscored", "items", "correct")
_ERRORS = ("numbers", "error_sum", "absolute_sum", "square_sum")
_NUMBERS = (*_COUNTS, *_ERRORS)


def figures(tally: Tally) -> dict[str, Any]:
    """What a tally says: shares as 0..1, each figure only where something of its kind was compared."""
    found: dict[str, Any] = {"coverage": _share(tally.labelled, tally.results)}
    if tally.items:
        classes = by_class(tally.cells)
        found["accuracy"] = tally.correct / tally.items
        found["accuracy_95"] = wilson(tally.correct, tally.items)
        scores = [each["f1"] for each in classes.values() if each["support"]]
        found["macro_f1"] = sum(scores) / len(scores) if scores else None
        found["classes"] = classes
    if tally.numbers:
        mean = tally.absolute_sum / tally.numbers
        spread = math.sqrt(max(0.0, tally.square_sum / tally.numbers - mean * mean) / tally.numbers)
        found["mae"] = mean
        found["mae_95"] = [max(0.0, mean - Z95 * spread), mean + Z95 * spread]
        found["rmse"] = math.sqrt(tally.square_sum / tally.numbers)
        found["bias"] = tally.error_sum / tally.numbers
    if tally.boxes:
        matched = sum(its.matched for its in tally.boxes.values())
        found["map_50"] = boxes.mean_average_precision(tally.boxes.values())
        every = range(len(boxes.THRESHOLDS))
        found["map_50_95"] = boxes.mean_average_precision(tally.boxes.values(), every)
        found["mean_iou"] = sum(its.iou_sum for its in tally.boxes.values()) / matched if matched else None
        found["box_classes"] = {label: _box_class(its) for label, its in sorted(tally.boxes.items())}
    if tally.delays:
        p50, p99 = (_delay_s(tally.delays, share) for share in (0.5, 0.99))
        found["delay_s"] = {"p50": p50, "p99": p99}
    return found


def by_class(cells: Mapping[tuple[str, str], int]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support (items that are of the class) by class; a share of nothing is 0."""
    truly: dict[str, int] = {}
    said: dict[str, int] = {}
    for (true, predicted), count in cells.items():
        truly[true] = truly.get(true, 0) + count
        said[predicted] = said.get(predicted, 0) + count
    names = sorted((truly.keys() | said.keys()) - {OTHER})
    return {
        name: _class_figures(cells.get((name, name), 0), said.get(name, 0), truly.get(name, 0))
        for name in names
    }


def wilson(hits: int, count: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927, without correction for continuity): [lower, upper]; [0, 1] of nothing."""
    if not count:
        return [0.0, 1.0]
    share, z2 = hits / count, Z95 * Z95
    middle = share + z2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    scale = 1 + z2 / count
    lower = 0.0 if hits == 0 else (middle - half) / scale
    upper = 1.0 if hits == count else (middle + half) / scale
    return [lower, upper]


def _class_figures(hits: int, said: int, truly: int) -> dict[str, Any]:
    return {
        "precision": hits / said if said else 0.0,
        "recall": hits / truly if truly else 0.0,
        "f1": 2 * hits / (said + truly) if said + truly else 0.0,
        "support": truly,
    }


def _box_class(its: ClassBoxes) -> dict[str, Any]:
    shares = _class_figures(its.matched, its.found, its.truths)
    return {**shares, "ap_50": boxes.average_precision(its)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _edge(bucket: int) -> int:
    return DELAY_EDGES_MS[min(bucket, len(DELAY_EDGES_MS) - 1)]


def _delay_s(delays: Mapping[int, int], share: float) -> float:
    """The nearest-rank percentile of the delays in seconds, as the upper end of its bucket."""
    rank = max(1, math.ceil(share * sum(delays.values())))
    for bucket, count in sorted(delays.items()):
        rank -= count
        if rank <= 0:
            return _edge(bucket) / 1000
    raise AssertionError("there are delays")
