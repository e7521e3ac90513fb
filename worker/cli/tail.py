"""``streaminfer tail``: reads results, metrics, dead letters or any topic, readable or as JSON lines."""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from worker import settings as configuration
from worker.cli.connect import above_zero, add_property_option, at_least_one, beginning, connection, place
from worker.cli.main import add_set_option
from worker.cli.payloads import Read, reader_of_results, unwrapped
from worker.cli.record_text import Lines
from worker.cli.registered import Unframer, registry_settings
from worker.cli.text import harmless, json_value
from worker.errors import ConfigError, StartError
from worker.kafka.clusters import clusters_of
from worker.kafka.tools import Record, TopicReader
from worker.settings import Settings

TICK_S = 0.1
AT_S = 10.0
"""How long a record in one place is waited for."""

EXAMPLE = """\
examples:
  streaminfer tail digits.yaml
  streaminfer tail digits.yaml --what dead-letter --from 10m
  streaminfer tail digits.yaml --at digits/3/1042 --full
  streaminfer tail --topic digits.predictions --bootstrap localhost:9092 --count 10 --timeout 30 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Read what the worker writes, or any other topic."
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="the worker's YAML file")
    parser.add_argument("--topic", help="a topic, instead of CONFIG")
    parser.add_argument("--bootstrap", metavar="H:P", help="the broker, with --topic")
    parser.add_argument(
        "--what",
        choices=["results", "metrics", "dead-letter"],
        help="which topic of CONFIG (default: results)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=beginning,
        metavar="WHEN",
        default="earliest",
        help="earliest (the default), latest for what comes from now on, so long ago (90s, 10m, 2h, 3d), or a time such "
        "as 2026-03-01T14:05",
    )
    parser.add_argument(
        "--at",
        metavar="TOPIC/PARTITION/OFFSET",
        type=place,
        help="this one record, of any topic of the broker: also an input record that a message names",
    )
    parser.add_argument("--key", help="only records with this key")
    parser.add_argument("--partition", type=int, metavar="N", help="only this partition of each topic")
    parser.add_argument(
        "--full",
        action="store_true",
        help="more lines for each record: boxes, classes, latencies by stage and headers",
    )
    parser.add_argument("--count", type=at_least_one, metavar="N", help="end after this many records")
    parser.add_argument("--timeout", type=above_zero, metavar="S", help="end after this many seconds")
    parser.add_argument(
        "--unwrap",
        action="store_true",
        help="with CONFIG: show results as they were before output.wrap; needs the keys of an encrypted one",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per record")
    parser.add_argument(
        "--registry",
        metavar="URL",
        help="show records that name their schema as JSON (default: the registry of CONFIG)",
    )
    add_property_option(parser)
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print records until there are enough, the time is up or the user interrupts.

    Raises:
        ConfigError: options that do not go together.
        StartError: no broker, no such topic, or fewer records than asked for in time.
    """
    for option, given in (("--key", args.key), ("--partition", args.partition), ("--count", args.count)):
        if args.at is not None and given is not None:
            raise ConfigError(f"{option}: expected without --at, which is one record")
    topics, settings = _topics(args)
    read = _unwrapping(args, settings)
    registry = registry_settings(args.registry, settings)
    plain = Unframer(registry) if registry is not None and args.what != "metrics" else None
    where = _cluster(args, settings)
    client = connection("streaminfer-tail", args.bootstrap, args.properties, where)
    deadline = time.monotonic() + args.timeout if args.timeout is not None else None
    partition = args.partition
    if args.at is not None:
        topics, partition = [args.at.partition.topic], args.at.partition.number
        deadline = time.monotonic() + (args.timeout or AT_S)
    offset = args.at.offset if args.at is not None else None
    reader = TopicReader(client, topics, args.start, partition=partition, offset=offset)
    try:
        seen = _print(reader, args, deadline, read, plain)
    finally:
        reader.close()
        if plain is not None:
            plain.close()
    if args.at is not None and not seen:
        raise StartError(f"--at: there is no record {args.at}: it is not written yet, or deleted")
    if args.count is not None and seen < args.count:
        raise StartError(f"{seen} of {args.count} records came within {args.timeout:g} s")
    return 0


