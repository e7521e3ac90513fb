"""Results as JSON with the id of their JSON Schema, ``schemas/result.schema.json``."""

from __future__ import annotations

from typing import Any, ClassVar

import orjson

from worker.encode.registered import RegisteredEncoder, Writer
from worker.schema_registry.schema import Kind


class JsonSchemaWriter(Writer):
    """See :class:`worker.encode.registered.Writer`."""

    kind: ClassVar[Kind] = "JSON"
    file = "result.schema.json"

    def encoded(self, body: bytes) -> bytes:
        """See :class:`worker.encode.registered.Writer`."""
        return body

    def decoded(self, data: bytes) -> Any:
        """See :class:`worker.encode.registered.Writer`."""
        return orjson.loads(data)


class JsonSchemaEncoder(RegisteredEncoder):
    """``json_schema``: the same as ``json`` behind the id of its schema, which is registered at start."""

    writer = JsonSchemaWriter
