"""``streaminfer dlq``: counts dead letters, shows them in full, and sends their records back to be tried again."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.connect import place, since
from worker.cli.dlq_list import GROUPS, as_object, grouped, table
from worker.cli.dlq_show import chooses
from worker.cli.dlq_show import show as show_letters
from worker.cli.dlq_wait import Back
from worker.cli.main import add_set_option
from worker.dead_letters.read import CONDITIONS, Letter, matcher, original
from worker.errors import ConfigError, StartError
from worker.settings import Settings, load
from worker.telemetry import logs
from worker.topics import Topics

if TYPE_CHECKING:
    from worker.kafka.letters import LetterReader, Returns

WAIT_S = 60.0
SETTLE_RECORDS = 500
SETTLE_S = 1.0
"""Progress is committed after this many records or seconds: an interrupted replay may send that much twice."""

LIST_EXAMPLE = """\
examples:
  streaminfer dlq list digits.yaml
  streaminfer dlq list digits.yaml --by message --since 2h"""
EXAMPLE = """\
examples:
  streaminfer dlq list digits.yaml
  streaminfer dlq show digits.yaml --where reason=model_error --since 10m
  streaminfer dlq replay digits.yaml --rate 100"""
REPLAY_NOTES = """\
A replayed record has its old bytes, key, headers, timestamp and partition, and one header more: streaminfer.replay,
how many times it has been replayed. One without an id of its own (ce_id, x-request-id or in the request) gets the
place it was first read at as x-request-id, so that its result has the id it would have had.

Each run goes on where the last one without --where, --since and --until stopped; how far that was is kept as the offsets of the group
<group.id>.dlq-replay. A run with one of these keeps nothing: the same command sends the same records again, and so does
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
            help=f"only letters with this {', '.join([*CONDITIONS][:-1])}, or with this in their message; repeat for more "
            "conditions, or the same name for alternatives",
        )
        added.add_argument(
            "--since",
            metavar="WHEN",
            type=since,
            help="only of records from so long ago on (10m, 2h), or from a time on",
        )
        added.add_argument("--until", metavar="WHEN", type=since, help="only of records before that")
        added.add_argument("--json", action="store_true", help="one JSON object per line and nothing else")
        return added

    listing = action("list", _list, "count dead letters by pipeline, reason and stage", LIST_EXAMPLE)
    listing.add_argument(
        "--by",
        choices=[*GROUPS],
        default="reason",
        help="count by this instead: by message, those that differ in numbers and quotations only are one "
        "(default: reason, which is pipeline, reason and stage)",
    )
    _add_show_options(action("show", show_letters, "show dead letters in full, the oldest first", EXAMPLE))
    _add_replay_options(
        action("replay", _replay, "send records back to the topics they came from", REPLAY_NOTES)
    )


def _add_show_options(show: argparse.ArgumentParser) -> None:
    show.add_argument(
        "--at",
        metavar="TOPIC/PARTITION/OFFSET",
        type=place,
        help="the one in this place of the dead-letter topic, or the one whose record was read in this place",
    )
    show.add_argument("--count", metavar="N", type=_positive(int), default=1, help="how many (default 1)")
    show.add_argument(
        "--out", metavar="FILE", type=Path, help="write the value of one letter to a file, all of its bytes"
    )
    show.add_argument(
        "--unwrap",
        action="store_true",
        help="show values as they are inside input.unwrap, with the keys of CONFIG",
    )


def _add_replay_options(replay: argparse.ArgumentParser) -> None:
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
    replay.add_argument(
        "--wait",
        metavar="S",
        nargs="?",
        const=WAIT_S,
        type=_positive(float),
        help=f"then wait until each record is answered or a dead letter again, for at most S seconds (default {WAIT_S:g}), "
        "and say what came back",
    )
    replay.add_argument("--dry-run", action="store_true", help="send nothing, say what would be sent")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action: list, show or replay.

    Raises:
        ConfigError: arguments or configuration.
        StartError: the broker does not answer or refuses us; a topic does not exist.
    """
    matches = matcher(args.where, args.since, args.until)
    if getattr(args, "out", None) is not None and (args.count != 1 or args.json):
        raise ConfigError("--out: expected one letter, without --json and --count")
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
    groups = grouped((letter for letter in reader.read({}) if matches(letter)), args.by)
    if args.json:
        for names, group in groups:
            print(json.dumps(as_object(args.by, names, group), ensure_ascii=False))
    elif groups:
        for line in table(args.by, groups):
            print(line)
    else:
        print(f"no dead letters in {settings.dead_letter.topic}" + " that match" * chooses(args))
    return 0


# replay


def _replay(
    args: argparse.Namespace, settings: Settings, reader: LetterReader, matches: Callable[[Letter], bool]
) -> int:
    from worker.kafka.letters import Returns

    topics = Topics(topic for pipeline in settings.pipelines.values() for topic in pipeline.input.topics)
    if args.wait is not None and args.dry_run:
        raise ConfigError("--wait: expected without --dry-run, which sends nothing")
    reader.check_replay(topics)
    back = Back(settings) if args.wait is not None else None  # it listens before anything is sent
    replay = Replay(
        reader,
        None
        if args.dry_run
        else Returns(settings, reader.partitions, back.expect if back is not None else None),
        topics=topics,
        rate=args.rate,
        keep_time=not args.now,
        keep_progress=not chooses(args),
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
        _report(args, replay, None)
        raise
    if back is not None:
        back.wait(args.wait)
    _report(args, replay, back)
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


def _report(args: argparse.Namespace, replay: Replay, back: Back | None) -> None:
    if args.json:
        skipped = {"trimmed": replay.trimmed, "foreign": replay.foreign}
        came = {"back": back.as_object()} if back is not None else {}
        print(json.dumps({"replayed": replay.sent, "skipped": skipped, "dry_run": args.dry_run, **came}))
        return
    print(f"{'would replay' if args.dry_run else 'replayed'} {replay.sent} record{'s' * (replay.sent != 1)}")
    if replay.trimmed:
        print(
            f"cannot replay {replay.trimmed}: the value did not fit the dead-letter topic, or could not be read"
        )
    if replay.foreign:
        print(f"left out {replay.foreign}: not from one of input.topics")
    if back is not None and replay.sent:
        print(back.describe(args.wait))
    if chooses(args) and replay.sent and not args.dry_run:
        given = [name for name in ("where", "since", "until") if getattr(args, name)]
        print(
            f"with {' and '.join(f'--{name}' for name in given)} no progress is kept: the same command would send them again"
        )


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
