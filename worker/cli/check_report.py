"""What ``check`` prints: a row for each check and a last line for people, or a JSON object for each check."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, TypeVar

from worker import settings as configuration
from worker.errors import Mistake, NotReady, WorkerError
from worker.settings import Settings
from worker.telemetry import logs
from worker.text import printable

T = TypeVar("T")
_COLOURS = {"ok": "32", "FAIL": "1;31", "--": "2"}
_WIDTH = 11
_BYTES = re.compile(r"\b(\d{5,}) bytes\b")


class Report:
    """Prints what is found as it is found, and remembers the first failure.

    Args:
        as_json: one object for each check on standard output and nothing else.
        quiet: only what fails.
        about: keys that every JSON object has besides its own.
    """

    def __init__(self, as_json: bool, quiet: bool = False, about: Mapping[str, Any] | None = None) -> None:
        self.first_failure: WorkerError | None = None
        self.settings: Settings | None = None
        """Once they are known: where they come from is said of every mistake."""
        self.failed: list[str] = []
        """Names of the checks that failed."""
        self._rows = 0
        self._as_json, self._quiet, self._about = as_json, quiet, about or {}
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def check(
        self,
        name: str,
        subject: Callable[[], T],
        message: Callable[[T], str],
        row: Callable[[T], str] | None = None,
    ) -> T | None:
        """Call ``subject``; its result, or None when it raised a `WorkerError`, whose sentence is printed.

        Args:
            message: the sentence about the result.
            row: what people read instead; empty text: no row.
        """
        try:
            with redirect_stdout(sys.stderr):  # custom code may print, and standard output is the report's
                result = subject()
        except WorkerError as error:
            self.fail(name, error)
            return None
        if self._as_json or row is None:
            self.line(name, True, message(result))
        else:
            self.row(name, row(result))
        return result

    def fail(self, name: str, error: WorkerError, **more: object) -> None:
        """A check that failed; ``more`` are keys of the JSON object beside the three that every check has."""
        if self.settings is not None:
            error = configuration.located(self.settings, error)
        self.first_failure = self.first_failure or error
        self.failed.append(name)
        if self._as_json:
            for mistake in error.mistakes:
                self._object(name, False, str(mistake), {**_place_of(mistake), **more})
        else:
            self._show("FAIL", "topics" if isinstance(error, NotReady) else name, error.lines)

    def line(self, name: str, ok: bool, message: str, **more: object) -> None:
        """A check that is well, for people and for programs."""
        if not self._as_json:
            self.row(name, message, "ok" if ok else "FAIL")
        elif not self._quiet:
            self._object(name, ok, message, more)

    def row(self, name: str, message: str, verdict: str = "ok") -> None:
        """A row for people alone; none if there is nothing to say. The verdict ``--`` says that nothing was checked."""
        if message and not self._as_json and not self._quiet:
            self._show(verdict, name, [_BYTES.sub(_size, line) for line in message.split("\n")])

    def detail(self, name: str, message: str) -> None:
        """What programs are told and people read in another row."""
        if self._as_json:
            self.line(name, True, message)

    def hint(self, line: str) -> None:
        """What people may do about the failure above."""
        if not self._as_json:
            print(f"     {logs.redact(line)}")

    def text(self, line: str) -> None:
        """A line for people and their shells, as it is; nothing in JSON."""
        if not self._as_json:
            print(logs.redact(line))

    def end(self) -> None:
        """The last line for people: how many checks are well, or how many of them failed."""
        if self._as_json or self._quiet:
            return
        if self.first_failure is None:
            print(f"{self._rows} ok")
        else:
            code = self.first_failure.exit_code
            print(f"{len(self.failed)} of {self._rows} failed (exit {code})")

    @property
    def told(self) -> bool:
        """Whether the user has read the failure already, on the terminal on which it would be said again."""
        return not self._as_json and sys.stdout.isatty() and sys.stderr.isatty()

    def _show(self, verdict: str, name: str, lines: Sequence[str]) -> None:
        self._rows += verdict != "--"
        first, *rest = (printable(logs.redact(line)) for line in lines)
        mark = f"{verdict:<4}"
        if self._colours:
            mark = f"\x1b[{_COLOURS[verdict]}m{mark}\x1b[0m"
        print(f"{mark} {name:<{_WIDTH}} {first}")
        for line in rest:
            print(f"     {line}")

    def _object(self, name: str, ok: bool, message: str, more: Mapping[str, Any]) -> None:
        line = {"check": name, "ok": ok, "message": logs.redact(message), **self._about, **more}
        print(json.dumps(line, ensure_ascii=False))


def _size(count: re.Match[str]) -> str:
    """A number of bytes that nobody would read, as a person says it."""
    size, unit = int(count[1]) / 1024, "KiB"
    if size >= 1024:
        size, unit = size / 1024, "MiB"
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


def _place_of(mistake: Mistake) -> dict[str, Any]:
    """Where a mistake is, for a program; the keys that are known."""
    known = {"file": mistake.file, "line": mistake.line, "column": mistake.column}
    return {key: value for key, value in known.items() if value}


def every(check: Callable[..., T], subjects: Sequence[tuple[Any, ...]]) -> list[T]:
    """The answer to each call.

    Raises:
        WorkerError: of the class of the first that failed, with the mistakes of all that did.
    """
    answers: list[T] = []
    failed: list[WorkerError] = []
    for subject in subjects:
        try:
            answers.append(check(*subject))
        except WorkerError as error:
            failed.append(error)
    if failed:
        raise type(failed[0]).of([mistake for error in failed for mistake in error.mistakes])
    return answers
