"""What values are sorted into to be counted, and the population stability index of two counts.

The index (PSI) of a feature is ``sum((q - p) * ln(q / p))`` over its bins, where ``p`` and ``q`` are the shares of the profile
and of now (Siddiqi, Credit Risk Scorecards, 2006). It grows by chance alone: of two samples of one population, with m and n
values in B bins, it is about ``(B - 1) * (1 / m + 1 / n)`` on average, and divided by ``1 / m + 1 / n`` it has a chi-squared
distribution with B - 1 degrees of freedom (Yurdakul and Naranjo, 2020). :func:`compared` takes the average off, and says
whether what is left is more than chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.batch import Array

QUANTILES = 10
"""Bins of equal share that the profile's numbers are divided into."""
FEW_VALUES = 12
"""A feature that has at most so many different numbers gets a bin for each of them."""
CATEGORIES_MAX = 50
"""Texts that have a bin of their own, the most frequent ones; the others share one."""
HALF = 0.5
"""Added to each count, so that an empty bin has no share of 0 (Jeffreys)."""
CHANCE_Z = 6.0
"""What lies above this many standard deviations is not put down to chance: 1 of 10^9."""


@dataclass(frozen=True, slots=True, eq=False)
class NumberBins:
    """Bins of numbers: below all edges, between each two of them, above all."""

    edges: Array
    """float64, ascending; a bin holds its lower edge."""

    @property
    def size(self) -> int:
        """How many bins there are."""
        return len(self.edges) + 1

    def places(self, values: Array) -> Array:
        """The bin of each value that is not NaN; infinities are below or above."""
        values = values[~np.isnan(values)]
        return np.searchsorted(self.edges, values, side="right")

    @classmethod
    def of(cls, values: Array) -> NumberBins | None:
        """Bins for values like these; None where none of them is finite."""
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        different = np.unique(values)
        if len(different) <= FEW_VALUES:
            return cls(_between(different))
        quantiles = np.quantile(values, np.arange(QUANTILES) / QUANTILES, method="inverted_cdf")
        return cls(np.unique(np.append(quantiles, np.nextafter(different[-1], np.inf))))


def _between(different: Array) -> Array:
    """Edges halfway between neighbours, and as far beyond the first and the last."""
    if len(different) == 1:
        reach = max(abs(different[0]) * 1e-3, 1e-9)
        return np.array([different[0] - reach, different[0] + reach])
    halves = np.diff(different) / 2
    return np.concatenate([[different[0] - halves[0]], different[:-1] + halves, [different[-1] + halves[-1]]])


@dataclass(frozen=True, slots=True, eq=False)
class TextBins:
    """A bin for each of some texts, and one for all others."""

    values: tuple[str, ...]
    _places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {value: place for place, value in enumerate(self.values)})

    @property
    def size(self) -> int:
        """How many bins there are."""
        return len(self.values) + 1

    def places(self, values: Iterable[str | None]) -> Array:
        """The bin of each value that is there."""
        other, get = len(self.values), self._places.get
        return np.array([get(value, other) for value in values if value is not None], np.intp)

    @classmethod
    def of(cls, values: Sequence[str | None]) -> TextBins | None:
        """Bins for values like these; None where most of them are all different, or none is there."""
        counts = Counter(value for value in values if value is not None)
        if not counts or len(counts) > max(CATEGORIES_MAX, counts.total() // 2):
            return None
        return cls(tuple(value for value, _ in counts.most_common(CATEGORIES_MAX)))


Bins = NumberBins | TextBins


@dataclass(frozen=True, slots=True)
class Compared:
    """Of each feature."""

    psi: Array
    """As the formula gives it."""
    corrected: Array
    """Without what chance adds on average; at least 0."""
    real: Array
    """Whether it is more than chance explains."""


def compared(profile: Array, now: Array, starts: Array) -> Compared:
    """The index of several features at once.

    Args:
        profile, now: int64, how many values each bin has; the bins of one feature behind those of the one before.
        starts: where the bins of each feature begin. Each feature has at least one value in both.
    """
    sizes = np.diff(np.append(starts, len(profile)))

    def shares(counts: Array) -> Array:
        smooth = counts + HALF
        whole: Array = np.add.reduceat(smooth, starts)
        found: Array = smooth / np.repeat(whole, sizes)
        return found

    p, q = shares(profile), shares(now)
    psi: Array = np.add.reduceat((q - p) * np.log(q / p), starts)
    freedom = np.add.reduceat(((profile + now) > 0).astype(np.int64), starts) - 1
    scale = 1 / np.add.reduceat(profile, starts) + 1 / np.add.reduceat(now, starts)
    corrected = np.maximum(psi - freedom * scale, 0.0)
    return Compared(psi, corrected, psi > scale * _chance(freedom))


def _chance(freedom: Array) -> Array:
    """What a chi-squared value exceeds once in 10^9 (Wilson and Hilferty, 1931); 0 degrees of freedom: 0."""
    k = np.maximum(freedom, 1)
    ninth = 2 / (9 * k)
    value: Array = k * (1 - ninth + CHANCE_Z * np.sqrt(ninth)) ** 3
    found: Array = np.where(freedom > 0, value, 0.0)
    return found
