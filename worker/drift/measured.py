"""What was measured of some records: columns of numbers, and columns of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.batch import Array

Value = float | str | None
"""One figure of one record; None or NaN: it has none."""


@dataclass(slots=True)
class Measured:
    """Figures of records, by the names of features."""

    records: int
    numbers: list[tuple[tuple[str, ...], Array]] = field(default_factory=list)
    """(names, float64 (records, names)); NaN where a record has no such figure."""
    texts: list[tuple[str, Sequence[str | None]]] = field(default_factory=list)
    """(name, one text per record)."""

    def put(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Add figures that are there per record."""
        for name in dict.fromkeys(name for row in rows for name in row):
            column = [row.get(name) for row in rows]
            if any(isinstance(value, str) for value in column):
                texts = [value if isinstance(value, str) else None for value in column]
                self.texts.append((name, texts))
            else:
                numbers = [np.nan if value is None else value for value in column]
                self.numbers.append(((name,), np.array(numbers, np.float64)[:, np.newaxis]))


@dataclass(slots=True)
class Gathered:
    """Figures of many records, put together."""

    records: int = 0
    numbers: dict[tuple[str, ...], list[Array]] = field(default_factory=dict)
    texts: dict[str, list[str | None]] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        self.records += measured.records
        for names, values in measured.numbers:
            self.numbers.setdefault(names, []).append(values)
        for name, texts in measured.texts:
            self.texts.setdefault(name, []).extend(texts)

    def columns(self) -> Iterable[tuple[str, Array]]:
        """Each feature of numbers with all its values."""
        for names, parts in self.numbers.items():
            values = np.concatenate(parts)
            yield from ((name, values[:, place]) for place, name in enumerate(names))
