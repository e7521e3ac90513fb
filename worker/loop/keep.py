"""``input.keep``: which of the records that are taken wait for an answer, and which are left out because newer ones came.

A record that is left out has no output. It leaves the open slab at once, so that a camera that is faster than its model
fills no memory. Its offset is then a gap in front of a later record of the same partition, which the position moves over
as over any other gap. Where no such record is there, one record of the take stays, marked, and is dropped in its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from worker.batch import RENAMED_HEADERS, SKIPPED_RECORD, UNREAD_RECORD, Columns, Partition, Route, Span

KEYS_COUNTED = 100_000
"""Keys whose records are counted for ``every``; beyond, the one whose last record is oldest begins anew."""

_MARKS = (RENAMED_HEADERS, UNREAD_RECORD, SKIPPED_RECORD)

Key = tuple[Route, Partition, bytes | None]
"""What newer records count for: the key in its partition; None = records without a key."""


class LeftOut(NamedTuple):
    """Records of one route that were taken and are not answered."""

    route: Route
    records: int
    gone: int
    """Of these, the ones that are in no slab; their values had ``nbytes``."""
    nbytes: int


class Keep:
    """What an intake keeps. The loop's thread alone uses it.

    Args:
        routes: of the intake.
        route_of: the route of each record.
    """

    def __init__(
        self, routes: Sequence[Route], route_of: Callable[[Columns], Sequence[Route | None]]
    ) -> None:
        self._latest = frozenset(route for route in routes if route.keep == "latest")
        self._every = {route: route.keep for route in routes if isinstance(route.keep, int)}
        self._route_of = route_of
        self._counts: OrderedDict[Key, int] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything is ever left out."""
        return bool(self._latest or self._every)

    @property
    def newest_only(self) -> bool:
        """Whether newer records take the place of those that wait, so that taking more is worth while."""
        return bool(self._latest)

    def sparse(self, columns: Columns, spans: list[Span]) -> tuple[Columns, list[Span], list[LeftOut]]:
        """A take without the records that ``every`` passes over."""
        if not self._every or not len(columns):
            return columns, spans, []
        routes = self._route_of(columns)
        passed = {row for row, key in self._keys(columns, routes) if self._passes(key)}
        if not passed:
            return columns, spans, []
        marked = set()
        for span in spans:
            if passed.issuperset(range(span.start, span.stop)):
                row = span.stop - 1
                columns.headers[row] = [(SKIPPED_RECORD, None), *(columns.headers[row] or ())]
                columns.values[row] = columns.keys[row] = None
                marked.add(row)
        gone = passed - marked
        told = _told(columns, routes, sorted(passed), gone)
        rows = [row for row in range(len(columns)) if row not in gone]
        return columns.select(rows), without(spans, gone), told

    def superseded(self, columns: Columns) -> tuple[set[int], list[LeftOut]]:
        """Rows of an open slab behind which there is a newer one of the same key."""
        if not self._latest or len(columns) < 2:
            return set(), []
        routes = self._route_of(columns)
        newest: dict[Key, int] = {}
        for row, key in self._keys(columns, routes):
            if key[0] in self._latest:
                newest[key] = row
        older = {
            row for row, key in self._keys(columns, routes) if key[0] in self._latest and newest[key] != row
        }
        return older, _told(columns, routes, sorted(older), older)

    def _keys(self, columns: Columns, routes: Sequence[Route | None]) -> Iterator[tuple[int, Key]]:
        """The rows that have a route and are whole, each with what newer records count for."""
        rows = zip(routes, columns.partitions, columns.keys, columns.headers, strict=True)
        for row, (route, partition, key, headers) in enumerate(rows):
            if route is not None and not (headers and any(headers[0][0] is mark for mark in _MARKS)):
                yield row, (route, partition, key)

    def _passes(self, key: Key) -> bool:
        """Count a record of a key; whether ``every`` passes over it. The first one is answered."""
        every = self._every.get(key[0])
        if every is None:
            return False
        count = self._counts.pop(key, 0)
        self._counts[key] = (count + 1) % every
        if len(self._counts) > KEYS_COUNTED:
            self._counts.popitem(last=False)
        return count != 0


def without(spans: Sequence[Span], rows: set[int]) -> list[Span]:
    """Spans without some rows, over rows that then stand one after the other; a span of none is left out."""
    found, base = [], 0
    for span in spans:
        stop = base + sum(row not in rows for row in range(span.start, span.stop))
        if stop > base:
            found.append(Span(span.partition, base, stop, span.next_offset, span.epoch))
        base = stop
    return found


def _told(
    columns: Columns, routes: Sequence[Route | None], rows: Sequence[int], gone: set[int]
) -> list[LeftOut]:
    """What is counted of the rows that are left out, by route."""
    found = []
    by_route = sorted(rows, key=lambda row: id(routes[row]))
    for route, ours in groupby(by_route, key=routes.__getitem__):
        if route is not None:
            mine = [*ours]
            away = [row for row in mine if row in gone]
            nbytes = sum(len(columns.values[row] or b"") for row in away)
            found.append(LeftOut(route, len(mine), len(away), nbytes))
    return found
