"""``streaminfer dlq``: counts dead letters, shows them in full, and sends their records back to be tried again."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from worker.cli.connect import place
from worker.cli.letter_text import as_dict, in_full
from worker.cli.main import add_set_option
from worker.cli.payloads import reader_of_requests, unwrapped
from worker.cli.registered import Unframer
from worker.dead_letters.read import CONDITIONS, Letter, Source, matcher, original
from worker.errors import ConfigError, StartError
from worker.settings import Settings, load
from worker.telemetry import logs
from worker.text import printable
from worker.topics import Topics

if TYPE_CHECKING:
    from worker.kafka.letters import LetterReader, Returns

SETTLE_RECORDS = 500
SETTLE_S = 1.0
"""Progress is committed after this many records or seconds: an interrupted replay may send that much twice."""

EXAMPLE = """\
examples:
  streaminfer dlq list digits.yaml
  streaminfer dlq show digits.yaml --where reason=model_error
  streaminfer dlq replay digits.yaml --rate 100"""
REPLAY_NOTES = """\
A replayed record has its old bytes, key, headers, timestamp and partition, and one header more: streaminfer.replay,
how many times it has been replayed. One without an id of its own (ce_id, x-request-id or in the request) gets the
place it was first read at as x-request-id, so that its result has the id it would have had.

Each run goes on where the last one without --where stopped; how far that was is kept as the offsets of the group
<group.id>.dlq-replay. A run with --where keeps nothing: the same command sends the same records again, and so does
a later run without --where. Run one replay at a time.

