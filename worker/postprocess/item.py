"""The view of a record that a custom postprocess gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worker.batch import Array, Headers
from worker.features.text_context import TextContext

if TYPE_CHECKING:
    from worker.batch import Batch, Run


class InputItem:
    """One item as its decoder left it. Values are looked up on access; use it during the call only.

    Args:
        row: the row of the batch.
        index: the item's index in the row's record; None if the model is not batchable and the record is one run.
    """

    __slots__ = ("_batch", "_index", "_row")

    def __init__(self, batch: Batch, row: int, index: int | None) -> None:
        self._batch = batch
        self._row = row
        self._index = index

    @property
    def inputs(self) -> dict[str, Array]:
        """The model's inputs by name, without the batch dimension, in the model's dtypes."""
        feed, row = self._batch.feed, self._row
        assert feed is not None
        if feed.arrays is not None:
            return {name: array[row] for name, array in feed.arrays.items()}
        item = feed.items[row]
        assert item is not None
        if self._index is None:
            return {name: one_item(array, alone=True) for name, array in item.arrays.items()}
        return {name: array[self._index] if array.ndim else array for name, array in item.arrays.items()}

    @property
    def window(self) -> Mapping[str, float] | None:
        """Where in the record this item is: ``start_s`` and ``end_s`` of sound; None if the item is the whole record."""
        assert self._batch.feed is not None
        item = self._batch.feed.items[self._row] if self._batch.feed.items else None
        if item is None or item.marks is None:
            return None
        return {name: float(values[self._index or 0]) for name, values in item.marks.items()}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the record's first picture, upright; None if the record has no picture."""
        assert self._batch.feed is not None
        geometry = self._batch.feed.contexts[self._row]
        return (geometry.height, geometry.width) if hasattr(geometry, "height") else None

    @property
    def geometry(self) -> Any:
        """How the record's first picture was fitted to the model's input; None if the record has no picture."""
        assert self._batch.feed is not None
        return self._batch.feed.contexts[self._row]

    @property
    def headers(self) -> Headers:
        """The record's headers: pairs of name and bytes, or None for a header without a value."""
        return self._batch.headers[self._row] or []

    @property
    def fields(self) -> Mapping[str, Any] | None:
        """The record's named fields, as in a JSON object; None if its format has none. Parsed at each access."""
        return self._batch.servable.fields(self._batch.payloads[self._row] or b"", self.headers)

    @property
    def text(self) -> TextContext | None:
        """The record's text with its tokens; None if its inputs were not filled from text."""
        assert self._batch.feed is not None
        context = self._batch.feed.contexts[self._row]
        return context if isinstance(context, TextContext) else None

    @property
    def mask(self) -> Array | None:
        """The model's input ``attention_mask``; None if it has no such input."""
        return self.inputs.get("attention_mask")


def input_items(batch: Batch, run: Run) -> list[InputItem]:
    """One for each item of a run, in the order of its outputs."""
    if run.whole:
        return [InputItem(batch, row, None) for row in run.rows]
    if run.counts is None:
        return [InputItem(batch, row, 0) for row in run.rows]
    return [
        InputItem(batch, row, index)
        for row, count in zip(run.rows, run.counts, strict=True)
        for index in range(count)
    ]


def one_item(values: Array, alone: bool) -> Array:
    """One item's array: without its first dimension if the model runs records alone and that dimension is 1."""
    return values[0] if alone and values.ndim and len(values) == 1 else values
