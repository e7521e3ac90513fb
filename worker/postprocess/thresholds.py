"""The least score of each class: one number for all, or a number for some classes and one for the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from worker.batch import Array
from worker.errors import ConfigError

OTHERS = "default"
"""The key of the number for the classes that are not named."""


def _numbers(value: Any, lowest: float, highest: float, what: str) -> Any:
    """The value with texts as keys, where every number is in range; class numbers in YAML are no texts."""
    numbers = value.values() if isinstance(value, dict) else [value]
    try:
        fitting = len(numbers) > 0 and all(lowest <= float(number) <= highest for number in numbers)
    except (TypeError, ValueError):
        fitting = False
    if not fitting:
        raise ValueError(f"expected {what}, or such numbers by label, as in {{default: 0.5, person: 0.75}}")
    return {str(label): number for label, number in value.items()} if isinstance(value, dict) else value


def _fractions(value: Any) -> Any:
    return _numbers(value, 0, 1, "a number from 0 to 1")


def _floats(value: Any) -> Any:
    return _numbers(value, -sys.float_info.max, sys.float_info.max, "a number")


FractionByLabel = Annotated[float | dict[str, float], BeforeValidator(_fractions)]
"""A number within 0 and 1, or such numbers by label, with one for the others under ``default``."""
NumberByLabel = Annotated[float | dict[str, float], BeforeValidator(_floats)]
"""A number, or numbers by label, with one for the others under ``default``."""


class Thresholds:
    """What a class must score at least.

    Args:
        given: one number for every class; or numbers by label, and by ``default`` for the other classes. Without labels,
            a class is named by its number.
        default: for the other classes where ``given`` does not say.
        labels: of the classes in their order; None if they have none.
        classes: how many there are; None if that is not known.
        key: the setting's name, for errors.

    Raises:
        ConfigError: a label that no class has.
    """

    def __init__(
        self,
        given: float | Mapping[str, float],
        default: float,
        labels: Sequence[str] | None,
        classes: int | None,
        key: str,
    ) -> None:
        self._table: Array | None = None
        if not isinstance(given, Mapping):
            self.least, self._others = given, given
            return
        self._others = given.get(OTHERS, default)
        by_class: dict[int, float] = {}
        for label, least in given.items():
            if label != OTHERS:
                by_class |= dict.fromkeys(classes_named(label, labels, classes, key), least)
        self._table = np.full(max(by_class, default=-1) + 1, self._others)
        self._table[list(by_class)] = list(by_class.values())
        self.least = min([self._others, *by_class.values()])

    @property
    def same_for_all(self) -> bool:
        return self._table is None

    def of(self, classes: Array) -> Array | float:
        """The least score of each of these class numbers, float64."""
        if self._table is None:
            return self._others
        known = (classes >= 0) & (classes < len(self._table))
        found: Array = np.full(classes.shape, self._others)
        found[known] = self._table[classes[known]]
        return found


def classes_named(name: str, labels: Sequence[str] | None, classes: int | None, key: str) -> list[int]:
    """The numbers of the classes with this label; without labels, the number that the name is.

    Raises:
        ConfigError: there is no such class.
    """
    if labels is not None:
        found = [number for number, label in enumerate(labels) if label == name]
    else:
        found = [int(name)] if name.isdecimal() and (classes is None or int(name) < classes) else []
    if not found:
        some = ", ".join([*(labels or ())][:8]) + (", ..." if labels and len(labels) > 8 else "")
        limit = f" below {classes}" if classes is not None else ""
        expected = (
            f"one of {some}" if labels is not None else f"a class number{limit}, because no labels are known"
        )
        raise ConfigError(f"{key}: got '{name}', expected {expected}")
    return found
