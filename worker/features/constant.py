"""Constants as a content: a model input that is the same for every record, such as a sampling rate."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from worker.batch import Array, Feed
from worker.errors import ConfigError
from worker.features import Opened, Place, Record
from worker.features.given import elements
from worker.features.values import shape_of
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Given
from worker.settings.section import ContentSettings


class ConstantSettings(ContentSettings):
    """The same value for every record: one for all elements, or a list with one for each."""

    value: Given

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, data: Any) -> Any:
        return data if isinstance(data, dict) else {"value": data}

    @model_serializer
    def _plain(self) -> Any:
        return self.value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        return {"description": cls.__doc__, **found["properties"]["value"]}

    @property
    def one_shape(self) -> bool:
        return True


class ConstantFeature:
    """Fills one model input with the same item for every record.

    Args:
        item: in the model's dtype.
    """

    slow = False

    def __init__(self, spec: TensorSpec, item: Array) -> None:
        self.spec = spec
        self.constant = item
        self._item = item

    def fill(self, feed: Feed, start: int, stop: int) -> None:
        """Write the item into rows start..stop of ``feed.arrays``."""
        assert feed.arrays is not None
        feed.arrays[self.spec.name][start:stop] = self._item

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        if feed.arrays is not None:
            feed.arrays[self.spec.name][row] = self._item
        else:
            items[self.spec.name] = self._item
        return True


class Constant:
    """The same value for every record, such as a sampling rate: one for all elements, or a list with one for each."""

    settings: ClassVar[type[ContentSettings]] = ConstantSettings
    placeless = True

    @staticmethod
    def make(
        options: ConstantSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> ConstantFeature:
        """See :class:`worker.features.Content`."""
        if options is None:
            raise ConfigError(f"{key}: expected a value")
        values = elements(options.value, spec, key)
        item = np.empty(len(values), spec.dtype)
        item[:] = values
        return ConstantFeature(spec, item.reshape(shape_of(values, spec.item_shape)))