example: streaminfer dlq replay digits.yaml --where reason=model_error --rate 100"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Look at dead letters and send their records back to the topics they came from."
    parser.epilog = EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, what: Callable[..., int], line: str, epilog: str) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            epilog=epilog,
            allow_abbrev=False,
        )
        added.set_defaults(what=what)
        added.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
        add_set_option(added)
        added.add_argument(
            "--where",
            metavar="K=V",
            action="append",
            default=[],
            help=f"only letters with this {' or '.join(CONDITIONS)}; repeat for more conditions, "
            "or the same name for alternatives",
        )
        added.add_argument("--json", action="store_true", help="one JSON object per line and nothing else")
        return added

    action("list", _list, "count dead letters by pipeline, reason and stage", EXAMPLE)
    show = action("show", _show, "show dead letters in full, the oldest first", EXAMPLE)
    show.add_argument(
        "--at",
        metavar="TOPIC/PARTITION/OFFSET",
        type=place,
        help="the one in this place of the dead-letter topic, or the one whose record was read in this place",
    )
    show.add_argument("--count", metavar="N", type=_positive(int), default=1, help="how many (default 1)")
    show.add_argument(
        "--unwrap",
        action="store_true",
        help="show values as they are inside input.unwrap, with the keys of CONFIG",
    )
    replay = action("replay", _replay, "send records back to the topics they came from", REPLAY_NOTES)
    replay.add_argument("--rate", metavar="R", type=_positive(float), help="at most R records a second")
    replay.add_argument("--count", metavar="N", type=_positive(int), help="at most N records")
    replay.add_argument(
        "--all", action="store_true", help="from the first letter on, those replayed before as well"
    )
    replay.add_argument(
        "--now",
        action="store_true",
        help="with the present as their timestamp: a record that expired would expire again",
    )
    replay.add_argument("--dry-run", action="store_true", help="send nothing, say what would be sent")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action: list, show or replay.

    Raises:
        ConfigError: arguments or configuration.
        StartError: the broker does not answer or refuses us; a topic does not exist.
    """
    matches = matcher(args.where)
    settings = load(args.config, args.overrides)
    logs.configure(settings.secrets())
    from worker.kafka.letters import LetterReader

    with LetterReader(settings) as reader:
        code: int = args.what(args, settings, reader, matches)
        return code


# list


def _list(
    args: argparse.Namespace, settings: Settings, reader: LetterReader, matches: Callable[[Letter], bool]
) -> int:
    counts = Counter(
        (letter.pipeline, letter.reason, letter.stage) for letter in reader.read({}) if matches(letter)
    )
    rows = [(*classes, count) for classes, count in counts.most_common()]
    names = ("pipeline", "reason", "stage", "count")
    if args.json:
        for row in rows:
            print(json.dumps(dict(zip(names, row, strict=True))))
    elif rows:
        cells = [names, *([printable(str(cell) or "?") for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for *classes, count in cells:
            print("  ".join([*map(str.ljust, classes, widths), count.rjust(widths[-1])]))
    else:
        print(f"no dead letters in {settings.dead_letter.topic}" + " that match" * bool(args.where))
    return 0


# show


def _show(
    args: argparse.Namespace, settings: Settings, reader: LetterReader, matches: Callable[[Letter], bool]
) -> int:
    shown = 0
    letters = (letter for letter in _candidates(args.at, reader) if matches(letter))
    for letter in _readable(letters, args.unwrap, settings):
        if args.json:
            print(orjson.dumps(as_dict(letter)).decode())
        else:
            print("\n" * bool(shown) + in_full(letter))
        shown += 1
        if shown == (1 if args.at else args.count):
            return 0
    if args.at:
        raise ConfigError(f"--at: no dead letter for {args.at} in {settings.dead_letter.topic}")
    if not shown:
        print(
            f"no dead letters in {settings.dead_letter.topic}" + " that match" * bool(args.where),
            file=sys.stderr,
        )
    return 0


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


# replay


def _replay(
    args: argparse.Namespace, settings: Settings, reader: LetterReader, matches: Callable[[Letter], bool]
) -> int:
    from worker.kafka.letters import Returns

    topics = Topics(topic for pipeline in settings.pipelines.values() for topic in pipeline.input.topics)
    reader.check_replay(topics)
    replay = Replay(
        reader,
        None if args.dry_run else Returns(settings, reader.partitions),
        topics=topics,
        rate=args.rate,
        keep_time=not args.now,
        keep_progress=not args.where,
    )
    starts = {} if args.all else reader.progress()
    try:
        for letter in reader.read(starts):
            replay.handle(letter, matches(letter))
            if replay.sent == args.count:
                break
        replay.settle()
    except BaseException:
        with suppress(StartError):  # the first error says more than this one
            replay.settle()
        _report(args, replay)
        raise
    _report(args, replay)
    return 0


class Replay:
    """Sends records back one by one and commits its progress.

    Args:
        returns: the producer; None for a dry run, which sends nothing and commits nothing.
        topics: the input topics; letters that name another topic are skipped, since anyone may write a dead letter.
        rate: most records per second; None = as fast as the broker takes them.
        keep_time: whether records keep their timestamps.
        keep_progress: whether letters handled here count as replayed in later runs.
    """

    def __init__(
        self,
        reader: LetterReader,
        returns: Returns | None,
        *,
        topics: Topics,
        rate: float | None,
        keep_time: bool,
        keep_progress: bool,
    ) -> None:
        self.sent = 0
        self.trimmed = 0
        self.foreign = 0
        """Letters that did not come from one of the input topics."""
        self._reader, self._returns, self._topics = reader, returns, topics
        self._rate, self._keep_time, self._keep_progress = rate, keep_time, keep_progress
        self._started = self._settled = time.monotonic()
        self._unsettled = 0
        self._handled: dict[int, int] = {}
        """Partition of the dead-letter topic -> offset after the last letter handled."""
        self._unanswered: dict[int, set[int]] = {}
        """Partition of the dead-letter topic -> offsets of letters whose record is sent and not acknowledged."""

    def handle(self, letter: Letter, wanted: bool) -> None:
        """Send the letter's record back, if ``wanted`` and if the letter holds all of it."""
        source = letter.source
        if wanted and (source is None or source.partition.topic not in self._topics):
            self.foreign += 1
        elif wanted and letter.trimmed:
            self.trimmed += 1
        elif wanted and source is not None:
            self._send(original(letter, source), letter)
        self._handled[letter.partition.number] = letter.offset + 1

    def settle(self) -> None:
        """Wait until every sent record is acknowledged; commit the progress up to the first that is not.

        Raises:
            StartError: a record was not acknowledged, or progress cannot be committed.
        """
        if self._returns is None:
            return
        try:
            self._returns.settle()
        finally:
            if self._keep_progress:
                self._keep()
        self._unsettled, self._settled = 0, time.monotonic()

    def _keep(self) -> None:
        known = self._reader.progress()
        reached = {
            number: min(self._unanswered.get(number) or (offset,)) for number, offset in self._handled.items()
        }
        self._reader.keep_progress(
            {number: offset for number, offset in reached.items() if offset > known.get(number, -1)}
        )

    def _send(self, record: Letter, letter: Letter) -> None:
        if self._returns is not None:
            if self._unsettled and (
                self._unsettled >= SETTLE_RECORDS or time.monotonic() - self._settled > SETTLE_S
            ):
                self.settle()
            self._pace(self._returns)
            unanswered = self._unanswered.setdefault(letter.partition.number, set())
            unanswered.add(letter.offset)
            self._returns.send(record, self._keep_time, partial(unanswered.discard, letter.offset))
            self._unsettled += 1
        self.sent += 1

    def _pace(self, returns: Returns) -> None:
        if self._rate is None:
            return
        due = self._started + self.sent / self._rate
        while (left_s := due - time.monotonic()) > 0:
            returns.wait(left_s)


def _report(args: argparse.Namespace, replay: Replay) -> None:
    if args.json:
        skipped = {"trimmed": replay.trimmed, "foreign": replay.foreign}
        print(json.dumps({"replayed": replay.sent, "skipped": skipped, "dry_run": args.dry_run}))
        return
    print(f"{'would replay' if args.dry_run else 'replayed'} {replay.sent} record{'s' * (replay.sent != 1)}")
    if replay.trimmed:
        print(
            f"cannot replay {replay.trimmed}: the value did not fit the dead-letter topic, or could not be read"
        )
    if replay.foreign:
        print(f"left out {replay.foreign}: not from one of input.topics")
    if args.where and replay.sent and not args.dry_run:
        print("with --where no progress is kept: the same command would send them again")


# arguments


def _positive(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argument's type that takes only values above zero."""

    def parse(text: str) -> Any:
        value = number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    parse.__name__ = number.__name__
    return parse
