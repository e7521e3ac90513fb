"""Results as Avro, with the schema ``schemas/result.avsc``."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from worker import extras
from worker.encode.registered import RegisteredEncoder, Writer
from worker.encode.result_shape import shaped
from worker.schema_registry.schema import Kind

if TYPE_CHECKING:
    from worker.schema_registry.opening import Registry


class AvroWriter(Writer):
    """See :class:`worker.encode.registered.Writer`."""

    kind: ClassVar[Kind] = "AVRO"
    file = "result.avsc"

    def __init__(self, registry: Registry, topic: str) -> None:
        fastavro = extras.load("fastavro", extra="registry", why="output.format: avro")
        super().__init__(registry, topic)
        self._schema = fastavro.parse_schema(json.loads(self.text))
        self._write, self._read = fastavro.schemaless_writer, fastavro.schemaless_reader

    def encoded(self, body: bytes) -> bytes:
        """See :class:`worker.encode.registered.Writer`."""
        stream = io.BytesIO()
        self._write(stream, self._schema, shaped(orjson.loads(body)))
        return stream.getvalue()

    def decoded(self, data: bytes) -> Any:
        """See :class:`worker.encode.registered.Writer`."""
        return self._read(io.BytesIO(data), self._schema, None)


class AvroEncoder(RegisteredEncoder):
    """``avro``: the JSON result as an Avro record with one schema for all kinds of prediction, registered at start."""

    content_type = "application/avro"
    writer = AvroWriter
