"""What is known of schemas, and one thread that asks for the others.

A decoder asks its :class:`Shelf` for the reader of a schema and never waits: either it is there, or the schema is refused, or
the record is tried again later. The thread asks the registry, makes the reader, and puts it on the shelf. A registry that
does not answer is asked again, with growing pauses, until it does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog

from worker.errors import Reject, Waiting
from worker.schema_registry.frame import SchemaKey
from worker.schema_registry.schema import Kind, Schema

R = TypeVar("R")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
"""Between two requests to a registry that does not answer."""
UNKNOWN_S = 5.0
"""For so long the registry's word that it does not know an id is believed."""
MOST_WAITING = 10_000
"""Ids that are asked for at once. Damaged records name ids at random; the further ones wait for their turn."""
MOST_REFUSED = 10_000
LOOK_AGAIN_S = 0.01
"""First pause of a record that waits for its schema."""

log = structlog.get_logger()


class UnknownSchema(Exception):
    """The registry has answered that it has no such schema."""


class Source(Protocol):
    """Where schemas come from: see :mod:`worker.schema_registry.client`."""

    def get(self, key: SchemaKey, kind: Kind) -> Schema:
        """One schema.

        Raises:
            UnknownSchema: there is none of this id.
            Exception: nobody can say now: ask again.
        """


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why records of a schema cannot be read."""

    message: str
    until_s: float
    """Monotonic seconds; after that the registry is asked again."""


class Shelf(Generic[R]):
    """The readers of one kind of schemas, by schema. Any thread may ask.

    Args:
        kind: the type that its schemas must have.
        make: makes a reader of a schema; raises :class:`Reject` if it cannot. The book's thread calls it.
    """

    def __init__(self, book: Schemas, kind: Kind, make: Callable[[Schema], R]) -> None:
        self.kind: Kind = kind
        self.book = book
        self._make = make
        self.heaviest = 0
        """Most bytes of memory that a record of one of its schemas takes for each byte of its own."""
        self._readers: dict[SchemaKey, R] = {}
        self._refused: dict[SchemaKey, _Refused] = {}

    def known(self, key: SchemaKey) -> R | None:
        """The reader of a schema if it is there; asks for nothing."""
        return self._readers.get(key)

    def reader(self, key: SchemaKey) -> R:
        """The reader of a schema.

        Raises:
            Reject: ``invalid``: records of this schema cannot be read.
            Waiting: it is not known yet, and now it is asked for.
        """
        found = self._readers.get(key)
        if found is not None:
            return found
        if not self.settled(key):
            self.book.ask(self, key)
            if not self.settled(key):
                raise Waiting(f"the schema {key} is not known yet", LOOK_AGAIN_S)
        found = self._readers.get(key)
        if found is not None:
            return found
        raise Reject(self._refused[key].message)

    def settled(self, key: SchemaKey) -> bool:
        """Whether a record of this schema needs not wait: it can be read, or is refused."""
        if key in self._readers:
            return True
        refused = self._refused.get(key)
        return refused is not None and time.monotonic() < refused.until_s

    def put(self, key: SchemaKey, schema: Schema) -> None:
        """Make the reader of a schema, or note why there is none."""
        try:
            schema.check(self.kind)
            reader = self._make(schema)
            self.heaviest = max(self.heaviest, getattr(reader, "per_byte", 0))
            self._readers[key] = reader
        except Exception as error:  # whatever a hostile schema causes, its records alone are refused
            said = str(error) if isinstance(error, Reject) else f"it cannot be read: {one_line(error)}"
            self.refuse(key, f"the schema {key}: {said}", float("inf"))

    def refuse(self, key: SchemaKey, message: str, for_s: float) -> None:
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused[key] = _Refused(message, time.monotonic() + for_s)


class Schemas:
    """The schemas that a process knows or waits for.

    Args:
        source: where they come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._shelves: dict[Kind, Shelf[Any]] = {}
        self._asked: dict[tuple[Shelf[object], SchemaKey], None] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._away: tuple[float, str] | None = None
        self.requests = {"found": 0, "unknown": 0, "failed": 0}
        """Requests for schemas by result."""

    def shelf(self, kind: Kind, make: Callable[[Schema], R]) -> Shelf[R]:
        """The shelf of a kind of schemas; see :class:`Shelf`. All decoders of a process share it.

        Args:
            make: the same for each call with this kind.
        """
        with self._changed:
            return self._shelves.setdefault(kind, Shelf(self, kind, make))

    def fetch(self, shelf: Shelf[R], key: SchemaKey) -> None:
        """Look up one schema now, and note what is found; blocks.

        Raises:
            Exception: nobody can say now.
        """
        if shelf.settled(key):
            return
        try:
            schema = self._source.get(key, shelf.kind)
        except UnknownSchema as error:
            self.requests["unknown"] += 1
            shelf.refuse(key, f"the schema {key} is not known to the registry: {error}", UNKNOWN_S)
        except Exception:
            self.requests["failed"] += 1
            raise
        else:
            self.requests["found"] += 1
            shelf.put(key, schema)

    def ask(self, shelf: Shelf[R], key: SchemaKey) -> None:
        """Have a schema looked up; returns at once."""
        with self._changed:
            if self._closed or len(self._asked) >= MOST_WAITING:
                return
            self._asked.setdefault((shelf, key))  # type: ignore[arg-type]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="schemas", daemon=True)
                self._thread.start()
            self._changed.notify()

    def away(self) -> str | None:
        """A sentence while the registry does not answer and something waits for it."""
        away = self._away
        if away is None:
            return None
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(away[0]))
        return f"waiting for the schema registry since {since}: {away[1]}"

    def close(self) -> None:
        """Stop asking. Records that wait are tried again for nothing from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while (asked := self._next()) is not None:
            if self.look_up(*asked):
                pause_s = FIRST_PAUSE_S
                continue
            with self._changed:
                self._asked[asked] = self._asked.pop(
                    asked, None
                )  # behind the others: a folder may know those
                if not self._closed:
                    self._changed.wait_for(lambda: self._closed, pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _next(self) -> tuple[Shelf[object], SchemaKey] | None:
        with self._changed:
            while not self._asked and not self._closed:
                self._changed.wait()
            return None if self._closed else next(iter(self._asked))

    def look_up(self, shelf: Shelf[R], key: SchemaKey) -> bool:
        """Ask for one schema and wait for the answer; False if nobody can say now."""
        try:
            self.fetch(shelf, key)
        except Exception as error:
            if self._away is None:
                log.warning("the schema registry does not answer", schema=key, error=one_line(error))
                self._away = (time.time(), one_line(error))
            return False
        if self._away is not None:
            log.info("the schema registry answers again")
            self._away = None
        with self._changed:
            self._asked.pop((shelf, key), None)  # type: ignore[arg-type]
        return True


def one_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
