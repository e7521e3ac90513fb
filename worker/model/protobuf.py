"""Reading protobuf messages by hand, field by field, without touching what is stepped over.

The ``onnx`` package is far too much to install for the few questions that the worker has about a model file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Content = mmap.mmap | bytes


@contextmanager
def content_of(path: Path) -> Iterator[Content]:
    """The bytes of a file, mapped into memory.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def fields(content: Content, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, start, stop) of each length-delimited field of the message in ``start..stop``.

    Raises:
        ValueError: this is no protobuf message.
        IndexError: it ends early.
    """
    for number, value in entries(content, start, stop):
        if isinstance(value, range):
            yield number, value.start, value.stop


def entries(content: Content, start: int, stop: int) -> Iterator[tuple[int, int | range]]:
    """Yields (field number, value) of each field: a number, or where the bytes of a length-delimited field lie.

    Numbers of fixed width are left out.

    Raises:
        ValueError: this is no protobuf message.
        IndexError: it ends early.
    """
    while start < stop:
        tag, start = _varint(content, start)
        wire_type = tag & 7
        if wire_type == 0:
            value, start = _varint(content, start)
            yield tag >> 3, value
        elif wire_type == 1:
            start += 8
        elif wire_type == 5:
            start += 4
        elif wire_type == 2:
            length, start = _varint(content, start)
            if start + length > stop:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, range(start, start + length)
            start += length
        else:
            raise ValueError(f"wire type {wire_type}")


def packed(content: Content, start: int, stop: int) -> list[int]:
    """The numbers of a packed field, unsigned."""
    values = []
    while start < stop:
        value, start = _varint(content, start)
        values.append(value)
    return values


def _varint(content: Content, start: int) -> tuple[int, int]:
    """One base-128 number and where it ends."""
    value = shift = 0
    while (byte := content[start]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        start += 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | byte << shift, start + 1
