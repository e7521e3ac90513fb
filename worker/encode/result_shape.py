"""A JSON result -> the shape of the schemas in ``schemas/``, which is the same for Avro and Protobuf.

The schemas know the members that predictions usually have. A member that they do not know, or whose value is of another
kind, such as a label that custom code gives as a number, stays JSON text in ``more``: nothing of a prediction is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

Shaped = Callable[[Any], Any]


class _MisfitError(Exception):
    """The value is of another kind than the schema's."""


def shaped(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result, an expired record's or an error body in the shape of ``schemas/result.avsc``; what is absent is left out."""
    found = {name: value for name, value in result.items() if value is not None}
    if "prediction" in found:
        found["prediction"] = _prediction(found["prediction"])
    if "predictions" in found:
        found["predictions"] = [_prediction(prediction) for prediction in found["predictions"]]
    return found


def _prediction(prediction: Any) -> dict[str, Any]:
    if not isinstance(prediction, dict):  # custom code may give anything that JSON can say
        return {"more": orjson.dumps({"prediction": prediction}).decode()}
    return _members(prediction, _PREDICTION)


def _members(value: Mapping[str, Any], kinds: Mapping[str, Shaped]) -> dict[str, Any]:
    """The members that the schema knows, and the others as JSON text."""
    found: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for name, member in value.items():
        if member is None and name in kinds:
            continue
        try:
            found[name] = kinds[name](member)
        except (KeyError, _MisfitError):
            more[name] = member
    if more:
        found["more"] = orjson.dumps(more).decode()
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _MisfitError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1 << 53:
        raise _MisfitError
    return float(value)


def _float(value: Any) -> float:
    return value if type(value) is float else _number(value)


def _integer(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise _MisfitError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _MisfitError
    return value


def _list_of(kind: Shaped) -> Shaped:
    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _MisfitError
        return [kind(element) for element in value]

    return read


def _exactly(kinds: Mapping[str, Shaped]) -> Shaped:
    """A record that has no place for other members."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value.keys() <= kinds.keys():
            raise _MisfitError
        return {name: kinds[name](member) for name, member in value.items() if member is not None}

    return read


def _box(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MisfitError
    return _members(value, _BOX)


def _outputs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MisfitError
    return {name: _tensor(nested) for name, nested in value.items()}


def _tensor(nested: Any) -> dict[str, Any]:
    """A nested list as its shape and its elements in row-major order."""
    shape: list[int] = []
    level: list[Any] = [nested]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(not isinstance(inner, list) or len(inner) != size for inner in level):
            raise _MisfitError
        shape.append(size)
        level = [element for inner in level for element in inner]
    if not level and 0 not in shape:
        raise _MisfitError
    for name, kind, read in _ELEMENTS:
        if all(type(element) in kind for element in level):
            return {"shape": shape, name: [read(element) for element in level]}
    raise _MisfitError


_ELEMENTS: tuple[tuple[str, frozenset[type], Shaped], ...] = (
    ("integers", frozenset({int}), _integer),
    ("numbers", frozenset({int, float}), _float),
    ("texts", frozenset({str}), _text),
    ("truths", frozenset({bool}), _truth),
)
_LABEL: dict[str, Shaped] = {"label": _text, "score": _float}
_BOX: dict[str, Shaped] = {
    **_LABEL,
    "class_id": _integer,
    "xyxy": _list_of(_float),
    "keypoints": _list_of(_list_of(_float)),
}
_PREDICTION: dict[str, Shaped] = {
    **_LABEL,
    "top": _list_of(_exactly(_LABEL)),
    "boxes": _list_of(_box),
    "value": _float,
    "values": _list_of(_float),
    "embedding": _list_of(_float),
    "outputs": _outputs,
    "text": _text,
    "entities": _list_of(_exactly({**_LABEL, "start": _integer, "end": _integer, "text": _text})),
    "anomaly": _truth,
    "start_s": _float,
    "end_s": _float,
    "time_s": _float,
}
