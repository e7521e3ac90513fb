"""JSON records in the frame of a schema registry.

The schema must be known to the registry; the record is not checked against it. The fields that the model needs are checked
as those of any JSON record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from worker.batch import Columns, Feed, Headers
from worker.errors import Reject
from worker.model.signature import Signature
from worker.records.json import JsonDecoder
from worker.records.rows import decode_each
from worker.schema_registry.book import Schemas, Shelf
from worker.schema_registry.frame import GUID_BYTES, HEADER, ID_BYTES, split
from worker.schema_registry.schema import Schema
from worker.settings import LimitsSettings, PipelineSettings


class JsonSchemaDecoder(JsonDecoder):
    """One JSON object with the id of its JSON Schema in front or in a header; otherwise as ``json``."""

    needs_schemas = True
    reads_headers = frozenset({HEADER})

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        limits: LimitsSettings,
        schemas: Schemas,
    ) -> None:
        super().__init__(settings, signature, limits)
        self.shelf = self.shelf_of(schemas)

    @staticmethod
    def shelf_of(schemas: Schemas) -> Shelf[Schema]:
        """The schemas that are known; nothing is made of them."""
        return schemas.shelf("JSON", lambda schema: schema)

    def body(self, value: bytes, headers: Headers | None) -> bytes:
        """The JSON of a record.

        Raises:
            Reject: it names no schema, or one that is not known. Waiting: its schema is not known yet.
        """
        key, start = split(value, headers)
        self.shelf.reader(key)
        return value[start:] if start else value

    def open_record(self, value: bytes, headers: Headers | None) -> dict[str, Any]:
        """The record's fields; see :class:`worker.records.framed.FramedDecoder`."""
        return self.open(self.body(value, headers))

    def cost(self, value: bytes) -> int:
        """See :class:`JsonDecoder`. The frame is no part of the text; headers are not at hand here."""
        start = {b"\0": ID_BYTES, b"\1": GUID_BYTES}.get(value[:1], 0)
        return super().cost(value[start:] if start else value)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        bodies: list[bytes | None] = [None] * stop
        good: list[int] = []

        def open_row(row: int) -> None:
            value = payloads[row]
            if value is None:
                raise Reject("the record has no value", "undecodable")
            bodies[row] = self.body(value, columns.headers[row])
            good.append(row)

        decode_each(self, feed, range(start, stop), open_row)
        for first, last in _stretches(good):
            super().decode(bodies, columns, feed, first, last)


def _stretches(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending rows as stretches ``first..behind the last``."""
    first = behind = -1
    for row in rows:
        if row != behind:
            if first >= 0:
                yield first, behind
            first = row
        behind = row + 1
    if first >= 0:
        yield first, behind
