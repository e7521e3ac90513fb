"""``streaminfer produce``: sends images, a video's frames, rows of a table, lines or any file to a topic."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import cast

from worker import settings as configuration
from worker.batch import Headers
from worker.cli.connect import above_zero, add_property_option, at_least_one, connection, pair
from worker.cli.main import INTERRUPTED, add_set_option
from worker.cli.payloads import sent_to
from worker.cli.registered import Framer, add_registry_options, expects_schemas, registry_settings
from worker.cli.shelf import shelf_of
from worker.cli.sources import Item, Source, opened_all
from worker.errors import ConfigError
from worker.kafka.tools import TopicWriter
from worker.payload.wrapping import Wrapping
from worker.settings import Settings
from worker.text import printable

PACE_S = 0.1
"""Acknowledgements are served at least this often while waiting for the next record's turn."""

EXAMPLE = """\
examples:
  streaminfer produce frames/ --topic digits --bootstrap localhost:9092 --rate 20
  streaminfer produce rows.csv --topic houses --config houses.yaml --key id --header source=test
  streaminfer produce cameras/ --recursive --topic digits --bootstrap localhost:9092
  streaminfer produce clips/ --raw --topic clips --bootstrap localhost:9092
  streaminfer produce rows.csv --topic readings --bootstrap localhost:9092 --registry http://localhost:8081
  cat records.jsonl | streaminfer produce - --topic houses --bootstrap localhost:9092"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Send files, the frames of a video, rows of a table or lines of text to a topic."
    parser.epilog = EXAMPLE
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="an image, a sound, .npy or .json file, or a folder of them or of .txt files (each file one record); a video (its frames as JPEG); "
        ".csv or .tsv (each row a JSON object); .jsonl or .txt (each line as it is); or - (lines of standard input). "
        "Several are sent one after the other; 'frames/*.png' stands for files",
    )
    parser.add_argument("--topic", required=True)
    parser.add_argument("--bootstrap", metavar="H:P", help="the broker")
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        type=Path,
        help="take the broker from the worker's YAML file, and wrap values as its input.unwrap expects them",
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
        "--recursive", action="store_true", help="of a folder, also the files of the folders inside it"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="send each file, or all of standard input, as one record as it is, whatever its ending is",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="with --config: do not wrap values as input.unwrap of the topic's pipeline expects them",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="write each record's value to a store as an object under this URL, and send a record that names it "
        "(with its SHA-256); needs --config with input.reference",
    )
    parser.add_argument(
        "--key",
        metavar="FIELD",
        help="CSV column, or JSON field or path, that becomes the key; for a whole file: name",
    )
    parser.add_argument(
        "--header", dest="headers", metavar="K=V", action="append", default=[], help="may be repeated"
    )
    add_registry_options(parser)
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
    source = opened_all(args.sources, args.key, args.raw, args.recursive)
    items = _repeated(source, args.count)
    items = chain([next(items)], items)  # a source that cannot be read is found before the broker is asked
    settings = configuration.load(args.config, args.overrides) if args.config is not None else None
    client = connection("streaminfer-produce", args.bootstrap, args.properties, settings)
    shelf = shelf_of(args.store, settings, args.topic)
    framer = _framer(args, settings)
    if framer is not None:
        items = _framed(items, framer)
    wrapping = sent_to(settings, args.topic) if settings is not None and not args.as_is else None
    writer = TopicWriter(client, args.topic)
    if source.left_out:
        print(f"{source.name}: {source.left_out}", file=sys.stderr)
    for note in source.notes:
        print(printable(note), file=sys.stderr)
    mistake: ConfigError | None = None
    interrupted = False
    with _progress(args.count or source.total) as show:
        try:
            sent_items = items if wrapping is None else _wrapped(items, wrapping)
            if shelf is not None:
                sent_items = shelf.stored(sent_items)
            _send(writer, sent_items, headers, args.rate, show)
        except ConfigError as error:
            mistake = error  # what was sent before it is on its way: wait for it and say how much that is
        except KeyboardInterrupt:
            interrupted = True  # the same
        for _left in writer.finish():
            show(writer.acknowledged)
        show(writer.acknowledged)
    sent = f"{writer.acknowledged} record{'s' * (writer.acknowledged != 1)} sent to {args.topic}"
    if mistake is not None:
        raise ConfigError(f"{mistake}; {sent} before that")
    if interrupted:
        print(f"{sent} before it was interrupted")
        return INTERRUPTED
    print(sent)
    return 0


def _framer(args: argparse.Namespace, settings: Settings | None) -> Framer | None:
    """What makes the records of a topic whose records name their schema; None where they are sent as they are."""
    wanted = registry_settings(args.registry, settings)
    if wanted is None:
        if args.schema is not None:
            raise ConfigError("--schema: expected --registry, or --config with registry, beside it")
        return None
    if args.registry is None and (args.as_is or not expects_schemas(cast("Settings", settings), args.topic)):
        return None
    return Framer(wanted, args.topic, args.schema)


def _framed(items: Iterator[Item], framer: Framer) -> Iterator[Item]:
    """These JSON records, written with the schema of the topic."""
    for item in items:
        yield item._replace(value=framer.framed(item.value))


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
        writer.send(item.value, item.key, [*headers, *item.headers])
        if number % 100 == 0:
            show(writer.acknowledged)


def _wrapped(items: Iterator[Item], wrapping: Wrapping) -> Iterator[Item]:
    """The items as the pipeline that reads them expects them."""
    for item in items:
        seal = wrapping.now()
        yield item._replace(value=seal(item.value), headers=[*item.headers, *seal.headers])


def _repeated(source: Source, count: int | None) -> Iterator[Item]:
    """The source once, or as often as it takes to make ``count`` records.

    Raises:
        ConfigError: the source has no record; or it cannot be read again and has fewer than ``count``.
    """
    sent = 0
    while True:
        before = sent
        for item in source.read():
            if count is not None and sent >= count:
                return
            yield item
            sent += 1
        if sent == 0:
            raise ConfigError(f"{source.name}: expected at least one record, found none")
        if count is None or sent in (count, before):
            return
        if not source.repeats:
            raise ConfigError(f"{source.name}: expected {count} records (--count), got {sent}")


# -- the terminal ----------------------------------------------------------------------------------------------


@contextmanager
def _progress(count: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many records are acknowledged, how many a second, and the time that is left where the number of records is
    known; nothing unless standard error is a terminal."""
    if not sys.stderr.isatty() or "NO_COLOR" in os.environ:
        yield lambda acknowledged: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
    if count is not None:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count, rate="")
        started = time.monotonic()

        def show(acknowledged: int) -> None:
            rate = acknowledged / max(1e-3, time.monotonic() - started)
            bar.update(task, completed=acknowledged, rate=f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")

        yield show
