"""Options shared by commands that talk to a topic: where the broker is, and client properties."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime

from worker.batch import Partition
from worker.dead_letters.read import Source
from worker.errors import ConfigError
from worker.kafka.properties import Connection
from worker.settings import Settings, is_secret
from worker.telemetry import logs


def add_property_option(parser: argparse.ArgumentParser) -> None:
    """``-X prop=v``."""
    parser.add_argument(
        "-X",
        dest="properties",
        metavar="PROP=V",
        action="append",
        default=[],
        help="a librdkafka client property, such as -X security.protocol=SSL (may be repeated)",
    )


def connection(
    name: str, bootstrap: str | None, properties: list[str], settings: Settings | None
) -> Connection:
    """The client of a command line: a configuration's properties or a bootstrap address, then every ``-X``."""
    kafka = dict(settings.kafka) if settings is not None else {}
    if bootstrap is not None:
        kafka["bootstrap.servers"] = bootstrap
    kafka |= dict(pair("-X", text) for text in properties)
    logs.configure([value for key, value in kafka.items() if is_secret(key)])
    kafka.pop("client.id", None)  # the worker's own
    return Connection(name, kafka)


def pair(option: str, text: str) -> tuple[str, str]:
    """``K=V`` as a pair."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{option} {text}: expected NAME=VALUE")
    return name, value


def at_least_one(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def place(text: str) -> Source:
    """``TOPIC/PARTITION/OFFSET``, for argparse."""
    topic, *numbers = text.rsplit("/", 2)
    if len(numbers) != 2 or not topic or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"expected TOPIC/PARTITION/OFFSET, got {text}")
    return Source(Partition(topic, int(numbers[0])), int(numbers[1]))


_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str) -> int:
    """``10m`` ago, or a time in ISO 8601 (without a zone: of this machine), as Unix milliseconds, for argparse."""
    if ago := _AGO.fullmatch(text.strip()):
        return int((time.time() - float(ago[1]) * _SECONDS[ago[2]]) * 1000)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"expected so long ago (90s, 10m, 2h, 3d) or a time such as 2026-03-01T14:05, got {text}"
        ) from None


def beginning(text: str) -> str | int:
    """``earliest``, ``latest``, or what :func:`since` takes, for argparse."""
    return text if text in ("earliest", "latest") else since(text)
