"""An Avro schema made ready to read records with: parsed once, and known for what a record of it can cost.

fastavro reads the records. It goes as deep as the data say and makes what they say, so two things are found out here before:
how deeply a record of a recursive schema is nested, and how much memory a record can take.

Logical types are read as numbers: dates and times as the integers that they are stored as, decimals as the float that is
nearest. A UUID is text, an enum its symbol.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

from worker import extras
from worker.errors import Reject
from worker.records.memory import ROUGHLY_BYTES
from worker.schema_registry.schema import Schema

DEEPEST = 100
"""Levels of a record of a recursive schema. fastavro's own stack ends the process at some thousand."""
MOST_PER_BYTE = 512
"""A schema whose records can take more memory than this for each of their bytes is refused."""
FLAT_MOST = 4 << 20
"""A schema is refused if a record of it takes more memory than this although it holds nothing."""
STEPS = 500_000
"""Values that :meth:`AvroSchema.estimate` looks at before it assumes the worst of the rest."""
_DECIMAL = "streaminfer-decimal"
_LONGEST_DECIMAL, _LARGEST_SCALE = 512, 512
_NUMBER, _TEXT, _BYTES, _LIST, _MAP, _ENTRY = 80, 96, 48, 80, 80, 200
"""Bytes that a value takes as a Python object and on its way into an array; of a map's entry with its key."""
_FIXED_BYTES = {"float": 4, "double": 8, "boolean": 1}
_PRIMITIVES: dict[str, tuple[int, int]] = {
    "null": (0, 16),
    "boolean": (1, 24),
    "int": (1, _NUMBER),
    "long": (1, _NUMBER),
    "float": (4, _NUMBER),
    "double": (8, _NUMBER),
    "string": (1, _TEXT),
    "bytes": (1, _BYTES),
}
"""Least bytes in the record, most bytes of memory without the content."""


