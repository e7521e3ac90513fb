"""What ``produce`` and ``bench`` send: a file, a folder, the rows of a table, the frames of a film, lines of text.

A kind of file is one entry of ``KINDS``: the endings it has and the function that reads it.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import orjson

from worker.batch import Headers
from worker.errors import ConfigError, Reject
from worker.filesystem import RECORD_MAX, is_dir, is_file, read_bytes
from worker.records import paths

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mjpeg"})
SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
LINES = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".csv", ".tsv"})
TEXTS = frozenset({".txt"})
WHOLE = (IMAGES, SOUNDS, frozenset({".npy"}), frozenset({".json"}), TEXTS)
"""Kinds of file that are one record as they are; a folder is read for the first of these that it holds."""
NAME_FIELD = "name"
"""Names that ``--key`` accepts for a file that is sent whole, or for a frame."""
FRAME_HEADER, TIME_HEADER = "streaminfer.frame", "streaminfer.time_ms"
"""Headers of a video's frame: its number from 0, and its place in the film in milliseconds."""
DELIMITERS = ",;\t|"
"""Separators that a table's cells may have; the one that occurs most often in the first line is used."""
JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class Item(NamedTuple):
    """One record to send."""

    value: bytes
    key: bytes | None
    headers: Headers = []  # noqa: RUF012 - a tuple's default, never changed


class Source(NamedTuple):
    """Something that can be read for records, more than once unless it is standard input."""

    name: str
    read: Callable[[], Iterator[Item]]
    left_out: str = ""
    """Which files of a folder are not sent, as a sentence; empty when all are."""
    repeats: bool = True
    total: int | None = None
    """How many records it has; None where nobody knows before it is read."""
    notes: tuple[str, ...] = ()
    """How it is understood, where that may be wrong; a sentence each."""


def opened_all(names: Sequence[str], key: str | None, raw: bool = False, recursive: bool = False) -> Source:
    """Several sources as one, in their order; a name with ``*``, ``?`` or ``[...]`` stands for files.

    Raises:
        ConfigError: as :func:`opened`, or a pattern that no file matches.
    """
    sources = [opened(each, key, raw, recursive) for name in names for each in _matching(name)]
    if len(sources) == 1:
        return sources[0]
    totals = [each.total for each in sources]
    left_out = "; ".join(f"{each.name}: {each.left_out}" for each in sources if each.left_out)
    return Source(
        f"{len(sources)} sources",
        lambda: (item for each in sources for item in each.read()),
        left_out,
        all(each.repeats for each in sources),
        None if None in totals else sum(total for total in totals if total is not None),
        tuple(note for each in sources for note in each.notes),
    )


