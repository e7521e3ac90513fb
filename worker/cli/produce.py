"""``streaminfer produce``: images, a video's frames, CSV rows or lines into a topic."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import orjson

from worker import settings as configuration
from worker.batch import Headers
from worker.cli.connect import above_zero, add_property_option, at_least_one, connection, pair
from worker.cli.main import add_set_option
from worker.errors import ConfigError
from worker.kafka.tools import TopicWriter

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mjpeg"})
LINES = frozenset({".jsonl", ".ndjson"})
NAME_FIELD = "name"
"""What ``--key`` can name of an image or a frame."""
JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
PACE_S = 0.1
"""Acknowledgements are served at least this often while waiting for the next record's turn."""

EXAMPLE = """\
examples:
  streaminfer produce frames/ --topic digits --bootstrap localhost:9092 --rate 20
  streaminfer produce rows.csv --topic houses --config houses.yaml --key id --header source=test
  cat records.jsonl | streaminfer produce - --topic houses --bootstrap localhost:9092"""


class Item(NamedTuple):
    """One record to send."""

    value: bytes
    key: bytes | None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send an image, a folder of images, a video, CSV, JSONL or standard input to a topic."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an image, a folder of images, a video (its frames as JPEG), .csv (each row a JSON object), .jsonl "
        "(each line as it is), or - (lines of standard input)",
    )
    parser.add_argument("--topic", required=True)
    parser.add_argument("--bootstrap", metavar="H:P", help="the broker")
    parser.add_argument(
        "--config", metavar="CONFIG", type=Path, help="take the broker from the worker's YAML file"
    )
    parser.add_argument(
        "--rate", type=above_zero, metavar="R", help="records per second (default: as fast as it goes)"
    )
    parser.add_argument(
        "--count",
        type=at_least_one,
        metavar="N",
        help="how many records; a shorter source is repeated (default: the source once)",
    )
    parser.add_argument(
        "--key", metavar="FIELD", help="CSV column or JSON field that becomes the key; for images: name"
    )
    parser.add_argument(
        "--header", dest="headers", metavar="K=V", action="append", default=[], help="may be repeated"
    )
    add_property_option(parser)
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Send everything and wait for the acknowledgements.

    Raises:
        ConfigError: options that do not go together; a source that is missing or not understood.
        StartError: no broker, no such topic, or a record that was not delivered.
    """
    if (args.bootstrap is None) == (args.config is None):
        raise ConfigError("produce: expected one of --bootstrap and --config")
    headers: Headers = [(name, value.encode()) for name, value in (pair("--header", h) for h in args.headers)]
    items = _repeated(opened(args.source, args.key), args.source, args.count)
    items = chain([next(items)], items)  # what is wrong with the source is found before anyone is called
    settings = configuration.load(args.config, args.overrides) if args.config is not None else None
    client = connection("streaminfer-produce", args.bootstrap, args.properties, settings)
    writer = TopicWriter(client, args.topic)
    with _progress(args.count) as show:
        _send(writer, items, headers, args.rate, show)
        for _left in writer.finish():
            show(writer.acknowledged)
        show(writer.acknowledged)
    print(f"{writer.acknowledged} record{'s' * (writer.acknowledged != 1)} sent to {args.topic}")
    return 0


def _send(
    writer: TopicWriter,
    items: Iterator[Item],
    headers: Headers,
    rate: float | None,
    show: Callable[[int], None],
) -> None:
    """Send at the wanted rate, measured from the start: a record that was late does not delay the next."""
    started = time.monotonic()
    for number, item in enumerate(items):
        if rate is not None:
            while (wait_s := started + number / rate - time.monotonic()) > 0:
                writer.poll(0.0)
                show(writer.acknowledged)
                time.sleep(min(wait_s, PACE_S))
        writer.send(item.value, item.key, headers)
        if number % 100 == 0:
            show(writer.acknowledged)


def _repeated(read: Callable[[], Iterator[Item]], source: str, count: int | None) -> Iterator[Item]:
    """The source once, or as often as it takes to make ``count`` records (standard input cannot be repeated)."""
    sent = 0
    while True:
        before = sent
        for item in read():
            if count is not None and sent >= count:
                return
            yield item
            sent += 1
        if sent == 0:
            raise ConfigError(f"{source}: expected at least one record, found none")
        if count is None or source == "-" or sent == before:
            return


# -- sources -------------------------------------------------------------------------------------------------


def opened(source: str, key: str | None) -> Callable[[], Iterator[Item]]:
    """What reads the source from its beginning, once per call.

    Raises:
        ConfigError: it does not exist or is of no known kind. Faults inside are raised while reading.
    """
    if source == "-":
        return lambda: _lines(sys.stdin.buffer, "standard input", key)
    path = Path(source)
    kind = path.suffix.lower()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not files:
            raise ConfigError(
                f"{source}: expected images ({', '.join(sorted(IMAGES))}) in the folder, found none"
            )
        return lambda: (_image(file, key) for file in files)
    if not path.is_file():
        raise ConfigError(f"{source}: no such file or folder")
    if kind in IMAGES:
        return lambda: iter([_image(path, key)])
    if kind in VIDEOS:
        return lambda: _frames(path, key)
    if kind == ".csv":
        return lambda: _rows(path, key)
    if kind in LINES:
        return lambda: _lines_of_file(path, key)
    known = ", ".join(sorted({*IMAGES, *VIDEOS, *LINES, ".csv"}))
    raise ConfigError(f"{source}: expected a folder, - or a file that ends in one of {known}")


def _image(path: Path, key: str | None) -> Item:
    try:
        return Item(path.read_bytes(), _name_key(path, key))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _frames(path: Path, key: str | None) -> Iterator[Item]:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong with a file is said here, once
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ConfigError(f"{path}: cannot be read as a video")
        name = _name_key(path, key)
        while True:
            there, frame = video.read()
            if not there:
                return
            _, encoded = cv2.imencode(".jpg", frame)
            yield Item(encoded.tobytes(), name)
    finally:
        video.release()


def _name_key(path: Path, key: str | None) -> bytes | None:
    if key is None:
        return None
    if key != NAME_FIELD:
        raise ConfigError(f"--key {key}: an image has no fields; expected {NAME_FIELD}, its file name")
    return path.name.encode()


def _rows(path: Path, key: str | None) -> Iterator[Item]:
    """Each row as a JSON object; a cell that reads as a JSON number is that number, digit for digit."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
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
    """Each line as it is, without its end; empty ones are left out."""
    for number, line in enumerate(file, 1):
        value = line.rstrip(b"\r\n")
        if value:
            yield Item(value, _field(value, key, f"{name} line {number}") if key is not None else None)


def _field(value: bytes, key: str, where: str) -> bytes | None:
    """A field of a JSON object as text: a string as it is, null as no key, anything else as JSON."""
    try:
        document = orjson.loads(value)
        found = document[key]
    except orjson.JSONDecodeError:
        raise ConfigError(f"{where}: --key {key} needs a JSON object, this is not JSON") from None
    except (KeyError, TypeError, IndexError):
        raise ConfigError(f"{where}: expected a JSON object with the field {key} (--key)") from None
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else orjson.dumps(found)


# -- the terminal ----------------------------------------------------------------------------------------------


@contextmanager
def _progress(count: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many records are acknowledged; nothing unless standard error is a terminal."""
    if not sys.stderr.isatty() or "NO_COLOR" in os.environ:
        yield lambda acknowledged: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count)
        yield lambda acknowledged: bar.update(task, completed=acknowledged)
