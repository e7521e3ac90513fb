"""A model's identity: one SHA-256 over its file, then its external data files in name order."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

# Which fields of an ONNX message lead to tensors: message -> {field number: message}. Everything else is stepped
# over, so the walk never touches the weights themselves.
_PATHS_TO_TENSORS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data entry"},
}
_CHUNK_BYTES = 1 << 20


def model_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 over everything the model consists of.

    External data files that do not exist are left out: loading the model is what reports them.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    external = (path.parent / location for location in external_locations(path))
    for part in (path, *(file for file in external if file.is_file())):
        with part.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def external_locations(path: Path) -> list[str]:
    """The distinct external data files a model file names, sorted; relative to its folder.

    Reads the protobuf by hand because the ``onnx`` package is far too much to install for one question. A file
    that is no protobuf has no external data: loading it will say what is wrong.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return sorted(set(_locations(content, 0, len(content), "model")))
            except (ValueError, IndexError):
                return []


def _locations(content: mmap.mmap, start: int, stop: int, message: str) -> Iterator[str]:
    """Yields the value of each ``location`` entry below the message that lies in ``start..stop``."""
    if message == "external data entry":
        entry = {number: content[begin:end] for number, begin, end in _fields(content, start, stop)}
        if entry.get(1) == b"location":
            yield entry[2].decode()
        return
    children = _PATHS_TO_TENSORS[message]
    for number, begin, end in _fields(content, start, stop):
        if number in children:
            yield from _locations(content, begin, end, children[number])


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, start, stop) of each length-delimited field of one protobuf message.

    Raises:
        ValueError: this is no protobuf message.
    """
    while start < stop:
        tag, start = _varint(content, start)
        wire_type = tag & 7
        if wire_type == 0:
            _, start = _varint(content, start)
        elif wire_type == 1:
            start += 8
        elif wire_type == 5:
            start += 4
        elif wire_type == 2:
            length, start = _varint(content, start)
            if start + length > stop:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, start, start + length
            start += length
        else:
            raise ValueError(f"wire type {wire_type}")


def _varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    """One base-128 number and where it ends."""
    value = shift = 0
    while (byte := content[start]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        start += 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | byte << shift, start + 1
