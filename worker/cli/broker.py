"""``streaminfer broker``: the embedded development broker, until it is interrupted."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path

from worker.cli.main import add_set_option
from worker.errors import ConfigError
from worker.kafka.broker import EmbeddedBroker
from worker.settings import Settings, load

DEFAULT_PORT = 9092
LARGEST_PORT = 65535
PARTITIONS = 6
"""Of each topic of ``--config``, unless something says how many."""
LOCAL = ("localhost", "127.0.0.1")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A broker for demos and tests, inside this process: librdkafka's own, in memory, without Java. Clients "
        "must be librdkafka's (Python, C, Go, .NET, ...); it is not Apache Kafka and keeps nothing. "
        "While a group rebalances it refuses commits: where a replica joins, records may be answered twice, and "
        "partitions that change hands may be read carefully for a while, as after a crash."
    )
    parser.epilog = """\
examples:
  streaminfer broker --config digits.yaml
  streaminfer broker --topic digits:6 --topic digits.predictions:6"""
    parser.add_argument(
        "--port",
        type=int,
        help="bootstrap port on 127.0.0.1 (default: the one that --config names for this machine, else 9092)",
    )
    parser.add_argument(
        "--config", metavar="CONFIG", type=Path, help="make every topic that this configuration names"
    )
    parser.add_argument(
        "--partitions",
        metavar="N",
        type=int,
        help=f"of the topics of --config (default: output.create, else {PARTITIONS}); those of metrics and control get one",
    )
    add_set_option(parser)
    parser.add_argument(
        "--topic",
        dest="topics",
        metavar="NAME:PARTITIONS",
        action="append",
        default=[],
        help="make a topic (may be repeated)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: an option makes no sense.
        StartError: the port is taken.
    """
    if args.port is not None and not 0 <= args.port <= LARGEST_PORT:
        raise ConfigError(f"--port {args.port}: expected a number from 0 to {LARGEST_PORT}")
    if args.partitions is not None and (args.config is None or args.partitions < 1):
        raise ConfigError("--partitions: expected a number of 1 or more, beside --config")
    settings = load(args.config, args.overrides) if args.config is not None else None
    topics = _topics_of(settings, args.partitions) if settings is not None else {}
    topics |= dict(_topic(text) for text in args.topics)
    port = args.port if args.port is not None else _port_of(settings)
    stops = {signal.SIGINT, signal.SIGTERM}
    # before any thread starts, so that only this one hears
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        with EmbeddedBroker(topics, port) as broker:
            print(
                f"embedded development broker on {broker.bootstrap} (librdkafka's, in memory; not Apache Kafka)",
                file=sys.stderr,
            )
            print(broker.bootstrap, flush=True)
            signal.sigwait(stops)
    finally:
        signal.pthread_sigmask(
            signal.SIG_SETMASK, before
        )  # a mask is handed down to every process started later
    return 0


def _topics_of(settings: Settings, partitions: int | None) -> dict[str, int]:
    """The topics of a configuration, with their partitions."""
    from worker.kafka.needed import needed, partitions_of

    topics = needed(settings)
    made = next((use.create for each in topics for use in each.uses if use.create is not None), None)
    count = partitions_of(topics, partitions or (made.partitions if made is not None else PARTITIONS))
    return {each.topic: 1 if each.alone else count for each in topics}


def _port_of(settings: Settings | None) -> int:
    """The port at which a configuration expects a broker on this machine."""
    if settings is not None:
        first = settings.kafka["bootstrap.servers"].split(",")[0].strip()
        host, _, port = first.rpartition("://")[2].rpartition(":")
        if host in LOCAL and port.isdecimal() and 0 < int(port) <= LARGEST_PORT:
            return int(port)
    return DEFAULT_PORT


def _topic(text: str) -> tuple[str, int]:
    name, colon, count = text.rpartition(":")
    if (
        not colon
        or not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name)
        or not count.isdecimal()
        or int(count) < 1
    ):
        raise ConfigError(f"--topic {text}: expected NAME:PARTITIONS, such as digits:6")
    return name, int(count)
