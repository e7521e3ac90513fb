"""Whether two versions of a model say the same of a record, as far as a reader of the results would care.

What counts follows from the members of the prediction, so that custom code is compared like everything else:

============  ====================================================================================================
a label       the same best label; scores may differ
boxes         every box has a partner of the same label that it covers with an intersection over union of 0.5; the same
              for regions, by the rectangles around them
an embedding  a cosine of 0.99
entities      the same labels at the same places
a text        the same text
shares        of classes in a picture: none differs by more than 0.05
others        the same texts; numbers that differ by the tolerance at most, absolutely or relative to the larger one
============  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

IOU = 0.5
COSINE = 0.99
SHARE = 0.05
TOLERANCE = 0.01
"""Of numbers that are nothing else."""

Box = tuple[float, float, float, float]


def agree(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two predictions, parsed from JSON, agree.

    Args:
        one: of the stable version; the ``prediction`` of a result, or a list of several. other: of the candidate.
        tolerance: largest difference of two numbers, absolute or relative.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for member, same in _MEMBERS.items():
            if member in one and member in other:
                try:
                    return same(one, other)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                    break  # custom code means something else by that name
    return _alike(one, other, tolerance)


def _same_label(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["label"] == other["label"])


def _same_text(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["text"] == other["text"])


def _same_boxes(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return _matched(
        [(box.get("label"), tuple(box["xyxy"])) for box in one["boxes"]],
        [(box.get("label"), tuple(box["xyxy"])) for box in other["boxes"]],
    )


def _same_regions(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return _matched(
        [(None, _around(region["points"])) for region in one["regions"]],
        [(None, _around(region["points"])) for region in other["regions"]],
    )


def _same_direction(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["embedding"], other["embedding"]
    if len(a) != len(b):
        return False
    product = math.sumprod(a, b) if hasattr(math, "sumprod") else math.fsum(map(float.__mul__, a, b))
    length = math.hypot(*a) * math.hypot(*b)
    if not length:
        return not any(a) and not any(b)
    return bool(product / length >= COSINE)


def _same_entities(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = (
        sorted(
            (str(each.get("label")), each.get("start", 0), each.get("end", 0)) for each in side["entities"]
        )
        for side in (one, other)
    )
    return bool(a == b)


def _same_shares(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["shares"], other["shares"]
    if not isinstance(a, dict) or not isinstance(b, dict):
        return _alike(a, b, SHARE)
    return all(math.fabs(a.get(name, 0.0) - b.get(name, 0.0)) <= SHARE for name in {*a, *b})


_MEMBERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "boxes": _same_boxes,
    "regions": _same_regions,
    "entities": _same_entities,
    "embedding": _same_direction,
    "shares": _same_shares,
    "label": _same_label,
    "text": _same_text,
}
"""What decides, by the first of these members that both predictions have."""


def _matched(ours: Sequence[tuple[Any, Any]], theirs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether every (label, box) has a partner of its own; the best pairs come first."""
    if len(ours) != len(theirs):
        return False
    pairs = sorted(
        (
            (overlap, i, k)
            for i, (label, box) in enumerate(ours)
            for k, (name, other) in enumerate(theirs)
            if label == name and (overlap := _iou(box, other)) >= IOU
        ),
        reverse=True,
    )
    mine: set[int] = set()
    yours: set[int] = set()
    for _, i, k in pairs:
        if i not in mine and k not in yours:
            mine.add(i)
            yours.add(k)
    return len(mine) == len(ours)


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if a == b:
        return 1.0
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _around(points: Sequence[Sequence[float]]) -> Box:
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return min(xs), min(ys), max(xs), max(ys)


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(agree(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
