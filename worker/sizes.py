"""What a record takes: on the wire, where its topic has a limit, and in memory, where the byte budget has one."""

from __future__ import annotations

from collections.abc import Sequence

from worker.batch import Columns, Headers, largest_bytes, total_bytes

WIRE_RECORD_BYTES = 128
"""Batch and record framing of a single record in Kafka's format v2, rounded up generously."""
WIRE_HEADER_BYTES = 10
"""Framing of one header, rounded up."""
HELD_RECORD_BYTES = 512
"""The Python objects of a record beside its payload (measured: about 450 bytes without headers)."""
HELD_HEADER_BYTES = 128
"""The Python objects of one header beside its text."""


def wire_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """What one record takes of its topic's ``max.message.bytes``, generously."""
    return len(key or b"") + len(value or b"") + wire_headers_bytes(headers) + WIRE_RECORD_BYTES


def wire_headers_bytes(headers: Headers | None) -> int:
    """The share of :func:`wire_bytes` that the headers have."""
    return sum(
        WIRE_HEADER_BYTES + len(name if name.isascii() else name.encode(errors="replace")) + len(value or b"")
        for name, value in headers or ()
    )


def largest_wire_bytes(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers | None] | None
) -> int:
    """An upper bound of what the largest of these records takes on the wire, without a look at each record."""
    return (
        largest_bytes(keys)
        + largest_bytes(values)
        + max(map(wire_headers_bytes, filter(None, headers or ())), default=0)
        + WIRE_RECORD_BYTES
    )


def unbounded_bytes(keys: Sequence[bytes | None], headers: Sequence[Headers | None] | None) -> int:
    """Keys and headers of outputs that a producer holds: its queue limit counts values only."""
    return total_bytes(keys) + sum(map(wire_headers_bytes, filter(None, headers or ())))


def largest_record_bytes(columns: Columns) -> int:
    """An upper bound of the largest key, value and headers of one record, without a look at each."""
    return (
        largest_bytes(columns.keys)
        + largest_bytes(columns.values)
        + max(map(_held_headers_bytes, filter(None, columns.headers)), default=0)
    )


def held_bytes(columns: Columns) -> int:
    """What records hold in memory while they are in flight: values, keys, headers and the objects around them."""
    return (
        total_bytes(columns.values)
        + total_bytes(columns.keys)
        + sum(map(_held_headers_bytes, filter(None, columns.headers)))
        + HELD_RECORD_BYTES * len(columns)
        + sum(len(fetched.payload or b"") for fetched in columns.fetched or ())
    )


def _held_headers_bytes(headers: Headers) -> int:
    # A name that is not ASCII may have 4 bytes per character in memory, whatever it has on the wire.
    return sum(
        HELD_HEADER_BYTES + len(name) * (1 if name.isascii() else 4) + len(value or b"")
        for name, value in headers
    )
