"""``/events``: server-sent events, one a second, built once for all who read.

Each reader has the thread of its connection. One that reads too slowly for :data:`worker.telemetry.http.ANSWER_S` is
dropped by the server, and one that misses a second gets the next: nothing is kept for it here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus

from worker.telemetry.routes import Answer, Stream, sentence

MOST_READERS = 16
"""Most streams at once."""
_RETRY_MS = 2000
"""How soon a reader that loses its stream comes back."""
_QUIET_S = 15.0
"""After so long without an event a comment is sent, so that a proxy does not take the stream for dead."""


def event(name: str, data: bytes) -> bytes:
    """One event; ``data`` has no line breaks, as JSON without indentation has none."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


class Events:
    """The readers, and what the next event is.

    Args:
        first: makes the first event of a reader. It is called on the reader's thread.
    """

    def __init__(self, first: Callable[[], bytes]) -> None:
        self._first = first
        self._changed = threading.Condition()
        self._number = 0
        self._latest = b""
        self._readers = 0
        self._closed = False

    @property
    def readers(self) -> int:
        """How many read now."""
        return self._readers

    def open(self) -> Answer | Stream:
        """A new stream; a sentence where there are ``MOST_READERS`` already."""
        with self._changed:
            if self._closed or self._readers >= MOST_READERS:
                return sentence(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{MOST_READERS} readers of /events are here already, which is the most; /state tells the same once",
                    {"Retry-After": "10"},
                )
            self._readers += 1
        return _Reader(self)

    def publish(self, made: bytes) -> None:
        """Give an event to every reader."""
        with self._changed:
            self._number += 1
            self._latest = made
            self._changed.notify_all()

    def close(self) -> None:
        """End every stream."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def parts(self) -> Iterator[bytes]:
        """What one reader gets."""
        with self._changed:
            seen = self._number
        yield b"retry: %d\n\n" % _RETRY_MS + self._first()
        while True:
            with self._changed:
                if self._number == seen and not self._closed:
                    self._changed.wait(_QUIET_S)
                if self._closed:
                    break
                made = self._latest if self._number > seen else b": still here\n\n"
                seen = self._number
            yield made

    def left(self) -> None:
        with self._changed:
            self._readers -= 1


class _Reader:
    """See :class:`worker.telemetry.routes.Stream`."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def parts(self) -> Iterator[bytes]:
        return self._events.parts()

    def close(self) -> None:
        self._events.left()
