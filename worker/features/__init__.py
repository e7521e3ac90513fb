"""What a field of a record holds, and how it becomes a model input; one module per content.

An input format opens a record; a content reads a field of it. The two know nothing of each other: any content goes
with any format that can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from worker.batch import Array, Feed
from worker.errors import Reject
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.section import ContentSettings

Record = Any
"""An opened record: its bytes, or a mapping of its fields."""


@dataclass(frozen=True)
class Place:
    """Where in a record a content is: a field, several fields of one element each, or the record's whole value."""

    field: str | None = None
    names: tuple[str, ...] = ()

    def of(self, record: Record) -> Any:
        """The field's value, or the record itself.

        Raises:
            Reject: the record does not have this field.
        """
        if self.field is None:
            return record
        fields: Mapping[str, Any] = record
        if self.field not in fields:
            raise Reject(f"{self} is missing")
        return fields[self.field]

    def __str__(self) -> str:
        return "the record" if self.field is None else f'the field "{self.field}"'


class Feature(Protocol):
    """Fills one model input from one place of a record."""

    spec: TensorSpec
    slow: bool
    """Whether it works outside the interpreter lock for so long that a batch is worth splitting over threads."""

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """Write the item into the row's slot of ``feed.arrays``; where there are none, put it into ``items``.

        Args:
            opened: what other inputs' features made of the same record, so that one picture is decoded once.

        Returns:
            False where the row is in ``feed.rejected`` already (a stage later than ``decode`` refused it).

        Raises:
            Reject: the record does not hold what the input needs.
        """
        ...


Opened = dict[Any, Any]


class Content(Protocol):
    """An entry of ``worker.registry.CONTENTS``. Importing it must not import OpenCV or another heavy library."""

    settings: type[ContentSettings]

    def make(
        self, options: Any, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> Feature:
        """The feature that fills one model input.

        Args:
            options: of the class ``settings``; None where the configuration does not name the content.
            spec: the model input.
            key: the setting's name, for errors.

        Raises:
            ConfigError: the settings and the model's input cannot go together.
        """
        ...
