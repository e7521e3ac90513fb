"""Fields of the record in its result (``output.copy``), and a body of one's own shape (``output.body``)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from worker.batch import Batch
from worker.errors import ConfigError, Reject, Rejection
from worker.records.paths import ABSENT, Path
from worker.registry import INPUT_FORMATS

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

RESULT = ("id", "source", "model", "prediction", "predictions", "cached", "steps_ms", "latency_ms", "fields")
"""Names that a path of ``output.body`` may begin with to lead into the result."""
RECORD = "record"
"""The name that leads to the record's fields, for a field that is called like a part of the result."""

Read = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""(the result, the record's fields) -> a value."""


class OwnBody:
    """Adds fields of the record to results, or makes other bodies of them.

    A field that the record lacks is null: a result is never refused for one.

    Raises:
        ConfigError: a path leads into the record, whose format has no fields.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        output = settings.output
        self._copied = {name: Path.of(name) for name in output.copy_ or ()}
        self._has_fields = _has_fields(settings)
        if self._copied and not self._has_fields:
            raise ConfigError(f"output.copy: records of input.format {settings.input.format} have no fields")
        self._body = None if output.body is None else self._compiled(output.body, "output.body", settings)

    def apply(self, batch: Batch, rows: Sequence[int], bodies: Sequence[bytes]) -> list[bytes | Rejection]:
        """The bodies of these rows as configured; a rejection where a field cannot be written as JSON."""
        found: list[bytes | Rejection] = []
        for row, body in zip(rows, bodies, strict=True):
            try:
                found.append(self._made(batch, row, body))
            except Exception as error:
                found.append(Rejection.of(error, "encode", self, "invalid"))
        return found

    def _made(self, batch: Batch, row: int, body: bytes) -> bytes:
        fields: Mapping[str, Any] = {}
        if self._has_fields:
            fields = batch.servable.fields(batch.payloads[row] or b"", batch.columns.headers[row]) or {}
        copied = {name: _found(path, fields) for name, path in self._copied.items()}
        if self._body is None:
            return body[:-1] + b',"fields":' + _text(copied) + b"}"
        result = orjson.loads(body)
        if copied:
            result["fields"] = copied
        return _text(self._body(result, fields))

    def _compiled(self, body: Mapping[str, Any], key: str, settings: PipelineSettings) -> Read:
        """The function that makes an object of one mapping of the settings."""
        ways = {
            name: self._compiled(path, f"{key}.{name}", settings)
            if isinstance(path, Mapping)
            else self._way(path, f"{key}.{name}", settings)
            for name, path in body.items()
        }
        return lambda result, record: {name: read(result, record) for name, read in ways.items()}

    def _way(self, text: str, key: str, settings: PipelineSettings) -> Read:
        path = Path.of(text)
        if path.steps[0] in RESULT:
            return lambda result, record: _found(path, result)
        if not self._has_fields:
            raise ConfigError(
                f"{key}: got '{text}', expected a path into the result ({', '.join(RESULT)}), because records of "
                f"input.format {settings.input.format} have no fields"
            )
        if text.startswith(f"{RECORD}."):
            path = Path.of(text.removeprefix(f"{RECORD}."))
        return lambda result, record: _found(path, record)


def own_body(settings: PipelineSettings) -> OwnBody | None:
    """What the settings say of bodies; None if results are to stay as they are."""
    output = settings.output
    return None if output.copy_ is None and output.body is None else OwnBody(settings)


def _has_fields(settings: PipelineSettings) -> bool:
    return bool(INPUT_FORMATS.entry(settings.input.format).has_fields)


def _found(path: Path, fields: Mapping[str, Any]) -> Any:
    try:
        value = path.find(fields)
    except Reject:  # something on the way is of another kind: the field is not there
        return None
    return None if value is ABSENT else value


def _text(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_plain)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, or many levels of lists
        return json.dumps(_finite(value), default=_plain, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinities, as orjson writes them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A value that JSON does not have, as records of other formats hold them."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    return str(value)
