"""Numbers as a content: JSON values -> a model input, scaled as x = (feature - mean) / std in the model's own dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from worker.batch import Array, Feed
from worker.errors import ConfigError, Reject
from worker.features import Opened, Place, Record
from worker.features.given import elements, scalar
from worker.features.values import missing_for, shape_of, stack, typed
from worker.model.signature import TensorSpec
from worker.records.paths import ABSENT, Path
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
        self.place = place
        self.field = place.field
        self.names = place.names
        self.scaling = scaling
        self.missing = missing_for(spec.dtype, place.missing)
        """The substitute for null, NaN and an absent named field; None = these are refused."""
        self.plain = all(path.plain for path in map(Path.of, self.names or [self.field or ""]))
        """Whether every field is one of the record itself, not of an object in it."""
        self.pick: Callable[[dict[str, Any]], Any] = (
            _several(place, self.missing is not None)
            if self.field is None
            else _single(self.field, place.default, _takes_bare(self.field, spec), self.missing is not None)
        )
        """The value of the field, or the values of the named ones.

        Raises:
            KeyError: a field is missing; the argument is its path.
            Reject: something on the way to a field is of another kind.
        """

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

    takes_default = True

    @staticmethod
    def make(
        options: NumericSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> NumbersFeature:
        """See :class:`worker.features.Content`."""
        source = key.rpartition(".")[0]
        if place.default is not ABSENT:
            place = replace(place, default=elements(place.default, spec, f"{source}.default"))
        defaults = {
            name: scalar(value, spec, f"input.fields: the default of {name}")
            for name, value in place.defaults.items()
        }
        place = replace(place, defaults=defaults)
        return NumbersFeature(spec, place, None if options is None else Scaling(options, spec, key))


def _takes_bare(field: str, spec: TensorSpec) -> bool:
    """Whether a bare number under the input's name means the same as a list of one."""
    return field != "features" and math.prod(d or 0 for d in spec.item_shape) == 1


def _single(field: str, default: Any, bare: bool, fills: bool) -> Callable[[dict[str, Any]], Any]:
    """Reads one field.

    Args:
        default: its value if it is absent or null.
        bare: the field is one element: a bare one is read as a list.
        fills: a missing element is null, which is filled later.
    """
    path = Path.of(field)
    if path.plain and default is ABSENT:
        if not bare:
            return itemgetter(field)
        if fills:
            return lambda record: _listed(record.get(field))
        return lambda record: _listed(record[field])

    def pick(record: dict[str, Any]) -> Any:
        value = path.find(record)
        if value is ABSENT or value is None:
            if default is not ABSENT:
                return default
            if value is ABSENT and not (bare and fills):
                raise KeyError(field)
            value = None
        return _listed(value) if bare else value

    return pick


def _several(place: Place, fills: bool) -> Callable[[dict[str, Any]], Any]:
    """Reads the named fields of one element each; see :func:`_single`."""
    names, defaults = place.names, place.defaults
    paths = [Path.of(name) for name in names]
    if all(path.plain for path in paths) and not defaults:
        if fills:
            return lambda record: [*map(record.get, names)]
        if len(names) == 1:
            return lambda record: (record[names[0]],)
        return itemgetter(*names)
    ways = [(path, defaults.get(path.text, ABSENT)) for path in paths]

    def pick(record: dict[str, Any]) -> list[Any]:
        values = []
        for path, default in ways:
            value = path.find(record)
            if value is ABSENT or value is None:
                if default is not ABSENT:
                    value = default
                elif value is ABSENT and not fills:
                    raise KeyError(path.text)
                else:
                    value = None
            values.append(value)
        return values

    return pick


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]
