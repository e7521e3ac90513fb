"""Boxes compared with true boxes: greedy matching and average precision, as COCO defines them for one IoU threshold.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", and pycocotools' ``COCOeval`` (matching by descending
score, 101 recall points, precision made monotone). A found box matches the true box of its class that it covers best, if
their intersection over union is at least 0.5 and no box with a higher score has taken it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MATCHES = 0.5
"""Least intersection over union of a match."""
SCORE_STEPS = 1_000
"""Scores are kept in steps of a thousandth, so that what is kept of a class stays small and can be added up."""
RECALLS = [point / 100 for point in range(101)]


class Box(NamedTuple):
    """One box in pixels."""

    label: str
    score: float
    """0..1; of no meaning for a true box."""
    xyxy: tuple[float, float, float, float]


@dataclass(slots=True)
class ClassBoxes:
    """What was found of one class; two of them can be added up."""

    truths: int = 0
    """True boxes."""
    matched: int = 0
    iou_sum: float = 0.0
    """Over the matched boxes."""
    scores: dict[int, list[int]] = field(default_factory=dict)
    """Score in steps of a thousandth -> [found boxes, those of them that match]."""

    @property
    def found(self) -> int:
        return sum(found for found, _ in self.scores.values())

    def add(self, score: int, found: int, matched: int) -> None:
        kept = self.scores.setdefault(score, [0, 0])
        kept[0] += found
        kept[1] += matched

    def merge(self, other: ClassBoxes) -> None:
        self.truths += other.truths
        self.matched += other.matched
        self.iou_sum += other.iou_sum
        for score, (found, matched) in other.scores.items():
            self.add(score, found, matched)

    def plain(self) -> dict[str, Any]:
        """As plain data, for :meth:`of`."""
        scores = [[score, *counts] for score, counts in sorted(self.scores.items())]
        return {"truths": self.truths, "matched": self.matched, "iou_sum": self.iou_sum, "scores": scores}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ClassBoxes:
        scores = {score: [found, matched] for score, found, matched in plain["scores"]}
        return cls(plain["truths"], plain["matched"], plain["iou_sum"], scores)


def compare(found: Iterable[Box], true: Sequence[Box]) -> dict[str, ClassBoxes]:
    """The found boxes of one picture against its true ones, by class."""
    counts: dict[str, ClassBoxes] = {}
    free: dict[str, list[Box]] = {}
    for truth in true:
        counts.setdefault(truth.label, ClassBoxes()).truths += 1
        free.setdefault(truth.label, []).append(truth)
    for box in sorted(found, key=lambda box: -box.score):
        its = counts.setdefault(box.label, ClassBoxes())
        others = free.get(box.label, [])
        covers = [iou(box.xyxy, other.xyxy) for other in others]
        best = max(covers, default=0.0)
        matches = best >= MATCHES
        its.add(round(box.score * SCORE_STEPS), 1, int(matches))
        if matches:
            its.matched += 1
            its.iou_sum += best
            del others[covers.index(best)]
    return counts


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes ``x1, y1, x2, y2``; 0 where either has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both


def average_precision(boxes: ClassBoxes) -> float | None:
    """Mean precision at 101 recall points; boxes of equal score count together. None: the class has no true box."""
    if not boxes.truths:
        return None
    found = hits = 0
    recalls: list[float] = []
    precisions: list[float] = []
    for _, (more, matched) in sorted(boxes.scores.items(), reverse=True):
        found += more
        hits += matched
        recalls.append(hits / boxes.truths)
        precisions.append(hits / found)
    for at in range(len(precisions) - 2, -1, -1):
        precisions[at] = max(precisions[at], precisions[at + 1])
    places = (bisect_left(recalls, recall) for recall in RECALLS)
    return sum(precisions[place] for place in places if place < len(precisions)) / len(RECALLS)


def mean_average_precision(classes: Iterable[ClassBoxes]) -> float | None:
    """Mean of the classes that have true boxes; None where none has."""
    found = [value for value in map(average_precision, classes) if value is not None]
    return sum(found) / len(found) if found else None
