"""``streaminfer broker``: the embedded development broker, until it is interrupted."""

from __future__ import annotations

import argparse
import re
import signal
import sys

from worker.errors import ConfigError
from worker.kafka.broker import EmbeddedBroker

LARGEST_PORT = 65535


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A broker for demos and tests, inside this process: librdkafka's own, in memory, without Java. Clients "
        "must be librdkafka's (Python, C, Go, .NET, ...); it is not Apache Kafka and keeps nothing. "
        "While a group rebalances it refuses commits: where a replica joins, records may be answered twice, and "
        "partitions that change hands may be read carefully for a while, as after a crash."
    )
    parser.epilog = "example: streaminfer broker --topic digits:6 --topic digits.predictions:6"
    parser.add_argument("--port", type=int, default=9092, help="bootstrap port on 127.0.0.1 (default: 9092)")
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
    if not 0 <= args.port <= LARGEST_PORT:
        raise ConfigError(f"--port {args.port}: expected a number from 0 to {LARGEST_PORT}")
    topics = dict(_topic(text) for text in args.topics)
    stops = {signal.SIGINT, signal.SIGTERM}
    # before any thread starts, so that only this one hears
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        with EmbeddedBroker(topics, args.port) as broker:
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
