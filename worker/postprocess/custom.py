"""Custom code as a postprocess: ``f(outputs)`` or ``f(outputs, item) -> JSON-able``, for one item or for many."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson

from worker import frames
from worker.batch import Array
from worker.errors import ConfigError, Postponed, Reject, Rejection, Retry
from worker.model.signature import Signature
from worker.postprocess import Fragment
from worker.postprocess.item import InputItem, one_item
from worker.settings.choice import CustomSettings
from worker.settings.references import import_attribute
from worker.settings.section import Section

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class CustomPostprocess:
    """Calls ``module:attribute``, once for each item, or once for all of a run where it is marked ``worker.batched``.

    The arrays have no batch dimension, whether or not the model is batchable; for a batched function the first
    dimension counts the items. ``Reject`` refuses the record; any other exception is a ``model_error`` of that record.
    A result that JSON cannot hold is refused in stage ``encode``; NaN or infinity in the result is ``non_finite``.

    Raises:
        ConfigError: the code cannot be imported, or it takes neither one nor two arguments.
    """

    settings: ClassVar[type[Section]] = CustomSettings

    def __init__(self, settings: CustomSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        self._function: Callable[..., Any] = import_attribute(settings.code, "postprocess")
        self._batched = bool(getattr(self._function, "batched", False))
        self.takes_items = _takes_items(self._function, settings.code)
        """Whether ``contexts`` must hold an :class:`InputItem` for each item."""

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[Fragment]:
        if self._batched:
            whole = {
                name: one_item(values[0], alone)[np.newaxis] if alone else values
                for name, values in outputs.items()
            }
            return self._together(whole, contexts)
        return [
            self._prediction(
                {name: one_item(np.asarray(values[i]), alone) for name, values in outputs.items()},
                contexts[i],
            )
            for i in range(count)
        ]

    def _together(self, outputs: dict[str, Array], items: Sequence[InputItem]) -> list[Fragment]:
        """The predictions of these items. If the function raises, call it with each half, down to the failing item."""
        try:
            results = self._function(outputs, list(items)) if self.takes_items else self._function(outputs)
            if len(results) != len(items):
                raise ValueError(
                    f"the batched postprocess gave {len(results)} results for {len(items)} items"
                )
        except Retry as error:
            return [self._refusal(error)] * len(items)
        except Exception as error:
            if len(items) == 1:
                if not isinstance(error, Reject):
                    frames.mark(error)
                return [self._refusal(error)]
            middle = len(items) // 2
            head = {name: values[:middle] for name, values in outputs.items()}
            tail = {name: values[middle:] for name, values in outputs.items()}
            return [*self._together(head, items[:middle]), *self._together(tail, items[middle:])]
        return [self._text(result) for result in results]

    def _prediction(self, outputs: dict[str, Array], item: InputItem) -> Fragment:
        try:
            result = self._function(outputs, item) if self.takes_items else self._function(outputs)
        except (Reject, Retry) as error:
            return self._refusal(error)
        except Exception as error:
            frames.mark(error)
            return self._refusal(error)
        return self._text(result)

    def _refusal(self, error: Exception) -> Rejection | Postponed:
        if isinstance(error, Retry):
            return Postponed.of(error, "postprocess", self._function)
        return Rejection.of(error, "postprocess", self._function)

    def _text(self, result: Any) -> Fragment:
        if isinstance(result, Reject | Retry):
            return self._refusal(result)
        try:
            text = orjson.dumps(result, _jsonable, _OPTIONS)
            # orjson writes NaN and infinity as null: search the result for them only if there is a null.
            if b"null" in text and not _finite(result):
                raise Reject("the result holds NaN or infinity, which JSON cannot say", "non_finite")
        except Exception as error:
            return Rejection.of(error, "encode", self._function)
        return text


def _takes_items(function: Callable[..., Any], code: str) -> bool:
    """Whether the function takes the item: its second argument has no default, or is named ``item`` or ``items``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some compiled functions have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) > 2 or not (positional or any_number):
        raise ConfigError(
            f"postprocess: custom code {code} takes {len(required)} arguments; expected f(outputs) or f(outputs, item)"
        )
    return len(required) == 2 or (len(positional) > 1 and positional[1].name in ("item", "items"))


def _jsonable(value: Any) -> Any:
    """Converts types that orjson cannot render; called by orjson."""
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
