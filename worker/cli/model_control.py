"""The verbs of ``streaminfer model`` that read and write the control topic."""

from __future__ import annotations

import argparse
import getpass
import json
import socket
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from worker.errors import ConfigError, StartError
from worker.kafka.control import ControlTopic, open_control
from worker.serving.control import (
    CLI,
    ID_DIGEST,
    Book,
    Decision,
    Mode,
    Pin,
    Record,
    State,
    decoded,
    encoded,
)
from worker.serving.limits import total
from worker.serving.steward import READ_S, nonce, read_books
from worker.serving.versions import digest_of, repository_of
from worker.settings import Settings

WRITE_S = 15.0
"""Longest wait until what was written is read back."""
SHOWN = 5
"""Decisions that ``status`` shows."""
SINGLE = ("start", "promote", "rollback", "pin", "unpin")


@dataclass(frozen=True, slots=True)
class Desk:
    """One pipeline at which somebody decides: the topic, and what it says."""

    settings: Settings
    control: ControlTopic
    books: dict[str, Book]
    pipeline: str
    by: str

    @property
    def book(self) -> Book:
        return self.books[self.pipeline]

    def write(self, record: Record) -> None:
        """Write a record and wait until it is read back.

        Raises:
            StartError: it was not written.
        """
        value, deadline_s = encoded(record), time.monotonic() + WRITE_S
        self.control.write(record.key(nonce()), value)
        while time.monotonic() < deadline_s:
            for each in self.control.read(READ_S):
                found = decoded(each)
                if found is not None and found.pipeline in self.books:
                    self.books[found.pipeline].take(found)
                if each == value:
                    return
        raise StartError(f"control.topic: {self.control.topic} did not take the record in {WRITE_S:g} s")


def run(settings: Settings, args: argparse.Namespace) -> int:
    """Do what the verb says, and print what came of it.

    Raises:
        WorkerError: there is no control topic, or the verb does not fit what it says.
    """
    if settings.control is None:
        raise ConfigError(
            f"{args.verb}: control.topic is not set; expected control: {{topic: <name>}}, where all replicas read "
            "which version answers"
        )
    names = _names(settings, args)
    control = open_control(settings, make=False)
    try:
        books = read_books(control, names)
        if args.verb == "status":
            for name in names:
                _show(_status(name, books[name]), args.json)
            return 0
        desk = Desk(settings, control, books, names[0], f"{CLI}{getpass.getuser()}@{socket.gethostname()}")
        record, counts = _decide(desk, args)
        if not counts:
            raise StartError(_too_late(record, desk.book))
        print(encoded(record).decode() if args.json else _sentence(record))
        return 0
    finally:
        control.close(1.0)


def _names(settings: Settings, args: argparse.Namespace) -> list[str]:
    """The pipelines that the verb is about: one, except for ``status``."""
    names = [name for name, each in settings.pipelines.items() if each.model.repository is not None]
    if args.pipeline is not None:
        if args.pipeline not in names:
            raise ConfigError(
                f"--pipeline: got {args.pipeline}, expected one with model.repository: {', '.join(names)}"
            )
        return [args.pipeline]
    if len(names) > 1 and args.verb in SINGLE:
        raise ConfigError(f"{args.verb}: expected --pipeline with one of {', '.join(names)}")
    return names


def _decide(desk: Desk, args: argparse.Namespace) -> tuple[Record, bool]:
    """Write what the verb says; the record, and whether it counts."""
    match args.verb:
        case "start":
            return _start(desk, args)
        case "pin":
            return _pin(desk, args.version)
        case "unpin":
            return _unpin(desk)
        case _:
            return _end(
                desk, "promoted" if args.verb == "promote" else "rolled_back", f"by hand: {args.verb}"
            )


def _start(desk: Desk, args: argparse.Namespace) -> tuple[Record, bool]:
    """Begin a rollout, or give the one that runs a larger share."""
    book, version = desk.book, str(args.version)
    if args.share is not None and not 0 < args.share <= 1:
        raise ConfigError(f"--share: got {args.share:g}, expected more than 0 and at most 1")
    if book.pin is not None:
        raise ConfigError(f"start: version {book.pin} is pinned; expected unpin first")
    running = book.running
    if running is not None:
        return _grow(desk, running, version, args)
    if book.stable is None:
        raise ConfigError(
            f"start: no worker has run with {desk.control.topic} yet; expected a worker that answers"
        )
    if version == book.stable:
        raise ConfigError(f"start: version {version} answers already")
    rules = desk.settings.pipelines[desk.pipeline].rollout
    mode: Mode = args.mode or (rules.mode if rules is not None else "canary")
    share = args.share if args.share is not None else (rules.share if rules is not None else 0.1)
    digest = _digest(desk, version)[:ID_DIGEST]
    record = Decision(
        desk.pipeline, f"{digest}-{uuid.uuid4().hex[:8]}", book.stable, version, mode, share, "running", "by hand: start",
        desk.by, _now_ms(),
    )  # fmt: skip
    desk.write(record)
    return record, book.running is not None and book.running.id == record.id


