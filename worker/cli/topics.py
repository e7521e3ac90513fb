"""``streaminfer topics``: the topics that a configuration needs, which are there, and how the others are made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worker import settings as configuration
from worker.cli.main import add_set_option
from worker.errors import NotReady
from worker.settings import Settings
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.kafka.needed import Needed

EXAMPLE = """\
examples:
  streaminfer topics digits.yaml
  streaminfer topics digits.yaml create --partitions 6 --replication 3
  streaminfer topics digits.yaml commands --partitions 6"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the topics that a configuration needs and which of them are missing (exit 3); make the missing ones, or "
        "print the commands of kafka-topics.sh that make them."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", "create", "commands"],
        default="list",
        help="list (the default), create what is missing, or print commands for all without asking the broker",
    )
    parser.add_argument(
        "--partitions",
        type=_at_least_one,
        metavar="N",
        help="of each topic that is made; default: output.create, else as many as the input topics have. "
        "Those of metrics and control get one",
    )
    parser.add_argument(
        "--replication",
        type=_at_least_one,
        metavar="R",
        help="copies of each partition (default: output.create, else the broker's default)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per topic and nothing else")
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """List, make or print.

    Raises:
        ConfigError: configuration or options.
        StartError: the broker does not answer or refuses us; topics are missing.
    """
    settings = configuration.load(args.config, args.overrides)
    logs.configure(settings.secrets())
    with configuration.places_of(settings):
        if args.action == "commands":
            return _commands(args, settings)
        if args.action == "create":
            return _create(args, settings)
        return _list(args, settings)


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from worker.kafka.needed import looked_up

    topics, embedded = looked_up(settings)
    _print(args, topics, set())
    missing = [each for each in topics if each.partitions is None]
    if not missing:
        return 0
    how = f"streaminfer topics {args.config} create"
    if embedded:
        how = f"streaminfer broker --config {args.config}, in place of the embedded broker that runs"
    raise NotReady(f"{len(missing)} of {len(topics)} topics missing; make them by {how}")


def _create(args: argparse.Namespace, settings: Settings) -> int:
    from worker.kafka.needed import create, looked_up, partitions_of, refuse_embedded

    topics, embedded = looked_up(settings)
    missing = [each for each in topics if each.partitions is None]
    if missing:
        if embedded:
            refuse_embedded(settings)
        create(settings, missing, partitions_of(topics, args.partitions), _replication(args, topics))
        topics, _ = looked_up(settings)
    _print(args, topics, {each.topic for each in missing})
    return 0


def _commands(args: argparse.Namespace, settings: Settings) -> int:
    from worker.kafka.needed import commands, needed

    topics = needed(settings)
    created = next((use.create for each in topics for use in each.uses if use.create is not None), None)
    partitions = args.partitions or (created.partitions if created is not None else None)
    lines = commands(settings, topics, partitions, _replication(args, topics))
    for each, line in zip(topics, lines, strict=True):
        print(json.dumps({**_about(each), "command": line}) if args.json else line)
    return 0


def _replication(args: argparse.Namespace, topics: Sequence[Needed]) -> int:
    if args.replication is not None:
        return int(args.replication)
    return next(
        (use.create.replication for each in topics for use in each.uses if use.create is not None), -1
    )


def _print(args: argparse.Namespace, topics: Sequence[Needed], made: set[str]) -> None:
    if args.json:
        for each in topics:
            print(json.dumps({**_about(each), "partitions": each.partitions, "made": each.topic in made}))
        return
    width = max(len(each.topic) for each in topics)
    for each in topics:
        state = "made" if each.topic in made else "there" if each.partitions is not None else "missing"
        count = (
            "" if each.partitions is None else f"{each.partitions} partition{'s' * (each.partitions != 1)}"
        )
        print(f"{state:<7}  {each.topic:<{width}}  {count:<14}  {each.use}: {', '.join(each.fields)}")


def _about(topic: Needed) -> dict[str, object]:
    return {"topic": topic.topic, "settings": topic.fields, "use": topic.use, "compacted": topic.control}


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)
