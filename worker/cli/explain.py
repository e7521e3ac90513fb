"""``streaminfer explain``: one record through every stage, with what the model was given and what it answered. It only reads."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from worker import settings as configuration
from worker.cli.connect import add_property_option, connection, place
from worker.cli.main import add_set_option
from worker.cli.payloads import keys_of
from worker.cli.text import harmless
from worker.dead_letters.compose import CONNECT
from worker.dead_letters.read import Letter, Source, failed
from worker.errors import ConfigError, StartError
from worker.filesystem import is_dir
from worker.settings import Settings
from worker.telemetry import logs
from worker.topics import Topics

if TYPE_CHECKING:
    from worker.cli.explained import Explained
    from worker.kafka.properties import Connection
    from worker.kafka.tools import Record

EXAMPLE = """\
TOPIC is one of the input topics, or the dead-letter topic: then the record that failed is explained.

examples:
  streaminfer explain digits.yaml digits/0/1042
  streaminfer explain digits.yaml digits.dead-letter/0/3 --html why.html
  streaminfer explain digits.yaml digits/0/1042 --version 7 --json"""


class Subject(NamedTuple):
    """What is explained."""

    record: Record | None
    """None where a dead letter does not hold it, and it is gone from where it came from."""
    letter: dict[str, Any] | None
    """Of a dead letter: what it says of itself."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Take one record through every stage of its pipeline, and show what happens in each. Joins no group, commits "
        "nothing, sends nothing."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument("place", metavar="TOPIC/PARTITION/OFFSET", type=place, help="where the record is")
    parser.add_argument(
        "--version",
        metavar="V",
        help="a version or an alias of the model's repository, instead of the configured one",
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help="also write the report as a page, with the picture and its boxes; it shows what is in the record",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    add_property_option(parser)
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Explain the record. A record that the pipeline refuses is explained, too: that is exit 0.

    Raises:
        ConfigError: arguments or configuration; the topic is none of the configuration's.
        StartError: no broker or no such topic; no record in that place; a model that cannot be loaded; a store or a registry
            that is away.
    """
    settings = configuration.load(args.config, args.overrides)
    inputs = Topics(topic for pipeline in settings.pipelines.values() for topic in pipeline.input.topics)
    topic = args.place.partition.topic
    if topic not in inputs and topic != settings.dead_letter.topic:
        raise ConfigError(
            f"{args.place}: {args.config} does not read {topic}; expected {', '.join(sorted(inputs))}, or "
            f"dead_letter.topic {settings.dead_letter.topic}"
        )
    if args.html is not None and not is_dir(args.html.parent):
        raise ConfigError(
            f"--html: {args.html.parent} is no folder; expected one to write {args.html.name} into"
        )
    client = connection("streaminfer-explain", None, args.properties, settings)
    logs.configure(settings.secrets(), level="warning")
    subject = _subject(args.place, settings, client, inputs)
    with redirect_stdout(sys.stderr):  # custom code may print
        explained = _explained(subject, settings, args.version)
    if args.html is not None:
        _write_page(args.html, explained)
    if args.json:
        print(harmless(orjson.dumps(explained.report, option=orjson.OPT_NON_STR_KEYS)).decode())
    else:
        from worker.cli.explain_text import in_words

        print(in_words(explained.report))
    return 0


def _explained(subject: Subject, settings: Settings, version: str | None) -> Explained:
    from worker.cli.explained import Explained, Explainer
    from worker.schema_registry.opening import open_registry
    from worker.serving.route import route_of

    letter = {"dead_letter": subject.letter} if subject.letter is not None else {}
    if subject.record is None:
        return Explained(letter)
    registry = open_registry(settings, registers=False)
    try:
        keys = keys_of(settings)
        routes = [route_of(name, wanted, keys, registry) for name, wanted in settings.pipelines.items()]
        explained = Explainer(settings, routes, version).explain(subject.record)
    finally:
        if registry is not None:
            registry.close()
    return Explained(letter | explained.report, explained.picture)


# -- the record -----------------------------------------------------------------------------------------------


def _subject(at: Source, settings: Settings, client: Connection, inputs: Topics) -> Subject:
    """The record in that place; of a dead letter the record that failed."""
    from worker.kafka.one_record import RecordReader

    with RecordReader(client, [at.partition.topic]) as reader:
        record = reader.read(at.partition, at.offset)
    if at.partition.topic in inputs:
        return Subject(record, None)
    letter = Letter(at.partition, at.offset, record.timestamp_ms, record.key, record.value, record.headers)
    source = letter.source
    if source is None:
        raise StartError(
            f"{at}: no dead letter of a worker: its headers do not say where its record was; expected {CONNECT}topic, "
            ".partition and .offset"
        )
    told = _letter(letter, source)
    if source.partition.topic not in inputs:
        told["missing"] = f"no pipeline of the configuration reads {source.partition.topic}"
        return Subject(None, told)
    if letter.trimmed:
        return _from_its_topic(source, client, told)
    before = failed(letter, source)
    return Subject(
        record._replace(
            topic=source.partition.topic,
            partition=source.partition.number,
            offset=source.offset,
            timestamp_ms=before.timestamp_ms,
            key=before.key,
            headers=before.headers,
        ),
        told,
    )


def _from_its_topic(source: Source, client: Connection, told: dict[str, Any]) -> Subject:
    """The record of a letter that does not hold its value, if it is still where it was read."""
    from worker.kafka.one_record import RecordReader

    try:
        with RecordReader(client, [source.partition.topic]) as reader:
            return Subject(reader.read(source.partition, source.offset), told)
    except StartError as error:
        told["missing"] = f"the letter does not hold the record's value, and the record is gone: {error}"
        return Subject(None, told)


def _letter(letter: Letter, source: Source) -> dict[str, Any]:
    return {
        "place": str(Source(letter.partition, letter.offset)),
        "from": str(source),
        "pipeline": letter.pipeline or None,
        "reason": letter.reason or None,
        "stage": letter.stage or None,
        "message": letter.text(CONNECT + "exception.message"),
        "class": letter.text(CONNECT + "exception.class.name") or None,
        "attempts": letter.number("streaminfer.error.attempts"),
        "model": letter.text("streaminfer.model") or None,
    }


# -- the page -------------------------------------------------------------------------------------------------


def _write_page(file: Path, explained: Explained) -> None:
    """Write the page; only its user may read it, because it shows what is in the record."""
    from worker.cli.explain_page import page

    text = page(explained.report, explained.picture)
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise ConfigError(f"--html: {file} cannot be written: {error.strerror or error}") from None
