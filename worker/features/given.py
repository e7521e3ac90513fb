"""Values that a configuration gives for a model input: constants, and defaults of absent fields."""

from __future__ import annotations

import math
from typing import Any

from worker.errors import ConfigError, Reject
from worker.features.values import typed
from worker.model.signature import TensorSpec
from worker.settings.yaml_text import describe

_TRUTH = {"true": True, "false": False}
_EXPECTED = {"f": "a number", "i": "an integer", "u": "an integer", "b": "true or false", "O": "text"}


def scalar(value: Any, spec: TensorSpec, key: str) -> Any:
    """One element of a model input, as JSON has it.

    Args:
        value: as it is configured: text, which stands for a number if the input is of numbers.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the input cannot hold the value.
    """
    try:
        found = _read(value, spec.dtype.kind)
        typed([found], spec.dtype)
    except ValueError:
        expected = _EXPECTED[spec.dtype.kind]
        raise ConfigError(
            f"{key}: got {describe(value)}, expected {expected}, because the model's input {spec.name} "
            f"is {spec.datatype}"
        ) from None
    except Reject as error:
        raise ConfigError(
            f"{key}: got {describe(value)}: {str(error).replace('element 0', 'it')}, "
            f"the type of the model's input {spec.name}"
        ) from None
    return found


def elements(value: Any, spec: TensorSpec, key: str) -> list[Any]:
    """The elements of one item in row-major order: a list of them, or one value for all.

    Raises:
        ConfigError: the input cannot hold a value; another number of elements; one value for an item of free length.
    """
    free = None in spec.item_shape
    size = math.prod(d or 0 for d in spec.item_shape)
    if isinstance(value, list):
        if not free and len(value) != size:
            raise ConfigError(
                f"{key}: got {len(value)} values, expected one, or {size}, the elements of one item of the "
                f"model's input {spec.name}"
            )
        return [scalar(each, spec, key) for each in value]
    found = scalar(value, spec, key)
    if free and len(spec.item_shape) > 1:
        shape = str([*spec.item_shape]).replace("None", "?")
        raise ConfigError(
            f"{key}: an item of the model's input {spec.name} has shape {shape}, whose size is not known; "
            "expected a list"
        )
    return [found] * (1 if free else size)


def _read(value: Any, kind: str) -> Any:
    """The value that a text of a configuration stands for in an input of this kind.

    Raises:
        ValueError: for none.
    """
    if kind == "O":
        return value if isinstance(value, str) else str(value)
    if kind == "b":
        if isinstance(value, bool):
            return value
        if str(value).lower() not in _TRUTH:
            raise ValueError
        return _TRUTH[str(value).lower()]
    if isinstance(value, bool):
        raise ValueError
    if kind == "f":
        found = float(value)
        if math.isnan(found):
            raise ValueError
        return found
    try:
        return int(value) if isinstance(value, str) else value
    except ValueError:
        return float(value)
