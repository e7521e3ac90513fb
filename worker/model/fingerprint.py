"""A model's identity: one SHA-256 over its file, then its external data files in name order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from worker.model.protobuf import Content, content_of, fields

# Which fields of an ONNX message lead to tensors: message -> {field number: message}. The walk steps over everything
# else, so it never touches the weights.
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
    """Hexadecimal SHA-256 over the model file and its external data files.

    External data files that do not exist are left out: loading the model reports them.

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


def files_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 over a file, or over the names and contents of all files below a folder.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return _file_sha256(path)
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")):
        if each.is_file():
            digest.update(f"{_file_sha256(each)}  {each.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def external_locations(path: Path) -> list[str]:
    """The distinct external data files that a model file names, sorted, relative to its folder.

    A file that is no protobuf has no external data: loading it says what is wrong.
    """
    with content_of(path) as content:
        try:
            return sorted(set(_locations(content, 0, len(content), "model")))
        except (ValueError, IndexError):
            return []


def _locations(content: Content, start: int, stop: int, message: str) -> Iterator[str]:
    """Yields the value of each ``location`` entry below the message that lies in ``start..stop``."""
    if message == "external data entry":
        entry = {number: content[begin:end] for number, begin, end in fields(content, start, stop)}
        if entry.get(1) == b"location":
            yield entry[2].decode()
        return
    children = _PATHS_TO_TENSORS[message]
    for number, begin, end in fields(content, start, stop):
        if number in children:
            yield from _locations(content, begin, end, children[number])
