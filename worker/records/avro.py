"""Avro records in the frame of a schema registry."""

from __future__ import annotations

from typing import ClassVar

from worker.batch import Headers
from worker.records.avro_schema import AvroSchema
from worker.records.framed import FramedDecoder, Reader
from worker.schema_registry.frame import split
from worker.schema_registry.schema import Kind, Schema


class AvroDecoder(FramedDecoder[AvroSchema]):
    """One Avro record, read with the schema of its id; each model input is numbers or a picture from its fields."""

    kind: ClassVar[Kind] = "AVRO"

    @staticmethod
    def prepared(schema: Schema) -> AvroSchema:
        """See :class:`FramedDecoder`."""
        return AvroSchema(schema)

    def find(self, value: bytes, headers: Headers | None) -> tuple[Reader, int]:
        """See :class:`FramedDecoder`."""
        key, start = split(value, headers)
        return self.shelf.reader(key), start