def _matching(name: str) -> list[str]:
    """The files of a pattern that the shell has left as it is; anything else itself."""
    if name == "-" or not glob.has_magic(name) or os.path.exists(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise ConfigError(f"{name}: no file matches")
    return found


def opened(name: str, key: str | None, raw: bool = False, recursive: bool = False) -> Source:
    """What ``name`` stands for.

    Args:
        name: a path, or ``-`` for standard input.
        key: the column, field or ``name`` that becomes the key of each record.
        raw: send every file as one record, whatever its ending is.
        recursive: of a folder, also the files of the folders inside it.

    Raises:
        ConfigError: it does not exist or is of no known kind. Faults inside are raised while reading.
    """
    if name == "-":
        if raw:
            return Source(
                "standard input", lambda: iter([Item(sys.stdin.buffer.read(), None)]), repeats=False
            )
        return Source(
            "standard input", lambda: _lines(sys.stdin.buffer, "standard input", key), repeats=False
        )
    path = Path(name)
    if is_dir(path):
        return _folder(path, key, raw, recursive)
    if not is_file(path):
        raise ConfigError(f"{name}: no such file or folder")
    if raw:
        return Source(name, lambda: iter([_whole(path, key)]), total=1)
    for endings, read in KINDS.items():
        if path.suffix.lower() in endings:
            total = 1 if any(endings <= whole for whole in WHOLE) and endings != TEXTS else None
            notes = _table_notes(path) if endings == TABLES else ()
            return Source(name, partial(read, path, key), total=total, notes=notes)
    known = ", ".join(sorted(ENDINGS))
    raise ConfigError(
        f"{name}: expected a folder, - or a file that ends in one of {known}; --raw sends any file as it is"
    )


def _folder(path: Path, key: str | None, raw: bool, recursive: bool) -> Source:
    """The files of a folder that are one record each, in the order of their names."""
    inside = path.rglob("*") if recursive else path.iterdir()
    there = sorted(
        file
        for file in inside
        if is_file(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = there
    if not raw:
        by_kind = ([f for f in there if f.suffix.lower() in endings] for endings in WHOLE)
        files = next(filter(None, by_kind), [])
    if not files:
        expected = (
            "at least one file"
            if raw
            else f"images, sounds or other files of one record each ({_whole_endings()})"
        )
        hint = "" if raw else "; --raw sends every file as it is"
        if not recursive and any(is_dir(each) for each in path.iterdir()):
            hint += "; --recursive looks into its folders, too"
        raise ConfigError(f"{path}: expected {expected} in the folder, found none{hint}")
    return Source(
        str(path), lambda: (_whole(file, key) for file in files), _left_out(there, files), total=len(files)
    )


def _left_out(there: list[Path], files: list[Path]) -> str:
    """Which files of a folder are not sent: how many of each ending."""
    others = Counter(file.suffix.lower() or "no ending" for file in set(there) - set(files))
    if not others:
        return ""
    kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(others.items()))
    total = others.total()
    return f"{total} of {len(there)} files left out ({kinds}); --raw sends every file as it is"


def _whole_endings() -> str:
    return ", ".join(sorted(ending for endings in WHOLE for ending in endings))


def _whole(path: Path, key: str | None) -> Item:
    """One file as one record."""
    try:
        return Item(read_bytes(path, RECORD_MAX), _name_key(path, key))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _name_key(path: Path, key: str | None) -> bytes | None:
    if key is None:
        return None
    if key != NAME_FIELD:
        raise ConfigError(
            f"--key {key}: a file that is sent whole has no fields; expected {NAME_FIELD}, its file name"
        )
    return path.name.encode()


def _frames(path: Path, key: str | None) -> Iterator[Item]:
    """A video's frames as JPEG, each with its number and its time in headers."""
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # produce says itself, once, what is wrong with a file
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ConfigError(f"{path}: cannot be read as a video")
        name, number = _name_key(path, key), 0
        while True:
            there, frame = video.read()
            if not there:
                return
            time_ms = video.get(cv2.CAP_PROP_POS_MSEC)  # of the frame that was just read
            _, encoded = cv2.imencode(".jpg", frame)
            place: Headers = [
                (FRAME_HEADER, str(number).encode()),
                (TIME_HEADER, str(round(time_ms, 3)).encode()),
            ]
            yield Item(encoded.tobytes(), name, place)
            number += 1
    finally:
        video.release()


def _table_notes(path: Path) -> tuple[str, ...]:
    """What is taken for the separator and the names of a table, where the first line leaves a doubt."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        return ()  # reading the rows says what is wrong
    separator = max(DELIMITERS, key=first.count)
    names = next(csv.reader([first], delimiter=separator), [])
    shown = {"\t": "tab"}.get(separator, separator)
    notes = []
    if names and all(JSON_NUMBER.fullmatch(name.strip()) for name in names):
        notes.append(
            f"{path}: the first line has numbers only, and is taken for the names of the columns: {', '.join(names)}"
        )
    if first and not first.count(separator):
        notes.append(f"{path}: one column, {names[0]}: the first line has none of , ; tab |")
    elif first and separator != ",":
        notes.append(f"{path}: {len(names)} columns separated by {shown}: {', '.join(names)}")
    return tuple(notes)


def _rows(path: Path, key: str | None) -> Iterator[Item]:
    """Each row as a JSON object; a cell with the text of a JSON number becomes that number, digit for digit."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(DELIMITERS, key=first.count))
            names = next(rows, [])
            if key is not None and key not in names:
                raise ConfigError(f"--key {key}: {path} has no such column; it has {', '.join(names)}")
            labels = [json.dumps(name) for name in names]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise ConfigError(
                        f"{path} line {rows.line_num}: expected {len(names)} cells as in the first line, "
                        f"found {len(row)}"
                    )
                body = ", ".join(f"{label}: {_cell(cell)}" for label, cell in zip(labels, row, strict=True))
                yield Item(f"{{{body}}}".encode(), row[names.index(key)].encode() if key else None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from None


def _cell(text: str) -> str:
    text = text.strip()
    if not text:
        return "null"
    return text if JSON_NUMBER.fullmatch(text) else json.dumps(text)


def _lines_of_file(path: Path, key: str | None) -> Iterator[Item]:
    try:
        with path.open("rb") as file:
            yield from _lines(file, str(path), key)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(file: Iterable[bytes], name: str, key: str | None) -> Iterator[Item]:
    """Each line as it is, without its end; empty lines are left out."""
    for number, line in enumerate(file, 1):
        value = line.rstrip(b"\r\n")
        if value:
            yield Item(value, _field(value, key, f"{name} line {number}") if key is not None else None)


def _document(path: Path, key: str | None) -> Iterator[Item]:
    """A JSON file as one record, unchanged; its key is a field of it, or its file name."""
    item = _whole(path, None)
    if key == NAME_FIELD:
        yield Item(item.value, path.name.encode())
    else:
        yield Item(item.value, _field(item.value, key, str(path)) if key is not None else None)


def _field(value: bytes, key: str, where: str) -> bytes | None:
    """A field of a JSON object as text: a string as it is, null as no key, anything else as JSON."""
    try:
        document = orjson.loads(value)
        found = paths.Path.of(key).find(document) if isinstance(document, dict) else paths.ABSENT
    except orjson.JSONDecodeError:
        raise ConfigError(f"{where}: --key {key} needs a JSON object, this is not JSON") from None
    except Reject:
        found = paths.ABSENT
    if found is paths.ABSENT:
        raise ConfigError(f"{where}: expected a JSON object with the field {key} (--key)")
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else orjson.dumps(found)


KINDS: dict[frozenset[str], Callable[[Path, str | None], Iterator[Item]]] = {
    IMAGES: lambda path, key: iter([_whole(path, key)]),
    SOUNDS: lambda path, key: iter([_whole(path, key)]),
    VIDEOS: _frames,
    TABLES: _rows,
    LINES: _lines_of_file,
    TEXTS: _lines_of_file,
    frozenset({".npy"}): lambda path, key: iter([_whole(path, key)]),
    frozenset({".json"}): _document,
}
ENDINGS = frozenset(ending for endings in KINDS for ending in endings)
"""Endings of all files whose content is read."""
