"""``dlq show``: dead letters in full."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from worker.cli.letter_text import as_dict, in_full
from worker.cli.payloads import reader_of_requests, unwrapped
from worker.cli.registered import Unframer
from worker.cli.text import harmless
from worker.dead_letters.read import Letter, Source
from worker.errors import ConfigError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.kafka.letters import LetterReader


def chooses(args: argparse.Namespace) -> bool:
    """Whether only some of the letters are asked for."""
    return bool(args.where) or args.since is not None or args.until is not None


def show(
    args: argparse.Namespace, settings: Settings, reader: LetterReader, matches: Callable[[Letter], bool]
) -> int:
    shown = 0
    letters = (letter for letter in _candidates(args.at, reader) if matches(letter))
    for letter in _readable(letters, args.unwrap, settings):
        if args.json:
            print(harmless(orjson.dumps(as_dict(letter))).decode())
        else:
            print("\n" * bool(shown) + in_full(letter))
        if args.out is not None:
            _write(args.out, letter)
        shown += 1
        if shown == (1 if args.at else args.count):
            return 0
    if args.at:
        raise ConfigError(f"--at: no dead letter for {args.at} in {settings.dead_letter.topic}")
    if not shown:
        print(
            f"no dead letters in {settings.dead_letter.topic}" + " that match" * chooses(args),
            file=sys.stderr,
        )
    return 0


def _write(path: Path, letter: Letter) -> None:
    """The bytes of a letter's value in a file.

    Raises:
        ConfigError: there is no value, or the file cannot be written.
    """
    if letter.value is None or letter.trimmed:
        raise ConfigError("--out: the letter has no value to write")
    try:
        path.write_bytes(letter.value)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from None


def _readable(letters: Iterator[Letter], unwraps: bool, settings: Settings) -> Iterator[Letter]:
    """These letters with values for people: unwrapped where that is wanted, and as JSON where they name a schema."""
    read = reader_of_requests(settings) if unwraps else None
    plain = Unframer(settings.registry) if settings.registry is not None else None
    try:
        for letter in letters:
            value = letter.value
            if read is not None and letter.source is not None:
                inside = read(letter.pipeline, letter.source.partition.topic)
                value = unwrapped(inside, value, letter.headers)
            if plain is not None:
                value = plain.json(value, letter.headers)
            yield replace(letter, value=value)
    finally:
        if plain is not None:
            plain.close()


def _candidates(place: Source | None, reader: LetterReader) -> Iterator[Letter]:
    """All letters, or only those that match a place."""
    if place is None:
        return reader.read({})
    if place.partition.topic != reader.topic:
        return (letter for letter in reader.read({}) if letter.source == place)
    starts = {place.partition.number: place.offset}
    return (letter for letter in reader.read(starts) if (letter.partition, letter.offset) == place)
