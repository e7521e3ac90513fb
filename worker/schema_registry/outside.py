"""Schemas as something that records need from outside: the loop asks for them before a record is decoded.

A decoder that meets an unknown schema all the same, such as that of a wrapped value, lets the record wait by itself
(:class:`worker.errors.Waiting`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.batch import Columns, Headers
from worker.errors import Reject
from worker.outside import Away, Need
from worker.schema_registry.book import Shelf, one_line
from worker.schema_registry.frame import ID_BYTES, split


class SchemasNeeded:
    """See :class:`worker.outside.Outside`.

    Args:
        place: who is asked, for people.
        applies: whether a record with these headers is wrapped, so that its frame cannot be seen yet.
    """

    concurrency = 4
    shared = True

    def __init__(self, shelf: Shelf[Any], place: str, applies: Callable[[Headers | None], bool]) -> None:
        self._shelf = shelf
        self._place = place
        self._applies = applies
        self._known: set[bytes] = set()
        """Prefixes of values whose schema is known for good."""

    def need(self, payload: bytes | None, headers: Headers | None) -> Need | None:
        """The schema, if it is not known yet; what is wrong with the frame is told by the decoder."""
        if payload is None or self._applies(headers):
            return None
        try:
            key, _ = split(payload, headers)
        except Reject:
            return None
        return None if self._shelf.settled(key) else Need(f"schema {key}", self._place, key)

    def ask(self, need: Need, allowed_bytes: int) -> None:
        """Have the schema looked up. One that does not exist is the decoder's matter, too.

        Raises:
            Away: nobody can say now.
        """
        try:
            self._shelf.book.fetch(self._shelf, need.ticket)
        except Exception as error:
            raise Away(one_line(error)) from None

    def here(self, columns: Columns) -> bool:
        """Whether every schema of a take is known, found out without looking at each record where no headers are there."""
        values, headers = columns.values, columns.headers
        if not any(headers):
            prefixes = {value[:ID_BYTES] for value in values if value}
            unknown = prefixes - self._known
            if not unknown:
                return True
            for prefix in unknown:
                if prefix[:1] == b"\0" and self._shelf.known(int.from_bytes(prefix, "big")) is not None:
                    self._known.add(prefix)
            if prefixes <= self._known:
                return True
        return all(self.need(*record) is None for record in zip(values, headers, strict=True))
