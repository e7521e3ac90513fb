"""The text of a record, unchanged, for a model whose input is strings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worker.batch import Array, Feed
from worker.errors import ConfigError, Reject
from worker.features import Opened, Place, Record
from worker.features.values import TYPE_NAMES
from worker.model.signature import TensorSpec


def text_at(place: Place, record: Record) -> str:
    """The text at a place of a record.

    Raises:
        Reject: ``invalid``: the field is missing, or holds something else.
    """
    found: Any = place.of(record)
    if isinstance(found, str):
        return found
    raise Reject(f"{place}: expected text, got {TYPE_NAMES.get(type(found), 'something else')}")


class StringFeature:
    """Fills one model input of strings with the text, as its only element.

    Args:
        spec: the model input.
        place: where in the record the text is.
        key: the setting's name, for errors.

    Raises:
        ConfigError: an item of the input has more than one element.
    """

    slow = False

    def __init__(self, spec: TensorSpec, place: Place, key: str) -> None:
        if math.prod(d or 1 for d in spec.item_shape) != 1:
            shape = str(list(spec.shape)).replace("None", "any")
            raise ConfigError(
                f"{key}: the model's input {spec.name} has shape {shape}; expected one string for each item"
            )
        self.spec = spec
        self.place = place
        self._shape = tuple(1 for _ in spec.item_shape)

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        text = text_at(self.place, record)
        if feed.arrays is not None:
            feed.arrays[self.spec.name][row] = text
        else:
            items[self.spec.name] = np.full(self._shape, text, object)
        return True
