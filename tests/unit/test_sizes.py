"""What a record takes in memory and on the wire."""

from __future__ import annotations

import pytest
from fakes import columns_of

from worker.batch import Columns, Headers, Partition
from worker.sizes import held_bytes, largest_wire_bytes, wire_bytes

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def record(value: bytes, key: bytes | None = None, headers: Headers | None = None) -> Columns:
    columns = columns_of(Partition("in", 0), [0], [value])
    columns.keys, columns.headers = [key], [headers]
    return columns


def test_a_record_holds_its_value_key_headers_and_their_objects() -> None:
    """Every byte of a value, a key, a header name and a header value counts; no records hold nothing."""
    small = held_bytes(record(b"x"))
    assert held_bytes(record(b"x" * 101)) - small == 100
    assert held_bytes(record(b"x", b"k" * 10)) - small == 10
    assert held_bytes(record(b"x", None, [("name", b"value")])) - small > len("namevalue")
    one = held_bytes(record(b"x", None, [("n", b"")]))
    assert held_bytes(record(b"x", None, [("n" * 1_000, b"")])) - one == 999
    assert held_bytes(Columns()) == 0


def test_a_header_name_outside_ascii_counts_as_the_memory_it_takes() -> None:
    """One wide character makes Python keep every character of the name in four bytes."""
    name = "a" * 1_000 + "\U0001f600"
    assert held_bytes(record(b"x", None, [(name, b"")])) - held_bytes(record(b"x")) >= 4 * len(name)


def test_the_wire_takes_key_value_and_headers() -> None:
    """A record's size on the wire counts each part in bytes of UTF-8, and a bit of framing for it."""
    bare = wire_bytes(None, None, None)
    assert 0 < bare < 1_000
    assert wire_bytes(b"k" * 10, b"v" * 100, None) == bare + 110
    assert wire_bytes(None, None, [("\u00e9", b"1"), ("n", None)]) > bare + 4


def test_the_largest_record_is_bounded_without_a_look_at_each() -> None:
    """The bound is at least what any of the records takes."""
    keys, values = [b"k" * 50, None], [b"v", b"v" * 90]
    headers: list[Headers | None] = [None, [("n", b"x" * 20)]]
    bound = largest_wire_bytes(keys, values, headers)
    assert bound >= max(wire_bytes(*row) for row in zip(keys, values, headers, strict=True))
