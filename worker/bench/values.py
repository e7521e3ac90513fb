"""The records of a load: a file of lines, a table, pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import orjson

from worker.errors import ConfigError

MOST_BYTES = 256 << 20
"""Records are kept in memory and sent round and round; beyond this the rest of the source is left out."""
LARGEST_INTEGER = 1 << 63
"""A larger number in a table is somebody's identifier and stays text."""


def read_values(source: Path) -> list[bytes]:
    """Record values from JSONL (each line), CSV (each row as a JSON object), one file or a folder of files (each whole).

    Raises:
        ConfigError: the source is missing, cannot be read, or holds no record.
    """
    try:
        values = _read(source)
    except FileNotFoundError:
        raise ConfigError(f"--source: {source} does not exist; expected a file or a folder") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--source: {source} cannot be read: {error}") from None
    if not values:
        raise ConfigError(f"--source: {source} holds no record; expected at least one")
    return values


def _read(source: Path) -> list[bytes]:
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name[0] != ".")
        return _within_memory(files)
    if source.suffix == ".jsonl":
        return [line for line in source.read_bytes().splitlines() if line.strip()]
    if source.suffix == ".csv":
        with source.open(newline="", encoding="utf-8") as table:
            return [
                orjson.dumps({name: _number(text) for name, text in row.items()})
                for row in csv.DictReader(table)
            ]
    return [source.read_bytes()]


def _within_memory(files: list[Path]) -> list[bytes]:
    values: list[bytes] = []
    size = 0
    for path in files:
        values.append(path.read_bytes())
        size += len(values[-1])
        if size > MOST_BYTES:
            break
    return values


def _number(text: str | None) -> str | float | int | None:
    """A CSV cell as the number it says, where it is one that JSON can say."""
    for kind in (int, float):
        try:
            number = kind(text or "")
        except ValueError:
            continue
        if math.isfinite(number) and abs(number) < LARGEST_INTEGER:
            return number
    return text
