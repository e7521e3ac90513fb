"""The items of a cascade in one batch, in columns: the records, or the boxes that a step found in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.batch import Columns


@dataclass(slots=True)
class Items:
    """All items of one kind in a batch."""

    rows: Sequence[int]
    """Per item the row of its record in the batch."""
    parents: Sequence[int] = ()
    """Per box the item that it was found in."""
    boxes: Sequence[dict[str, Any]] = ()
    """Per box the member of the prediction that it is."""
    numbers: Sequence[int] = ()
    """Per box its index in the prediction."""
    said: dict[str, list[bytes | None]] = field(default_factory=dict)
    """Per step and item its prediction as JSON text; None where it did not run."""
    read: dict[str, list[Any]] = field(default_factory=dict)
    """The same as plain data, of the steps that somebody has looked into."""


def together(said: Mapping[str, Sequence[bytes | None]], rows: Sequence[int]) -> list[bytes]:
    """One object for each of these rows, with the predictions that it has by step."""
    (first, texts), *later = said.items()
    begin = b'{"%b":' % first.encode()
    found = [begin + (texts[row] or b"null") for row in rows]
    for name, texts in later:
        before = b',"%b":' % name.encode()
        for index, row in enumerate(rows):
            if (text := texts[row]) is not None:
                found[index] += before + text
    return [text + b"}" for text in found]


def picked(columns: Columns, rows: Sequence[int]) -> Columns:
    """These rows as columns of their own; a row may be there several times."""
    return Columns(
        [columns.values[row] for row in rows],
        [None] * len(rows),
        [columns.headers[row] for row in rows],
        [columns.timestamps_ms[row] for row in rows],
        [columns.offsets[row] for row in rows],
        [columns.partitions[row] for row in rows],
    )


def odd_boxes(boxes: Any, most: int) -> str:
    """What is wrong with the boxes of a prediction; empty if nothing is."""
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        return "its boxes are no list of objects"
    if len(boxes) > most:
        return f"it found {len(boxes)} boxes, later steps take at most {most}"
    return ""
