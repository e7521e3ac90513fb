"""What records need from outside before they can be decoded: a payload in a store, a schema in a registry.

The loop asks an :class:`Outside` on threads of its own, never on its own thread and never on the pool's
(:mod:`worker.loop.fetching`). Everything that both sides say to each other is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from worker.batch import Headers
from worker.errors import Reject


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a record waits for. Needs that are equal ask for the same thing."""

    what: str
    """The thing, for people: a URL without its secrets, ``schema 7``."""
    place: str
    """Who is asked, for people: ``store s3://frames``, ``registry https://schemas``. One that is away is told once."""
    ticket: Any = None
    """What :meth:`Outside.ask` needs to know beside that; hashable where :attr:`Outside.shared` is true."""


@dataclass(frozen=True, slots=True)
class Sized:
    """There is a payload, and it is larger than the bytes that the asker was allowed. Nothing of it is read yet."""

    nbytes: int
    """Bytes that reading takes at most."""
    read: Callable[[], bytes]
    """Read it, on a thread that may block; raises what :meth:`Outside.ask` raises."""
    close: Callable[[], None]
    """Give it up unread. Quick, and from any thread."""


class Away(Exception):
    """The one that was asked cannot be reached now, or is not well: ask again, for as long as it takes.

    Args:
        message: why, for people, without secrets.
    """


class NotYet(Exception):
    """The thing is not there, or not whole: ask again for a while, then the record is rejected.

    Args:
        reject: what the record becomes after that.
        within_s: seconds from the first such answer in which it may still come.
        tries: such answers in all after which it is rejected although time is left; None = time alone counts.
    """

    def __init__(self, reject: Reject, within_s: float, tries: int | None = None) -> None:
        super().__init__(str(reject))
        self.reject = reject
        self.within_s = within_s
        self.tries = tries


class Outside(Protocol):
    """Someone outside of whom the records of a route need something. Used by the loop's thread and by I/O threads."""

    @property
    def concurrency(self) -> int:
        """Most calls of :meth:`ask` and :attr:`Sized.read` at once."""

    @property
    def shared(self) -> bool:
        """One answer serves all records with an equal need, now and later (a schema). Else each record asks for itself."""

    # An outside may also have ``here(columns) -> bool``: whether every record of a take certainly has all that it needs. It
    # is asked before each record is looked at, so it must be quicker than that.

    def need(self, payload: bytes | None, headers: Headers | None) -> Need | None:
        """What a record needs; None when that is nothing, or is here already. Quick: the loop's thread calls it.

        Args:
            payload: the record's value, or what an earlier outside of the route gave for it.

        Raises:
            Reject: the record says what it needs in a way that cannot be followed.
        """

    def ask(self, need: Need, allowed_bytes: int) -> bytes | Sized | None:
        """Ask for it. May block; several threads at once.

        Args:
            allowed_bytes: a payload up to this size may be read at once; its memory is accounted for.

        Returns:
            The record's payload; None where the payload stays as it is.

        Raises:
            Away, NotYet: ask again.
            Reject: the record gets a dead letter.
        """
