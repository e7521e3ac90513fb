"""What ``check`` prints: a line for each check, for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, TypeVar

from worker import settings as configuration
from worker.errors import Mistake, WorkerError
from worker.settings import Settings
from worker.telemetry import logs

T = TypeVar("T")


class Report:
    """Prints one line per check as it is done and remembers the first failure."""

    def __init__(self, as_json: bool) -> None:
        self.first_failure: WorkerError | None = None
        self.settings: Settings | None = None
        """Once they are known: where they come from is said of every mistake."""
        self._as_json = as_json

    def check(self, name: str, subject: Callable[[], T], message: Callable[[T], str]) -> T | None:
        """Call ``subject``; its result, or None when it raised a `WorkerError`, whose sentence is printed."""
        try:
            with redirect_stdout(sys.stderr):  # custom code may print, and standard output is the report's
                result = subject()
        except WorkerError as error:
            self.fail(name, error)
            return None
        self.line(name, True, message(result))
        return result

    def fail(self, name: str, error: WorkerError, **more: object) -> None:
        if self.settings is not None:
            error = configuration.located(self.settings, error)
        self.first_failure = self.first_failure or error
        if not self._as_json:
            self._text(name, False, error.lines)
            return
        for mistake in error.mistakes:
            self._object(name, False, str(mistake), {**place_of(mistake), **more})

    def line(self, name: str, ok: bool, message: str, **more: object) -> None:
        """One check; ``more`` are keys of the JSON object beside the three that every check has."""
        if self._as_json:
            self._object(name, ok, message, more)
        else:
            self._text(name, ok, [message])

    def text(self, line: str) -> None:
        """A line for people and their shells, as it is; nothing in JSON."""
        if not self._as_json:
            print(logs.redact(line))

    def _object(self, name: str, ok: bool, message: str, more: Mapping[str, Any]) -> None:
        line = {"check": name, "ok": ok, "message": logs.redact(message), **more}
        print(json.dumps(line, ensure_ascii=False))

    def _text(self, name: str, ok: bool, lines: Sequence[str]) -> None:
        print(f"{'ok  ' if ok else 'FAIL'} {name:<11} {logs.redact(lines[0])}")
        for line in lines[1:]:
            print(f"     {logs.redact(line)}")


def place_of(mistake: Mistake) -> dict[str, Any]:
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
