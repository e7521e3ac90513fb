"""One prediction against one label: what kind of prediction it is, and what the comparison counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from worker.scoring.boxes import Box, ClassBoxes, compare
from worker.scoring.tally import MOST_CLASSES, OTHER, Tally

NONE = "(none)"
"""The predicted class where every class is under ``classification.threshold``."""

Answer = Any
"""A prediction that can be compared: a class as text, a number, a tuple of boxes, or a list of these for several items or
values. None: it has nothing to compare."""


class Compared(Protocol):
    """The outcome of one comparison."""

    def into(self, tally: Tally) -> None:
        """Count it."""


class Nothing:
    """The label says nothing that can be compared with the prediction."""

    def into(self, tally: Tally) -> None:
        tally.unscored += 1


class Classes:
    """A true class against a predicted one. Equal pairs are one object."""

    __slots__ = ("predicted", "true")

    def __init__(self, true: str, predicted: str) -> None:
        self.true, self.predicted = true, predicted

    def into(self, tally: Tally) -> None:
        tally.add_class(self.true, self.predicted)


class Different(Classes):
    """Two classes that are not equal, though the matrix may have one name for both."""

    def into(self, tally: Tally) -> None:
        tally.add_class(self.true, self.predicted)
        tally.correct -= self.true == self.predicted


class Error:
    """A number against a true one."""

    __slots__ = ("error",)

    def __init__(self, error: float) -> None:
        self.error = error

    def into(self, tally: Tally) -> None:
        tally.add_error(self.error)


class Boxes:
    """Boxes against true ones."""

    __slots__ = ("compared",)

    def __init__(self, compared: dict[str, ClassBoxes]) -> None:
        self.compared = compared

    def into(self, tally: Tally) -> None:
        tally.add_boxes(self.compared)


class Several:
    """The items of one result, each compared."""

    __slots__ = ("each",)

    def __init__(self, each: list[Compared]) -> None:
        self.each = each

    def into(self, tally: Tally) -> None:
        for one in self.each:
            one.into(tally)


NOTHING = Nothing()


class Comparer:
    """Reads predictions and labels into what is compared. Names of classes are kept once each."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], Classes] = {}

    def name(self, text: str) -> str:
        """The one object for a class; beyond a bound any object."""
        kept = self._names.get(text)
        if kept is None:
            kept = text
            if len(self._names) < MOST_CLASSES:
                self._names[text] = text
        return kept

    def answer(self, prediction: Any) -> Answer:
        """What can be compared of a prediction, by the form that its postprocess gave it."""
        if not isinstance(prediction, dict):
            return None
        if "boxes" in prediction:
            return _boxes(prediction["boxes"])
        if "value" in prediction:
            return _number(prediction["value"])
        if "values" in prediction:
            return _numbers(prediction["values"])
        if "label" in prediction:
            label = prediction["label"]
            return NONE if label is None else self._class(label)
        if "anomaly" in prediction:
            return self._class(prediction["anomaly"])
        if "text" in prediction:
            return self._class(prediction["text"])
        return None

    def truth(self, value: Any) -> Any:
        """A label's value as it is kept until its result comes."""
        return self.name(value) if isinstance(value, str) else value

    def compare(self, answer: Answer, truth: Any) -> Compared:
        """What a comparison counts. A label of another kind than the prediction is no mistake of the prediction."""
        if isinstance(answer, str):
            true = self._class(truth)
            return NOTHING if true is None else self._classes(true, answer)
        if isinstance(answer, float):
            number = _number(truth)
            return NOTHING if number is None else Error(answer - number)
        if isinstance(answer, tuple):
            boxes = _boxes(truth["boxes"] if isinstance(truth, dict) and "boxes" in truth else truth)
            return NOTHING if boxes is None else Boxes(compare(answer, boxes))
        if isinstance(answer, list) and isinstance(truth, list) and len(truth) == len(answer):
            return Several([self.compare(*pair) for pair in zip(answer, truth, strict=True)])
        return NOTHING

    def _class(self, value: Any) -> str | None:
        """A class as text: 7 and "7" are one class, and so are true and "true"."""
        if isinstance(value, str):
            return self.name(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return self.name(str(value)) if isinstance(value, int | float) else None

    def _classes(self, true: str, predicted: str) -> Classes:
        pair = self._pairs.get((true, predicted))
        if pair is None:
            shown = [name if name in self._names or name == NONE else OTHER for name in (true, predicted)]
            pair = (Classes if true == predicted else Different)(*shown)
            if len(self._pairs) < MOST_CLASSES * 20:
                self._pairs[true, predicted] = pair
        return pair


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list):
        return None
    numbers = [number for number in map(_number, values) if number is not None]
    return numbers if len(numbers) == len(values) else None


def _boxes(values: Any) -> tuple[Box, ...] | None:
    """Boxes of a prediction or a label; None if they are not such."""
    if not isinstance(values, list):
        return None
    found = [_box(value) for value in values]
    boxes = tuple(box for box in found if box is not None)
    return boxes if len(boxes) == len(found) else None


def _box(value: Any) -> Box | None:
    if not isinstance(value, dict) or not isinstance(value.get("label"), str | int):
        return None
    corners = _numbers(value.get("xyxy"))
    score = _number(value.get("score", 1.0))
    if not isinstance(corners, Sequence) or len(corners) != 4 or score is None:
        return None
    return Box(str(value["label"]), score, (corners[0], corners[1], corners[2], corners[3]))
