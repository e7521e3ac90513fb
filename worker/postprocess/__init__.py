"""Tensors -> predictions: one rendered JSON fragment per item.

A postprocess renders the ``prediction`` value itself: one C call turns a batch of arrays into text, and a dict per item
would cost ten times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from worker.batch import Array
from worker.errors import Postponed, Rejection
from worker.model.signature import Signature
from worker.registry import POSTPROCESSES
from worker.settings.choice import Chosen
from worker.settings.section import Section

Fragment = bytes | Rejection | Postponed
"""The JSON text (UTF-8) of one item's prediction; or why the item has none; or why it has none yet."""


class Postprocess(Protocol):
    """Turns the model's outputs into the ``prediction`` of each item."""

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> Sequence[Fragment]:
        """One fragment per item.

        Args:
            outputs: by name; the first dimension is ``count``.
            count: how many items.
            contexts: per item the decoder's knowledge of the input (an image's geometry), or None.
            alone: the model is not batchable; ``count`` is 1 and item 0 is the model's whole output.

        Raises:
            Exception: the outputs do not have the shape that this postprocess reads; no item has a prediction.
        """
        ...


@runtime_checkable
class OfRecords(Protocol):
    """A postprocess that makes one prediction of all windows of a record."""

    def of_records(
        self,
        outputs: dict[str, Array],
        spans: Sequence[tuple[int, int]],
        marks: Sequence[Mapping[str, Array] | None],
    ) -> Sequence[Fragment]:
        """One fragment per record.

        Args:
            outputs: by name; the first dimension counts the windows of all records.
            spans: per record its first window and the one behind its last.
            marks: per record the marks of its windows, see :attr:`worker.batch.Item.marks`; None = it has no windows.

        Raises:
            Exception: the outputs do not have the shape that this postprocess reads; no record has a prediction.
        """
        ...


@runtime_checkable
class ShowsOutputs(Protocol):
    """A postprocess whose prediction is the model's outputs, so that a request may choose among them."""

    def chosen(self, outputs: dict[str, Array], item: int, names: Sequence[str]) -> bytes | Rejection:
        """One item's prediction with these outputs, in this order."""
        ...


class PostprocessEntry(Protocol):
    """An entry of ``worker.registry.POSTPROCESSES``: a class of :class:`Postprocess` with its settings."""

    settings: type[Section]

    def __call__(self, settings: Any, signature: Signature, labels: Sequence[str] | None) -> Postprocess:
        """Make one for a model.

        Raises:
            ConfigError: the model's outputs cannot be read so (class count, strings), or custom code cannot be
                imported.
        """
        ...


def postprocess(chosen: Chosen, signature: Signature, labels: Sequence[str] | None) -> Postprocess:
    """The postprocess that a pipeline's settings name.

    Raises:
        ConfigError: the model's outputs cannot be read so (class count, strings), or custom code cannot be imported.
    """
    return POSTPROCESSES.entry(chosen.name)(chosen.options, signature, labels)
