"""A Protobuf schema made ready to read records with: its descriptors, and how a message becomes plain values.

A message becomes a dict by the names of its fields: repeated fields are lists, maps dicts, messages dicts, enums their
numbers. A field that is not set is None where that can be told from its default value (a message, a member of a oneof, an
``optional`` field); otherwise it has its default. Well-known types are the values that they stand for.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from worker import extras
from worker.errors import Reject
from worker.records.memory import ROUGHLY_BYTES
from worker.schema_registry import proto_text
from worker.schema_registry.schema import Schema

_FREELY_KNOWN = re.compile(r"(google/protobuf|google/type|confluent|confluent/type)/[a-z0-9_]+\.proto")
"""Files that a schema may import without a reference, as far as their Python modules are installed."""
STEPS = 1_000_000
"""Fields that :meth:`MessageReader.estimate` looks at before it assumes the worst of the rest."""
_DEEPEST = 100
_FIXED = {1: 8, 6: 8, 16: 8, 2: 4, 7: 4, 15: 4}
"""Bytes of the packed elements of the types whose elements are all as long."""
_PACKED, _ELEMENT, _ENTRY, _CONTENT = 80, 112, 200, 10
"""Most bytes of memory of a packed element, of another repeated element beside its message, of a map's entry, and for each
byte of content."""
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
Convert = Callable[[Any], Any]


class ProtobufSchema:
    """One Protobuf file with what it imports.

    Raises:
        Reject: ``invalid``: it is no Protobuf schema, or imports what is not there.
        ConfigError: protobuf is not installed.
    """

    def __init__(self, schema: Schema) -> None:
        extras.load("google.protobuf", extra="registry", why="input.format: protobuf")
        from google.protobuf import descriptor_pool

        self._pool = descriptor_pool.DescriptorPool()
        self._added: set[str] = set()
        self._readers: dict[tuple[int, ...], MessageReader] = {}
        self._converters: dict[str, Convert] = {}
        self._weights = _Weights()
        try:
            self._file = self._add(file_of(schema.text), schema, "")
            self._package = self._file.package
            self.reader((0,))
        except Reject:
            raise
        except (TypeError, ValueError, KeyError) as error:
            raise Reject(f"it is no Protobuf schema: {' '.join(str(error).split())[:200]}") from None

    @property
    def per_byte(self) -> int:
        """A message takes at most so many bytes of memory for each of its own."""
        return self._weights.per_byte

    def reader(self, indexes: tuple[int, ...]) -> MessageReader:
        """The reader of one of its message types.

        Raises:
            Reject: ``invalid``: there is no such message type.
        """
        found = self._readers.get(indexes)
        if found is None:
            found = self._readers[indexes] = self._made(indexes)
        return found

    def message_class(self, indexes: tuple[int, ...]) -> Any:
        """The library's class of one of its message types.

        Raises:
            Reject: ``invalid``: there is no such message type.
        """
        from google.protobuf import message_factory

        return message_factory.GetMessageClass(self._descriptor(indexes))

    def _made(self, indexes: tuple[int, ...]) -> MessageReader:
        descriptor = self._descriptor(indexes)
        flat = self._weights.of(descriptor)
        converter = self._converter(descriptor)
        return MessageReader(self.message_class(indexes), converter, descriptor, flat, self._weights)

    def _descriptor(self, indexes: tuple[int, ...]) -> Any:
        types, names = self._file.message_type, [self._package] if self._package else []
        for index in indexes:
            if not 0 <= index < len(types):
                raise Reject(f"the schema has no message type {[*indexes]}")
            names.append(types[index].name)
            types = types[index].nested_type
        return self._pool.FindMessageTypeByName(".".join(names))

    def _add(self, file: Any, schema: Schema, name: str) -> Any:
        """Put a file, and before it those that it imports, into the pool."""
        file.name = name or file.name or "schema.proto"
        self._added.add(file.name)
        for imported in file.dependency:
            if imported in self._added:
                continue
            reference = schema.references.get(imported)
            if reference is not None:
                self._add(file_of(reference.text), reference, imported)
            else:
                self._add(_known_file(imported), Schema("PROTOBUF", ""), imported)
        self._pool.Add(file)
        return file

    def _converter(self, descriptor: Any) -> Convert:
        """What makes plain values of a message."""
        name = descriptor.full_name
        known = _well_known(name)
        if known is not None:
            return known
        if name not in self._converters:
            self._converters[name] = lambda message: self._converters[name](message)  # it may hold itself
            self._converters[name] = self._compiled(descriptor)
        return self._converters[name]

    def _compiled(self, descriptor: Any) -> Convert:
        plain = [
            field.name for field in descriptor.fields if not field.is_repeated and not field.has_presence
        ]
        read = attrgetter(*plain) if len(plain) > 1 else None
        others = [(field.name, self._field(field)) for field in descriptor.fields if field.name not in plain]
        if len(plain) == 1:
            others.append((plain[0], attrgetter(plain[0])))

        def convert(message: Any) -> dict[str, Any]:
            record = dict(zip(plain, read(message), strict=True)) if read is not None else {}
            for name, value in others:
                record[name] = value(message)
            return record

        return convert

    def _field(self, field: Any) -> Convert:
        """What reads one field of a message."""
        name, inner = field.name, field.message_type
        get = attrgetter(name)
        if inner is None:
            if field.is_repeated:
                return lambda message: list(get(message))
            return lambda message: get(message) if message.HasField(name) else None
        if inner.GetOptions().map_entry:
            value = inner.fields_by_name["value"]
            if value.message_type is None:
                return lambda message: dict(get(message))
            convert_value = self._converter(value.message_type)
            return lambda message: {key: convert_value(held) for key, held in get(message).items()}
        convert = self._converter(inner)
        if field.is_repeated:
            return lambda message: [convert(held) for held in get(message)]
        return lambda message: convert(get(message)) if message.HasField(name) else None


class MessageReader:
    """Reads one type of message."""

    def __init__(self, message: Any, convert: Convert, descriptor: Any, flat: int, weights: _Weights) -> None:
        self._parse = message.FromString
        self._convert = convert
        self._descriptor = descriptor
        self._weights = weights
        self.flat = flat

    @property
    def per_byte(self) -> int:
        """See :class:`worker.records.framed.Reader`."""
        return self._weights.per_byte

    def read(self, data: bytes, start: int) -> dict[str, Any]:
        """The message in ``data`` from ``start`` on.

        Raises:
            Reject: ``undecodable``.
        """
        try:
            message = self._parse(data[start:] if start else data)
        except Exception as error:
            raise Reject(
                f"the data are no message of their Protobuf schema: {' '.join(str(error).split())[:200]}",
                "undecodable",
            ) from None
        record: dict[str, Any] = self._convert(message)
        return record

    def estimate(self, data: bytes, start: int) -> int:
        """Most bytes of memory that reading the message takes; never raises."""
        length = len(data) - start
        taken, most = self.flat + _CONTENT * length, self.flat + self.per_byte * length
        if most <= ROUGHLY_BYTES:
            return most
        walk = _Walk(data, self._weights)
        if walk.message(self._descriptor, start, len(data), 0):
            return min(taken + walk.bytes, most)
        return most


class _Weights:
    """Most memory of each type of message, beside its content."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self.per_byte = _PACKED

    def of(self, descriptor: Any) -> int:
        """Bytes of a message of which no field is set; goes into the types of its fields."""
        name = descriptor.full_name
        if name not in self._known:
            count = len(descriptor.fields)
            self._known[name] = 160 + sys.getsizeof(dict.fromkeys(range(count))) + 56 * count
            for field in descriptor.fields:
                if field.message_type is not None:
                    # a tag and a length are its least bytes
                    inner = self.of(field.message_type) + _ELEMENT
                    self.per_byte = max(self.per_byte, _CONTENT + -(-inner // 2))
        return self._known[name]


class _Walk:
    """Adds up the messages and elements in a record without parsing it."""

    def __init__(self, data: bytes, weights: _Weights) -> None:
        self._data = data
        self._weights = weights
        self._left = STEPS
        self.bytes = 0

    def message(self, descriptor: Any, start: int, stop: int, depth: int) -> bool:
        """Go over one message; False if it is damaged, too deep or has too many fields."""
        fields = descriptor.fields_by_number
        position = start
        for tag, begin, end in _fields(self._data, start, stop):
            self._left -= 1
            if self._left < 0 or tag < 0 or depth > _DEEPEST:
                return False
            position = end
            field = fields.get(tag >> 3)
            if field is None:
                continue
            inner = field.message_type
            if inner is not None:
                self.bytes += self._weights.of(inner) + (_ENTRY if inner.GetOptions().map_entry else _ELEMENT)
                if tag & 7 == 2 and not self.message(inner, begin, end, depth + 1):
                    return False
            elif field.is_repeated:
                packed = tag & 7 == 2 and field.type not in (9, 12)
                size = _FIXED.get(field.type, 1)
                self.bytes += _PACKED * (-(-(end - begin) // size)) if packed else _ELEMENT
        return position == stop


def _fields(data: bytes, position: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of each field of a message; a tag of -1 where it is damaged."""
    while position < stop:
        tag, position = _varint(data, position, stop)
        kind = tag & 7
        begin = position
        if kind == 0:
            _, position = _varint(data, position, stop)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        elif kind == 2:
            length, begin = _varint(data, position, stop)
            position = begin + length
        else:  # groups are rare, and not worth a walk
            position = stop + 1
        if position > stop or tag < 0:
            yield -1, begin, stop
            return
        yield tag, begin, position


def _varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return -1, stop + 1


def file_of(text: str) -> Any:
    """The ``FileDescriptorProto`` that a schema's text stands for.

    Raises:
        Reject: ``invalid``: it is neither serialised nor the text of a ``.proto`` file.
    """
    from google.protobuf import descriptor_pb2, message

    file = descriptor_pb2.FileDescriptorProto()
    try:
        file.ParseFromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, message.DecodeError):
        return proto_text.parse(text)
    return file


def _known_file(name: str) -> Any:
    """A file that comes with Protobuf or with the registry's client."""
    from google.protobuf import descriptor_pb2

    if not _FREELY_KNOWN.fullmatch(name):
        raise Reject(f"it imports {name}, which the registry does not give")
    module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
    if module.startswith("confluent."):
        module = f"confluent_kafka.schema_registry.{module}"
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise Reject(
            f"it imports {name}, which is not installed: pip install googleapis-common-protos"
        ) from None
    file = descriptor_pb2.FileDescriptorProto()
    file.ParseFromString(found.DESCRIPTOR.serialized_pb)
    return file


def _well_known(name: str) -> Convert | None:
    """What makes a value of a well-known type; None for any other type."""
    if not name.startswith("google.protobuf."):
        return None
    if name in _WRAPPERS:
        return attrgetter("value")
    found: dict[str, Convert] = {
        "google.protobuf.Timestamp": _milliseconds,
        "google.protobuf.Duration": lambda message: message.seconds + message.nanos / 1e9,
        "google.protobuf.Struct": lambda message: _struct(message, 0),
        "google.protobuf.Value": lambda message: _value(message, 0),
        "google.protobuf.ListValue": lambda message: [_value(value, 0) for value in message.values],
    }
    return found.get(name)


def _milliseconds(message: Any) -> float:
    """A time as Unix milliseconds: an integer if it is whole."""
    whole, rest = divmod(message.nanos, 1_000_000)
    milliseconds: int = message.seconds * 1000 + whole
    return milliseconds + rest / 1e6 if rest else milliseconds


def _struct(message: Any, depth: int) -> dict[str, Any]:
    return {key: _value(value, depth) for key, value in message.fields.items()}


def _value(message: Any, depth: int) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return _struct(message.struct_value, depth + 1)
    if kind == "list_value":
        return [_value(value, depth + 1) for value in message.list_value.values]
    return None if kind in (None, "null_value") else getattr(message, kind)
