"""Numbers as a content: JSON values -> a model input, scaled as x = (feature - mean) / std in the model's own dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from worker.batch import Array, Feed
from worker.errors import ConfigError, Reject
from worker.features import Opened, Place, Record
from worker.features.values import missing_for, shape_of, stack, typed
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Divisors, Numbers
from worker.settings.section import ContentSettings


class NumericSettings(ContentSettings):
    """x = (feature - mean) / std in the model's own dtype."""

    mean: Numbers = Field(default=[0.0])
    """Subtracted; one number or one per feature."""
    std: Divisors = Field(default=[1.0])
    """Divided by; one number or one per feature."""


class Scaling:
    """Scales the items of one model input in place.

    Args:
        settings: mean and std, one number or one per feature (the item's last dimension).
        spec: the model input; it must be floating.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the model's input is not floating, or has another number of features.
    """

    def __init__(self, settings: NumericSettings, spec: TensorSpec, key: str) -> None:
        if spec.dtype.kind != "f":
            raise ConfigError(
                f"{key}: the model's input {spec.name} is {spec.datatype}; expected a floating one"
            )
        features = spec.item_shape[-1] if spec.item_shape else 1
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            if features is not None and len(values) not in (1, features):
                raise ConfigError(
                    f"{key}.{name}: got {len(values)} numbers, expected 1 or {features}, "
                    f"the features of the model's input {spec.name}"
                )
        self.mean = np.asarray(settings.mean, spec.dtype)
        self.std = np.asarray(settings.std, spec.dtype)
        if not spec.item_shape:
            self.mean, self.std = self.mean.reshape(()), self.std.reshape(())

    def apply(self, items: Array) -> None:
        """Scale ``items`` ((rows, *item), the model's dtype) in place."""
        np.subtract(items, self.mean, out=items)
        np.divide(items, self.std, out=items)


class NumbersFeature:
    """Fills one model input with numbers (or booleans, or strings) of the record.

    Args:
        spec: the model input.
        place: the field with a list, or the fields of one element each.
        scaling: applied to the numbers, if any.
    """

    slow = False

    def __init__(self, spec: TensorSpec, place: Place, scaling: Scaling | None) -> None:
        self.spec = spec
        self.field = field = place.field
        self.names = names = place.names
        self.scaling = scaling
        self.missing = missing = missing_for(spec.dtype, place.missing)
        """The substitute for null, NaN and an absent named field; None = these are refused."""
        self.pick: Callable[[dict[str, Any]], Any] = (
            itemgetter(*names) if field is None else itemgetter(field)
        )
        one = field is not None and field != "features" and math.prod(d or 0 for d in spec.item_shape) == 1
        if field is None and missing is not None:
            self.pick = lambda record: [*map(record.get, names)]
        elif field is None and len(names) == 1:
            self.pick = lambda record: (record[names[0]],)
        elif one and missing is not None:
            self.pick = lambda record: _listed(record.get(str(field)))
        elif one and field is not None:
            # A bare number under the input's name means the same as a list of one.
            self.pick = lambda record: _listed(record[field])

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        item = self.item(record)
        if feed.arrays is not None:
            feed.arrays[self.spec.name][row] = item
        else:
            items[self.spec.name] = item
        return True

    def items(self, picked: list[Any]) -> Array:
        """(records, *item) from the values that :attr:`pick` returned; the item's shape is known.

        Raises:
            Reject: a value does not fit.
        """
        shape = shape_of(None, self.spec.item_shape)
        return self.scaled(stack(picked, self.spec.dtype, shape, self.missing))

    def item(self, record: dict[str, Any]) -> Array:
        """One record's item.

        Raises:
            Reject: ``invalid``; the message names the field and says why it does not fit.
        """
        try:
            picked = self.pick(record)
        except KeyError as error:
            raise Reject(f'the field "{error.args[0]}" is missing') from None
        if self.field is None:
            return self._named_item(picked)
        try:
            shape = shape_of(picked, self.spec.item_shape)
            items: Array = self.scaled(stack([picked], self.spec.dtype, shape, self.missing))
            return items.reshape(shape)
        except Reject as error:
            raise Reject(f'the field "{self.field}": {error}') from None

    def _named_item(self, picked: Sequence[Any]) -> Array:
        elements = []
        for name, element in zip(self.names, picked, strict=True):
            try:
                elements.append(typed([element], self.spec.dtype, self.missing))
            except Reject as error:
                raise Reject(f'the field "{name}": {str(error).replace("element 0", "it")}') from None
        shape = [len(elements) if d is None else d for d in self.spec.item_shape]
        items: Array = np.concatenate(elements).reshape(1, *shape)
        return self.scaled(items).reshape(shape)

    def scaled(self, items: Array) -> Array:
        if self.scaling is not None:
            self.scaling.apply(items)
        return items


class Numeric:
    """Numbers: a list, nested or flat, or named fields of one number each; scaled by `mean` and `std` where given."""

    settings: ClassVar[type[ContentSettings]] = NumericSettings

    @staticmethod
    def make(
        options: NumericSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> NumbersFeature:
        return NumbersFeature(spec, place, None if options is None else Scaling(options, spec, key))


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]