def _grow(desk: Desk, running: Decision, version: str, args: argparse.Namespace) -> tuple[Record, bool]:
    """Give the candidate of the rollout that runs a larger share."""
    if version != running.candidate or args.share is None or (args.mode or running.mode) != running.mode:
        raise ConfigError(
            f"start: a rollout of version {running.candidate} runs already ({running.mode}); expected promote or "
            "rollback first"
        )
    if args.share <= running.share or running.mode == "shadow":
        raise ConfigError(
            f"--share: version {version} has {running.share:g} already; expected more: a key never goes back while a "
            "rollout runs"
        )
    record = replace(running, share=args.share, reason="by hand: more keys", by=desk.by, time_ms=_now_ms())
    desk.write(record)
    now = desk.book.running
    return record, now is not None and now.id == record.id and now.share >= args.share


def _end(desk: Desk, state: State, reason: str) -> tuple[Record, bool]:
    """Decide about the rollout that runs."""
    running = desk.book.running
    if running is None:
        stable = desk.book.stable
        answers = f"version {stable} answers everything" if stable else "no worker has run yet"
        raise ConfigError(f"no rollout of {desk.pipeline} runs: {answers}")
    record = replace(running, state=state, reason=reason, by=desk.by, time_ms=_now_ms())
    desk.write(record)
    return record, desk.book.decided[record.id] == record


def _pin(desk: Desk, version: str) -> tuple[Record, bool]:
    """Let one version answer; the rollout that runs ends first."""
    _digest(desk, version)
    if desk.book.running is not None:
        _end(desk, "aborted", f"version {version} is pinned")
    record = Pin(desk.pipeline, version, None, desk.by, _now_ms())
    desk.write(record)
    return record, desk.book.pin == version


def _unpin(desk: Desk) -> tuple[Record, bool]:
    if desk.book.pin is None:
        raise ConfigError(f"unpin: no version of {desk.pipeline} is pinned")
    record = Pin(desk.pipeline, None, desk.book.pin, desk.by, _now_ms())
    desk.write(record)
    return record, desk.book.pin is None


def _digest(desk: Desk, version: str) -> str:
    """Of the version's files; says whether the repository has it."""
    repository = repository_of(desk.settings, desk.pipeline)
    assert repository is not None
    if version not in {each.version.name for each in repository.versions()}:
        names = ", ".join(each.version.name for each in repository.versions()) or "none"
        raise ConfigError(f"version {version} is not in the repository of {desk.pipeline}; there are {names}")
    return digest_of(repository.local(repository.find(version)))


def _status(name: str, book: Book) -> dict[str, Any]:
    """What the topic says of a pipeline, as plain data."""
    running = book.running
    figures = total(each.figures for each in book.seen.values()) if book.seen else None
    return {
        "pipeline": name,
        "stable": book.stable,
        "pin": book.pin,
        "rollout": asdict(running) if running is not None else None,
        "figures": asdict(figures) if figures is not None else None,
        "replicas": len(book.seen),
        "decisions": [asdict(each) for each in [*book.decided.values()][-SHOWN:]],
    }


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status, ensure_ascii=False))
        return
    pinned = " (pinned)" if status["pin"] else ""
    stable = f"version {status['stable']} answers{pinned}" if status["stable"] else "no worker has run yet"
    print(f"{status['pipeline']}: {stable}")
    running, figures = status["rollout"], status["figures"]
    if running is not None:
        share = f", share {running['share']:g}" if running["mode"] == "canary" else ""
        print(
            f"  rollout of version {running['candidate']}: {running['mode']}{share}, since {_time(running)}"
        )
        print(f"    begun by {running['by']}: {running['reason']}")
    if figures is not None:
        for arm in ("stable", "candidate"):
            its = figures[arm]
            print(
                f"    {arm:<9} {its['records']} records, {its['errors']} errors, {its['infer_us']:.0f} µs a record"
            )
        if figures["compared"]:
            print(f"    compared  {figures['compared']} records, {figures['disagreed']} disagreed")
    for each in status["decisions"]:
        print(f"  {_time(each)} {each['candidate']} {each['state']}: {each['reason']} ({each['by']})")


def _sentence(record: Record) -> str:
    """What came of it, in one line."""
    if isinstance(record, Pin):
        if record.version is None:
            return f"{record.pipeline}: version {record.was} is pinned no longer; it answers until another is tried"
        return f"{record.pipeline}: version {record.version} is pinned"
    assert isinstance(record, Decision)
    if record.state == "running":
        share = f" for {record.share:g} of the keys" if record.mode == "canary" else ""
        return f"{record.pipeline}: the rollout of version {record.candidate} begins ({record.mode}{share})"
    answers = record.candidate if record.state == "promoted" else record.stable
    return f"{record.pipeline}: version {record.candidate} is {record.state}; version {answers} answers everything"


def _too_late(record: Record, book: Book) -> str:
    """Why a record does not count."""
    first = (book.decided.get(record.id) if isinstance(record, Decision) else None) or book.running
    said = f": {first.state} by {first.by} ({first.reason})" if first is not None else ""
    return f"{record.pipeline}: too late, because something else was decided before{said}"


def _time(record: dict[str, Any]) -> str:
    return datetime.fromtimestamp(record["time_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _now_ms() -> int:
    return int(time.time() * 1000)