def _unwrapping(args: argparse.Namespace, settings: Settings | None) -> Callable[[str], Read | None]:
    """By topic: what unwraps its values."""
    if not args.unwrap:
        return lambda topic: None
    if settings is None or args.what not in (None, "results"):
        raise ConfigError(
            "--unwrap: expected CONFIG and its results; dlq show --unwrap shows what a dead letter holds"
        )
    return reader_of_results(settings)


def _print(
    reader: TopicReader,
    args: argparse.Namespace,
    deadline: float | None,
    read: Callable[[str], Read | None],
    plain: Unframer | None,
) -> int:
    """Print what comes; returns how many records that were."""
    show = _json_line if args.json else _readable_lines(args.full)
    wanted, most = _wanted(args), 1 if args.at is not None else args.count
    out = sys.stdout.buffer
    seen = 0
    while most is None or seen < most:
        left_s = TICK_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            break
        records = reader.read(min(left_s, TICK_S))
        if args.at is not None and records and records[0].offset != args.at.offset:
            break  # the broker goes on with what is there
        records = [record for record in records if wanted(record)]
        if most is not None:
            records = records[: most - seen]
        for record in records:
            value = unwrapped(read(record.topic), record.value, record.headers)
            if plain is not None:
                value = plain.json(value, record.headers)
            out.write(show(record._replace(value=value)))
        if records:
            out.flush()
        seen += len(records)
    return seen


def _topics(args: argparse.Namespace) -> tuple[list[str], Settings | None]:
    """The topics to read, and the settings they come from if any."""
    if args.config is None:
        if args.topic is None or args.bootstrap is None:
            raise ConfigError("tail: expected CONFIG, or --topic and --bootstrap")
        if args.what is not None:
            raise ConfigError("--what: expected CONFIG beside it; --topic names the topic itself")
        return [args.topic], None
    if args.topic is not None or args.bootstrap is not None:
        raise ConfigError("tail: expected either CONFIG, or --topic and --bootstrap, not both")
    settings = configuration.load(args.config, args.overrides)
    if args.what == "dead-letter":
        return [settings.dead_letter.topic], settings
    if args.what == "metrics":
        if settings.metrics.topic is None:
            raise ConfigError(f"--what metrics: {args.config} names no metrics.topic")
        return [settings.metrics.topic], settings
    return list(dict.fromkeys(p.output.topic for p in settings.pipelines.values())), settings


def _cluster(args: argparse.Namespace, settings: Settings | None) -> Settings | None:
    """The settings with the client properties of the cluster that is read: results may be on another one."""
    if settings is None or args.what not in (None, "results"):
        return settings
    clusters = clusters_of(settings)
    if not clusters:
        return settings
    if len(clusters) > 1 or any(each.output.kafka is None for each in settings.pipelines.values()):
        raise ConfigError("tail: results are on several clusters; expected --topic and --bootstrap")
    return clusters[0].settings


def _json_line(record: Record) -> bytes:
    line = orjson.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": _text(record.key),
            "headers": {name: _text(value) for name, value in record.headers},
            "value": json_value(record.value),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
    return harmless(line)


def _text(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _wanted(args: argparse.Namespace) -> Callable[[Record], bool]:
    """Whether a record is one of those that were asked for."""
    key = args.key.encode() if args.key is not None else None
    since = args.start if isinstance(args.start, int) and args.at is None else None

    def wanted(record: Record) -> bool:
        return (key is None or record.key == key) and (since is None or record.timestamp_ms >= since)

    return wanted


def _readable_lines(full: bool) -> Callable[[Record], bytes]:
    lines = Lines(full)
    return lambda record: "".join(f"{line}\n" for line in lines.of(record)).encode()
