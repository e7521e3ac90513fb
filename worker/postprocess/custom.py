"""Custom code as a postprocess: ``f({output name: array of one item}) -> JSON-able``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson

from worker.batch import Array
from worker.errors import Reject, Rejection
from worker.model.signature import Signature
from worker.settings.choice import CustomSettings
from worker.settings.references import import_attribute
from worker.settings.section import Section

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class CustomPostprocess:
    """Calls ``module:attribute`` once per item.

    The arrays are without the batch dimension, whether or not the model is batchable. ``Reject`` refuses the
    record; any other exception is a ``model_error`` of that record; a result that JSON cannot hold is one of
    stage ``encode``; NaN or infinity anywhere in the result is ``non_finite``.
    """

    settings: ClassVar[type[Section]] = CustomSettings

    def __init__(self, settings: CustomSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        self._function: Callable[[dict[str, Array]], Any] = import_attribute(settings.code, "postprocess")

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        return [
            self._prediction({name: _item(values[i], alone) for name, values in outputs.items()})
            for i in range(count)
        ]

    def _prediction(self, item: dict[str, Array]) -> bytes | Rejection:
        try:
            result = self._function(item)
        except Exception as error:
            return Rejection.of(error, "postprocess", self._function)
        try:
            text = orjson.dumps(result, _jsonable, _OPTIONS)
            # orjson writes null for what JSON cannot say; look closer only where there is one.
            if b"null" in text and not _finite(result):
                raise Reject("the result holds NaN or infinity, which JSON cannot say", "non_finite")
        except Exception as error:
            return Rejection.of(error, "encode", self._function)
        return text


def _item(values: Any, alone: bool) -> Array:
    """One item's array; a model that runs records alone gives it a batch dimension of 1."""
    array = np.asarray(values)
    return array[0] if alone and array.ndim and len(array) == 1 else array


def _jsonable(value: Any) -> Any:
    """What orjson asks about types it does not render itself."""
    if isinstance(value, np.ndarray | np.generic):  # strings, non-contiguous and rank-0 arrays
        return value.tolist()
    raise TypeError(f"postprocess gave a {type(value).__name__}, expected what JSON can hold")


def _finite(value: Any) -> bool:
    """Whether no number anywhere in ``value`` is NaN or infinite."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if dataclasses.is_dataclass(value):
        return all(_finite(getattr(value, field.name)) for field in dataclasses.fields(value))
    return True
