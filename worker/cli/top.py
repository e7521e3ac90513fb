"""``streaminfer top``: all replicas of a group in a terminal, from the metrics topic."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from worker import settings as configuration
from worker.cli.connect import above_zero, connection
from worker.cli.main import add_set_option
from worker.cli.text import harmless
from worker.cli.top_view import lines
from worker.errors import ConfigError
from worker.kafka.tools import TopicReader
from worker.settings import Settings
from worker.telemetry.follower import BACK_S
from worker.telemetry.group import GroupView

READ_S = 0.2
FIRST_S = 2.0
"""How long the first look waits for a record."""
QUIET_S = 0.5
"""So long without a record, everything that was there is read."""

EXAMPLE = """\
examples:
  streaminfer top digits.yaml
  streaminfer top digits.yaml --once
  streaminfer top digits.yaml --json | jq .totals.lag"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show all replicas of the group of CONFIG, from its metrics topic. q or Ctrl-C ends it. "
        "Where standard output is no terminal, it is printed once."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--json", action="store_true", help="print once, as one JSON object")
    parser.add_argument(
        "--interval", type=above_zero, default=1.0, metavar="S", help="seconds between two looks (default: 1)"
    )
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Show the group until the user ends it, or once.

    Raises:
        ConfigError: the configuration names no metrics topic.
        StartError: no broker, or no such topic.
    """
    settings = configuration.load(args.config, args.overrides)
    topic = settings.metrics.topic
    if topic is None:
        raise ConfigError(
            "metrics.topic: expected a topic, because top shows what the replicas write there every few seconds"
        )
    view = GroupView(settings.kafka["group.id"])
    client = connection("streaminfer-top", None, [], settings)
    reader = TopicReader(client, [topic], int((time.time() - BACK_S) * 1000))
    try:
        once = args.json or args.once or not (sys.stdout.isatty() and sys.stdin.isatty())
        _catch_up(reader, view, settings.metrics.interval_s if once else 0.0)
        if args.json:
            sys.stdout.buffer.write(harmless(orjson.dumps(_state(view, settings))) + b"\n")
        elif once:
            width = shutil.get_terminal_size((100, 24)).columns
            print("\n".join(lines(_state(view, settings), width, False)))
        else:
            _live(reader, view, settings, args.interval)
    finally:
        reader.close()
    return 0


def _state(view: GroupView, settings: Settings) -> dict[str, object]:
    state = view.state(int(time.time() * 1000))
    return {
        "type": "streaminfer.top",
        "schema": 1,
        "time_ms": int(time.time() * 1000),
        "group": settings.kafka["group.id"],
        "topic": settings.metrics.topic,
        "interval_s": settings.metrics.interval_s,
        **state,
    }


def _catch_up(reader: TopicReader, view: GroupView, patience_s: float) -> None:
    """Read what is there already; where nothing is, wait for what comes within one interval."""
    deadline_s = time.monotonic() + FIRST_S + patience_s
    quiet_s: float | None = None
    while time.monotonic() < (deadline_s if quiet_s is None else min(deadline_s, quiet_s)):
        records = reader.read(READ_S)
        for record in records:
            view.add(record.value)
        if records:
            quiet_s = time.monotonic() + QUIET_S


def _live(reader: TopicReader, view: GroupView, settings: Settings, interval_s: float) -> None:
    colour = "NO_COLOR" not in os.environ
    with _screen(), _keys() as pressed:
        due_s = time.monotonic()
        size = os.terminal_size((0, 0))
        while True:
            now = _size()
            if time.monotonic() >= due_s or now != size:
                size, due_s = now, time.monotonic() + interval_s
                shown = lines(_state(view, settings), now.columns, colour)[: now.lines - 1]
                # Each line is cleared to its end, so nothing flickers and nothing of a wider screen stays.
                sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K\x1b[J")
                sys.stdout.flush()
            if pressed() in ("q", "Q"):
                return
            for record in reader.read(READ_S):
                view.add(record.value)


@contextmanager
def _screen() -> Iterator[None]:
    """The other screen of the terminal, without a cursor; the first one comes back at the end."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


class _Pressed:
    """The key that was pressed since the last call; empty if none was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self) -> str:
        if not select.select([self._descriptor], [], [], 0)[0]:
            return ""
        return os.read(self._descriptor, 1).decode("ascii", "replace") or "q"


@contextmanager
def _keys() -> Iterator[_Pressed]:
    """Keys one by one, without echo."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _Pressed(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _size() -> os.terminal_size:
    """Of the terminal itself: a COLUMNS in the environment would hide that its size changes."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return shutil.get_terminal_size()
