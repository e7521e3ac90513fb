"""Records that name their schema: what the formats avro and protobuf have in common.

A record is opened with the schema it was written with. One whose schema is not known yet waits
(:class:`worker.errors.Waiting`), and its neighbours do not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from worker.batch import Columns, Feed, Headers
from worker.errors import Reject, Waiting
from worker.features.constant import ConstantFeature
from worker.features.numbers import NumbersFeature
from worker.model.signature import Signature
from worker.records.fields import FieldPlaces, FieldsDecoder, check_missing, check_sources, features_of
from worker.records.json import JsonDecoder
from worker.records.memory import check_room
from worker.records.rows import decode_each
from worker.schema_registry.book import Schemas, Shelf
from worker.schema_registry.frame import HEADER
from worker.schema_registry.schema import Kind, Schema
from worker.settings import LimitsSettings, PipelineSettings

ROOM_BYTES = 8 << 20
"""What each thread may take for the records at hand without saying so."""
FREE_BYTES = 16 << 10
"""Longer records are always looked at before they are read."""
UNKNOWN_FACTOR = 64
"""Assumed memory of a record whose schema is not known yet, as a multiple of its length; more is rare."""


class Reader(Protocol):
    """A schema made ready to read records with."""

    def read(self, data: bytes, start: int) -> dict[str, Any]:
        """The record in ``data`` from ``start`` on.

        Raises:
            Reject: the data are not of this schema.
        """

    def estimate(self, data: bytes, start: int) -> int:
        """Most bytes of memory that reading the record takes; never raises."""


class Prepared(Protocol):
    """A schema that is ready."""

    @property
    def per_byte(self) -> int:
        """Most bytes of memory for each byte of a record."""


P = TypeVar("P", bound=Prepared)


class FramedDecoder(FieldsDecoder, Generic[P]):
    """See the module."""

    contents = JsonDecoder.contents
    has_fields = True
    takes_missing = True
    needs_schemas = True
    reads_headers = frozenset({HEADER})
    kind: ClassVar[Kind]

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        limits: LimitsSettings,
        schemas: Schemas,
    ) -> None:
        check_sources(settings, signature)
        super().__init__(
            features_of(settings, signature, limits, "numeric", FieldPlaces(settings, signature)), signature
        )
        numbers = [feature for feature in self.features if isinstance(feature, NumbersFeature)]
        check_missing(settings, [feature.missing for feature in numbers])
        constants = [feature for feature in self.features if isinstance(feature, ConstantFeature)]
        self.numbers = numbers
        self.together = self.fixed and bool(numbers) and len(numbers) + len(constants) == len(self.features)
        """Whether the fields of a batch can be converted at once, because every input is numbers of a known shape."""
        self.signature = signature
        self.limits = limits
        self.shelf = self.shelf_of(schemas)

    @property
    def free_bytes(self) -> int:  # type: ignore[override]
        """Records up to this length stay within the room, whatever they hold."""
        return 0 if self.files or self.sized else min(FREE_BYTES, ROOM_BYTES // self._heaviest)

    @property
    def _heaviest(self) -> int:
        """Most memory for each byte among the schemas met so far."""
        return max(UNKNOWN_FACTOR, self.shelf.heaviest)

    @classmethod
    def shelf_of(cls, schemas: Schemas) -> Shelf[P]:
        """The readers of this format's schemas."""
        return schemas.shelf(cls.kind, cls.prepared)

    @staticmethod
    @abstractmethod
    def prepared(schema: Schema) -> P:
        """A schema made ready to read records with. Any thread calls it.

        Raises:
            Reject: its records cannot be read.
        """

    @abstractmethod
    def find(self, value: bytes, headers: Headers | None) -> tuple[Reader, int]:
        """The reader of a record, and where its data begin.

        Raises:
            Reject: it names no schema, or one that cannot be read. Waiting: its schema is not known yet.
        """

    def open_record(self, value: bytes, headers: Headers | None) -> dict[str, Any]:
        """The record's fields.

        Raises:
            Reject: it cannot be read. Waiting: its schema is not known yet.
        """
        reader, start = self.find(value, headers)
        return reader.read(value, start)

    def open(self, value: bytes) -> dict[str, Any]:
        return self.open_record(value, None)

    def cost(self, value: bytes) -> int:
        """Bytes that reading the record and decoding its files need.

        Headers are not at hand here. A record whose schema stands there is charged by the heaviest schema met so far.
        """
        try:
            reader, start = self.find(value, None)
        except (Reject, Waiting):
            return self.cost_of_length(len(value))
        reading = check_room(value, reader.estimate(value, start), self.signature, self.limits)
        reading += self.sized_room(len(value))
        if not self.files or reading > len(value) + ROOM_BYTES:
            return reading
        try:
            record = reader.read(value, start)
            return reading + sum(feature.charge(feature.file(record)) for feature in self.files)
        except Reject as error:
            if error.reason in ("too_many_pixels", "too_large"):
                raise
            return reading  # decoding says what is wrong

    def cost_of_length(self, nbytes: int) -> int:
        """The same for a record of which only the length is known."""
        return min(self._heaviest * nbytes, self.limits.in_flight_bytes // 4)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        headers = columns.headers
        for rows in self._chunks(payloads, start, stop):
            records: dict[int, dict[str, Any]] = {}

            def open_row(row: int, records: dict[int, dict[str, Any]] = records) -> None:
                records[row] = self.open_record(payloads[row] or b"", headers[row])

            decode_each(self, feed, rows, open_row)
            if not (self.together and self._stack(records, feed)):
                self.decode_records(records, feed)

    def _stack(self, records: dict[int, dict[str, Any]], feed: Feed) -> bool:
        """Convert all records at once; False if one of them does not fit."""
        assert feed.arrays is not None
        rows: Any = list(records)
        if rows and rows[-1] - rows[0] + 1 == len(rows):
            rows = slice(rows[0], rows[-1] + 1)
        try:
            for source in self.numbers:
                picked = list(map(source.pick, records.values()))
                feed.arrays[source.spec.name][rows] = source.items(picked)
        except (Reject, KeyError):
            return False
        return True

    def _chunks(self, values: Sequence[bytes | None], start: int, stop: int) -> Iterator[Sequence[int]]:
        """Rows that are opened together: their memory stays within the room, or it is one row."""
        most = ROOM_BYTES // self._heaviest
        first, size = start, 0
        for row in range(start, stop):
            length = len(values[row] or b"") + 64
            if size + length > most and row > first:
                yield range(first, row)
                first, size = row, 0
            size += length
        if first < stop:
            yield range(first, stop)
