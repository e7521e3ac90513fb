"""Protobuf records in the frame of a schema registry."""

from __future__ import annotations

from typing import ClassVar

from worker.batch import Headers
from worker.records.framed import FramedDecoder, Reader
from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry.frame import split_protobuf
from worker.schema_registry.schema import Kind, Schema


class ProtobufDecoder(FramedDecoder[ProtobufSchema]):
    """One Protobuf message, read with the schema of its id; each model input is numbers or a picture from its fields."""

    kind: ClassVar[Kind] = "PROTOBUF"

    @staticmethod
    def prepared(schema: Schema) -> ProtobufSchema:
        """See :class:`FramedDecoder`."""
        return ProtobufSchema(schema)

    def find(self, value: bytes, headers: Headers | None) -> tuple[Reader, int]:
        """See :class:`FramedDecoder`."""
        key, indexes, start = split_protobuf(value, headers)
        return self.shelf.reader(key).reader(indexes), start
