"""Predictions of windows: each one says which part of its record it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.batch import Array, Batch, Run
from worker.encode.rows import item_spans
from worker.postprocess import rendering


def mark_windows(batch: Batch, run: Run, found: list[Any]) -> None:
    """Put the marks of each window, such as ``start_s``, in front of the members of its prediction.

    A prediction that is no JSON object stands under ``prediction`` then.

    Args:
        found: one fragment per item of the run; changed in place. A rejection stays as it is.
    """
    assert batch.feed is not None
    for row, (start, stop) in zip(run.rows, item_spans(run), strict=True):
        item = batch.feed.items[row]
        if item is None or item.marks is None:
            continue
        for place, members in zip(range(start, stop), _members(item.marks), strict=True):
            if isinstance(found[place], bytes):
                found[place] = _merged(members, found[place])


def _members(marks: Mapping[str, Array]) -> list[bytes]:
    """Per window the text of its marks as JSON members, without braces."""
    columns = [
        rendering.items(values, b'"%b":' % name.encode())  # names are the decoder's own: plain words
        for name, values in marks.items()
    ]
    return [b",".join(texts) for texts in zip(*columns, strict=True)]


def _merged(members: bytes, prediction: bytes) -> bytes:
    if not prediction.startswith(b"{"):
        return b'{%b,"prediction":%b}' % (members, prediction)
    rest = prediction[1:].lstrip()
    return b"{" + members + (rest if rest == b"}" else b"," + rest)


def marks_of(batch: Batch, run: Run) -> list[Mapping[str, Array] | None]:
    """Per row of a run the marks of its windows; None where it has none."""
    assert batch.feed is not None
    if not batch.feed.items:
        return [None] * len(run.rows)
    items = [batch.feed.items[row] for row in run.rows]
    return [None if item is None else item.marks for item in items]
