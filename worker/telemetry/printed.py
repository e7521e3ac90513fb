"""What custom code and libraries print to Python's standard error, as log lines: a log collector reads JSON and nothing else."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import TextIO

MOST_CHARACTERS = 8192
"""A longer line is told in parts."""


class Printed(io.TextIOBase):
    """Stands in place of ``sys.stderr`` and tells each line that is written to it.

    Args:
        behind: the stream in whose place it stands.
        tell: gets one line, without its end. It must not write to ``sys.stderr``.
    """

    def __init__(self, behind: TextIO, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.behind = behind
        self._tell = tell
        self._part = ""
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.behind.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """For a child process that inherits it."""
        return self.behind.fileno()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._part = (self._part + text).split("\n")
            if len(self._part) > MOST_CHARACTERS:
                lines, self._part = [*lines, self._part], ""
        for line in lines:
            if line.strip():
                self._tell(line[:MOST_CHARACTERS])
        return len(text)


def behind(stream: TextIO) -> TextIO:
    """The stream behind a `Printed`, or the stream itself."""
    return stream.behind if isinstance(stream, Printed) else stream


def take_over(tell: Callable[[str], object]) -> None:
    """Put a `Printed` in place of ``sys.stderr``, once."""
    if sys.stderr is not None and not isinstance(sys.stderr, Printed):
        sys.stderr = Printed(sys.stderr, tell)
