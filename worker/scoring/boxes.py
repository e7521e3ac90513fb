"""Boxes compared with true boxes: greedy matching and average precision, as COCO defines them.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", and pycocotools' ``COCOeval`` (matching by descending
score, 101 recall points, precision made monotone). A found box matches the true box of its class that it covers best, if
their intersection over union is at least a threshold and no box with a higher score has taken it; each threshold is matched alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

THRESHOLDS = [0.5 + step / 20 for step in range(10)]
"""Least intersection over union of a match: COCO's ten, of which the first counts where only one does."""
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
    """Score in steps of a thousandth -> [found boxes, those of them that match at each threshold]."""

    @property
    def found(self) -> int:
        return sum(counts[0] for counts in self.scores.values())

    def add(self, score: int, counts: Sequence[int]) -> None:
        """More boxes of a score; counts at the end that are left out are 0."""
        kept = self.scores.setdefault(score, [0] * (1 + len(THRESHOLDS)))
        for at, count in enumerate(counts):
            kept[at] += count

    def merge(self, other: ClassBoxes) -> None:
        self.truths += other.truths
        self.matched += other.matched
        self.iou_sum += other.iou_sum
        for score, counts in other.scores.items():
            self.add(score, counts)

    def plain(self) -> dict[str, Any]:
        """As plain data, for :meth:`of`."""
        scores = [[score, *_without_zeros(counts)] for score, counts in sorted(self.scores.items())]
        return {"truths": self.truths, "matched": self.matched, "iou_sum": self.iou_sum, "scores": scores}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ClassBoxes:
        made = cls(plain["truths"], plain["matched"], plain["iou_sum"])
        for score, *counts in plain["scores"]:
            made.add(score, counts)
        return made


def compare(found: Iterable[Box], true: Sequence[Box]) -> dict[str, ClassBoxes]:
    """The found boxes of one picture against its true ones, by class."""
    counts: dict[str, ClassBoxes] = {}
    truths: dict[str, list[Box]] = {}
    for truth in true:
        counts.setdefault(truth.label, ClassBoxes()).truths += 1
        truths.setdefault(truth.label, []).append(truth)
    taken: list[set[int]] = [set() for _ in THRESHOLDS]
    """By threshold, the true boxes that have a match."""
    for box in sorted(found, key=lambda box: -box.score):
        its = counts.setdefault(box.label, ClassBoxes())
        covers = [(iou(box.xyxy, each.xyxy), id(each)) for each in truths.get(box.label, [])]
        matches = [0] * len(THRESHOLDS)
        for at, least in enumerate(THRESHOLDS):
            free = [cover for cover in covers if cover[0] >= least and cover[1] not in taken[at]]
            if not free:
                continue
            best, which = max(free)
            taken[at].add(which)
            matches[at] = 1
            if at == 0:
                its.matched += 1
                its.iou_sum += best
        its.add(round(box.score * SCORE_STEPS), [1, *matches])
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


def average_precision(boxes: ClassBoxes, threshold: int = 0) -> float | None:
    """Mean precision at 101 recall points; boxes of equal score count together. None: the class has no true box.

    Args:
        threshold: number of the intersection over union, of `THRESHOLDS`.
    """
    if not boxes.truths:
        return None
    found = hits = 0
    recalls: list[float] = []
    precisions: list[float] = []
    for _, counts in sorted(boxes.scores.items(), reverse=True):
        found += counts[0]
        hits += counts[1 + threshold]
        recalls.append(hits / boxes.truths)
        precisions.append(hits / found)
    for at in range(len(precisions) - 2, -1, -1):
        precisions[at] = max(precisions[at], precisions[at + 1])
    places = (bisect_left(recalls, recall) for recall in RECALLS)
    return sum(precisions[place] for place in places if place < len(precisions)) / len(RECALLS)


def mean_average_precision(classes: Iterable[ClassBoxes], thresholds: Iterable[int] = (0,)) -> float | None:
    """Mean over the classes that have true boxes, and over thresholds; None where no class has."""
    with_truths = [each for each in classes if each.truths]
    found = [average_precision(each, at) or 0.0 for each in with_truths for at in thresholds]
    return sum(found) / len(found) if found else None


def _without_zeros(counts: list[int]) -> list[int]:
    """Without the zeros at the end."""
    last = max(at for at, count in enumerate(counts) if count or at == 0)
    return counts[: last + 1]