class AvroSchema:
    """One schema.

    Raises:
        Reject: ``invalid``: it is no Avro schema, or its records cannot be read within bounds.
        ConfigError: fastavro is not installed.
    """

    def __init__(self, schema: Schema) -> None:
        fastavro = extras.load("fastavro", extra="registry", why="input.format: avro")
        self._read = fastavro.schemaless_reader
        fastavro.read.LOGICAL_READERS[f"bytes-{_DECIMAL}"] = _decimal
        fastavro.read.LOGICAL_READERS[f"fixed-{_DECIMAL}"] = _decimal
        named: dict[str, Any] = {}
        try:
            for text in _texts(schema):
                parsed = fastavro.parse_schema(_plain(json.loads(text)), named)
        except (
            fastavro.schema.SchemaParseException,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ) as error:
            raise Reject(f"it is no Avro schema: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(parsed, dict) or parsed.get("type") not in ("record", "error"):
            raise Reject("it describes no record")
        self.parsed = parsed
        weights = _Weights(named)
        self.flat = weights.of(parsed)[1]
        """Bytes that a record takes besides those in proportion to its length."""
        self.per_byte = weights.per_byte
        self.recursive = weights.recursive
        self._named = named
        if self.flat > FLAT_MOST:
            raise Reject(f"a record of it takes {self.flat} bytes of memory even if it holds nothing")
        if self.per_byte > MOST_PER_BYTE:
            raise Reject(f"a record of it can take {self.per_byte} times its bytes in memory")

    def read(self, data: bytes, start: int) -> dict[str, Any]:
        """The record in ``data`` from ``start`` on.

        Raises:
            Reject: ``undecodable``.
        """
        if self.recursive:
            _Walk(self._named, data, start, 1 << 60).value(self.parsed, 0)
        stream = io.BytesIO(data)
        stream.seek(start)
        try:
            record: dict[str, Any] = self._read(stream, self.parsed, None)
        except Reject:
            raise
        except Exception as error:
            raise Reject(f"the data do not fit their Avro schema: {_said(error)}", "undecodable") from None
        return record

    def estimate(self, data: bytes, start: int) -> int:
        """Most bytes of memory that reading the record takes; never raises."""
        most = self.flat + self.per_byte * (len(data) - start)
        if most <= ROUGHLY_BYTES:
            return most
        walk = _Walk(self._named, data, start, STEPS)
        try:
            walk.value(self.parsed, 0)
        except Reject:
            return min(most, self.flat + walk.bytes + self.per_byte * (len(data) - walk.position))
        return min(most, walk.bytes)


def _texts(schema: Schema) -> list[str]:
    """The schemas that it refers to, each before those that need it, and its own text."""
    found: dict[str, None] = {}

    def gather(one: Schema) -> None:
        for inner in one.references.values():
            gather(inner)
        found.setdefault(one.text)

    gather(schema)
    return [*found]


def _plain(schema: Any) -> Any:
    """The schema with decimals marked for our reader, and without the other logical types."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value) if key in ("type", "items", "values", "fields") else value
        for key, value in schema.items()
        if key not in ("default", "doc")
    }
    logical = plain.pop("logicalType", None)
    if logical == "decimal":
        scale = plain.get("scale", 0)
        if not isinstance(scale, int) or not 0 <= scale <= _LARGEST_SCALE:
            raise Reject(f"the scale of a decimal is {scale}, expected 0 to {_LARGEST_SCALE}")
        plain["logicalType"] = _DECIMAL
    return plain


def _decimal(data: bytes, writer_schema: Any = None, reader_schema: Any = None) -> float:
    """A decimal as the nearest float64."""
    if len(data) > _LONGEST_DECIMAL:
        raise Reject(f"a decimal has {len(data)} bytes, expected at most {_LONGEST_DECIMAL}", "undecodable")
    unscaled = int.from_bytes(data, "big", signed=True)
    return float(unscaled / 10 ** writer_schema.get("scale", 0))


def _said(error: Exception) -> str:
    if isinstance(error, EOFError) or type(error).__name__ == "error":
        return "they end too early"
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Weights:
    """Least length and most memory of each type of a schema."""

    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._known: dict[str, tuple[int, int]] = {}
        self._open: list[str] = []
        self.recursive = False
        self.per_byte = 8
        """Memory for each byte of content: a text may take 4 bytes for each of its own, and is copied once."""

    def of(self, schema: Any) -> tuple[int, int]:
        """Least bytes in a record, and most bytes of memory besides those counted by :attr:`per_byte`."""
        if isinstance(schema, list):
            branches = [self.of(branch) for branch in schema]
            return 1 + min(least for least, _ in branches), max(most for _, most in branches)
        name = schema if isinstance(schema, str) else schema["type"]
        if isinstance(name, dict | list):
            return self.of(name)
        if name in _PRIMITIVES:
            return _PRIMITIVES[name]
        if isinstance(schema, str):
            return self._of_named(schema)
        if name == "array":
            least, most = self.of(schema["items"])
            if not least:
                raise Reject("it has an array whose items take no bytes, so that its length has no bound")
            self._count(most + 24, least)
            return 1, _LIST
        if name == "map":
            least, most = self.of(schema["values"])
            self._count(most + _ENTRY, 1 + least)
            return 1, _MAP
        if name == "fixed":
            return int(schema["size"]), max(_BYTES, _NUMBER)
        if name == "enum":
            return 1, 24
        return self._of_named(schema["name"])

    def _of_named(self, name: str) -> tuple[int, int]:
        schema = self._named[name]
        if schema["type"] not in ("record", "error"):
            return self.of(schema)
        if name in self._open:
            self.recursive = True
            return 0, 0  # each one counts for itself, below
        if name not in self._known:
            self._open.append(name)
            found = [self.of(field["type"]) for field in schema["fields"]]
            self._open.pop()
            size = sys.getsizeof(dict.fromkeys(range(len(found)))) + 16
            most = min(size + sum(most for _, most in found), 1 << 40)
            self._known[name] = min(sum(least for least, _ in found), 1 << 40), most
            if self.recursive:
                self._count(most, 1)
        return self._known[name]

    def _count(self, most: int, least: int) -> None:
        self.per_byte = max(self.per_byte, 8 + -(-most // least))


class _Walk:
    """Goes over one record without making anything of it.

    Args:
        steps: values to look at; with more it gives up with a :class:`Reject`.
    """

    def __init__(self, named: dict[str, Any], data: bytes, position: int, steps: int) -> None:
        self._named = named
        self._data = data
        self.position = position
        self._left = steps
        self.bytes = 0
        """Memory of the values so far."""

    def value(self, schema: Any, depth: int) -> None:
        """Go over one value.

        Raises:
            Reject: ``undecodable``: the data are not whole, or nested too deeply.
        """
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise Reject(f"the data are nested deeper than {DEEPEST} levels", "undecodable")
        if isinstance(schema, list):
            branch = self._long()
            if not 0 <= branch < len(schema):
                raise Reject(
                    "the data do not fit their Avro schema: no such branch of a union", "undecodable"
                )
            return self.value(schema[branch], depth + 1)
        name = schema if isinstance(schema, str) else schema["type"]
        if isinstance(name, dict | list):
            return self.value(name, depth)
        if name in _PRIMITIVES:
            return self._primitive(name)
        if isinstance(schema, str):
            schema = self._named[schema]
            name = schema["type"]
        if name in ("record", "error"):
            self.bytes += sys.getsizeof(dict.fromkeys(range(len(schema["fields"])))) + 16
            for field in schema["fields"]:
                self.value(field["type"], depth + 1)
        elif name == "array":
            self.bytes += _LIST
            self._blocks(schema["items"], depth, False)
        elif name == "map":
            self.bytes += _MAP
            self._blocks(schema["values"], depth, True)
        elif name == "fixed":
            self.bytes += _NUMBER + schema["size"]
            self._skip(schema["size"])
        else:
            self.bytes += 24
            self._long()
        return None

    def _primitive(self, name: str) -> None:
        self.bytes += _PRIMITIVES[name][1]
        if name in _FIXED_BYTES:
            self._skip(_FIXED_BYTES[name])
        elif name in ("string", "bytes"):
            length = self._long()
            self._skip(length)
            self.bytes += length if name == "bytes" else 8 * length
        elif name != "null":
            self._long()

    def _blocks(self, inner: Any, depth: int, keys: bool) -> None:
        while count := self._long():
            if count < 0:
                count = -count
                self._long()
            size = _FIXED_BYTES.get(inner, 0) if isinstance(inner, str) and not keys else 0
            if size:
                self._skip(count * size)
                self.bytes += count * (_NUMBER + 24)
                continue
            for _ in range(count):
                self.bytes += _ENTRY if keys else 24
                if keys:
                    self._primitive("string")
                self.value(inner, depth + 1)

    def _skip(self, length: int) -> None:
        if not 0 <= length <= len(self._data) - self.position:
            raise Reject("the data do not fit their Avro schema: they end too early", "undecodable")
        self.position += length

    def _long(self) -> int:
        value, data = 0, self._data
        for shift in range(0, 70, 7):
            if self.position >= len(data):
                break
            byte = data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
        raise Reject("the data do not fit their Avro schema: they end too early", "undecodable")
