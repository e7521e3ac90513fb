"""The golden set: records with the answers that a version of a model must give before it answers anybody else."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from worker.batch import Batch, Columns, Headers, Partition
from worker.errors import Reject, StartError
from worker.filesystem import RECORD_MAX, read_bytes
from worker.serving.differences import differences
from worker.serving.engine import Engine
from worker.serving.route import Route
from worker.serving.servable import Servable

ANSWERS = ("prediction", "predictions", "outputs")
"""Parts of a JSON result that a line may give."""
_RECORDS = ("value", "text", "base64", "file")


def check_golden(path: Path, route: Route, servable: Servable, tolerance: float) -> int:
    """Answer the records of a golden set, and compare; returns how many there are.

    Each line is a JSON object. ``value`` is the record as JSON, ``text`` as text, ``base64`` as bytes, or ``file`` names a
    file beside the golden set; ``headers`` is a mapping of names to texts. ``prediction`` (or ``predictions``, ``outputs``)
    is what the result must have there.

    Args:
        tolerance: largest difference between two numbers.

    Raises:
        StartError: the file cannot be read, or an answer is another one; names the line.
    """
    lines = 0
    for number, line in _lines(path):
        where = f"{path} line {number}"
        value, headers, expected = _entry(line, path.parent, where)
        result = _answer(route, servable, value, headers, where)
        for part, wanted in expected.items():
            got = result.get(part) if isinstance(result, dict) else None
            for difference in differences(wanted, got, part, tolerance):
                raise StartError(f"{where}: {difference}")
        lines += 1
    if not lines:
        raise StartError(
            f"{path} is empty; expected records with their predictions, one JSON object per line"
        )
    return lines


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise StartError(f"model.golden: {path} cannot be read: {error.strerror}") from None


def _entry(line: bytes, folder: Path, where: str) -> tuple[bytes, Headers | None, dict[str, Any]]:
    """The record of a line, its headers, and the parts of the result that are known."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise StartError(f"{where} is not JSON: {error}") from None
    kinds = [kind for kind in _RECORDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise StartError(f"{where}: expected an object with one of {', '.join(_RECORDS)}")
    expected = {part: entry[part] for part in ANSWERS if part in entry}
    if not expected:
        raise StartError(f"{where}: expected one of {', '.join(ANSWERS)}")
    given = entry[kinds[0]]
    if kinds[0] == "value":
        value = orjson.dumps(given)
    elif not isinstance(given, str):
        raise StartError(f"{where}: {kinds[0]}: expected text")
    elif kinds[0] == "text":
        value = given.encode()
    elif kinds[0] == "base64":
        try:
            value = base64.b64decode(given, validate=True)
        except binascii.Error:
            raise StartError(f"{where}: base64: expected base64 text") from None
    else:
        try:
            value = read_bytes(folder / given, RECORD_MAX)
        except OSError as error:
            raise StartError(f"{where}: {folder / given} cannot be read: {error.strerror}") from None
    headers = entry.get("headers") or {}
    if not isinstance(headers, dict):
        raise StartError(f"{where}: headers: expected names with a text each")
    return value, [(str(name), str(text).encode()) for name, text in headers.items()] or None, expected


def _answer(route: Route, servable: Servable, value: bytes, headers: Headers | None, where: str) -> Any:
    """The result of one record, parsed."""
    now_ms = time.time() * 1000
    source = Partition(route.topics.example, 0)
    columns = Columns([value], [None], [headers], [int(now_ms)], [0], [source])
    batch = Batch(None, range(1), columns, route, servable, time.monotonic_ns(), now_ms)
    engine = Engine()
    try:
        servable.cost(value)
        for start, stop in engine.shards(batch):
            engine.decode(batch, start, stop)
        engine.infer(batch)
        if batch.sick is None:
            engine.finish(batch)
    except Reject as error:
        raise StartError(f"{where}: {error.reason}: {error}") from None
    if batch.sick is not None:
        raise StartError(f"{where}: {batch.sick}")
    assert batch.outcomes is not None
    for rejection in batch.outcomes.rejected.values():
        raise StartError(f"{where}: {rejection.reason}: {rejection.message}")
    try:
        return orjson.loads(batch.outcomes.bodies[0] or b"")
    except orjson.JSONDecodeError:
        raise StartError(
            f"{where}: the result is not JSON; a golden set needs output.format json or oip"
        ) from None
