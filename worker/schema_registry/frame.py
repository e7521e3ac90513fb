"""Where a record says which schema it was written with: a header, or a prefix of its value.

The forms are those of Confluent's clients. Prefix and header hold the same: a zero byte and the schema's id in four bytes,
big-endian; or a byte of 1 and the schema's GUID in 16 bytes. The header counts if it is there.
"""

from __future__ import annotations

import struct
import uuid

from worker.batch import Headers
from worker.errors import Reject

HEADER = "__value_schema_id"
SchemaKey = int | str
"""A schema's id, or its GUID in lower case with hyphens."""
_ID, _GUID = 0, 1
ID_BYTES, GUID_BYTES = 5, 17
"""Length of the two forms."""
_MOST_INDEXES = 64
"""Protobuf messages are nested less deeply than this."""


def split(value: bytes, headers: Headers | None) -> tuple[SchemaKey, int]:
    """A record's schema, and where the data begin in its value.

    Raises:
        Reject: ``undecodable``: neither a header nor a prefix names a schema.
    """
    if headers:
        named = _named(headers)
        if named is not None:
            return _key(named, f"the header {HEADER}"), 0
    if value[:1] == b"\0" and len(value) >= ID_BYTES:
        return int.from_bytes(value[1:ID_BYTES], "big"), ID_BYTES
    return _key(value, "the value"), GUID_BYTES


def split_protobuf(value: bytes, headers: Headers | None) -> tuple[SchemaKey, tuple[int, ...], int]:
    """The same for Protobuf, where the indexes of the message's type follow the id: (schema, indexes, where the data begin).

    Raises:
        Reject: ``undecodable``.
    """
    key, start = split(value, headers)
    if start:
        indexes, start = _indexes(value, start)
        return key, indexes, start
    named = _named(headers or []) or b""
    length = ID_BYTES if named[:1] == b"\0" else GUID_BYTES
    return key, _indexes(named, length)[0], 0


def prefix_of(number: int, indexes: bytes = b"") -> bytes:
    """The prefix of values that were written with a schema of this id."""
    return struct.pack(">bI", _ID, number) + indexes


def header_of(guid: str, indexes: bytes = b"") -> bytes:
    """The header's value for a schema of this GUID."""
    return bytes([_GUID]) + uuid.UUID(guid).bytes + indexes


def _named(headers: Headers) -> bytes | None:
    """The value of the first such header, as the clients take it; an empty one does not count."""
    return next((value for name, value in headers if name == HEADER and value), None)


def _key(data: bytes, where: str) -> SchemaKey:
    if data[:1] == b"\0" and len(data) >= ID_BYTES:
        return int.from_bytes(data[1:ID_BYTES], "big")
    if data[:1] == b"\1" and len(data) >= GUID_BYTES:
        return str(uuid.UUID(bytes=data[1:GUID_BYTES]))
    raise Reject(
        f"{where} names no schema: expected a zero byte and an id of 4 bytes, or a byte of 1 and a GUID of 16 bytes",
        "undecodable",
    )


def _indexes(data: bytes, start: int) -> tuple[tuple[int, ...], int]:
    """Which message of a Protobuf file: the index at each level. A count of 0 stands for the first message."""
    count, start = _varint(data, start)
    if count == 0:
        return (0,), start
    if not 0 < count <= _MOST_INDEXES:
        raise Reject(f"the frame holds {count} message indexes, expected 1 to {_MOST_INDEXES}", "undecodable")
    indexes = []
    for _ in range(count):
        index, start = _varint(data, start)
        indexes.append(index)
    return tuple(indexes), start


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """A zigzag integer, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        byte = data[start] if start < len(data) else -1
        if byte < 0:
            break
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), start
    raise Reject("the message indexes of the frame are not whole", "undecodable")
