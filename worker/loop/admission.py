"""What is decided about a record before any model sees it: which route takes it, or that it needs no model. Pure.

A record that needs no model (tombstone, too large, expired, unroutable, an image whose header asks for too much memory)
is a finished outcome inside its slab. It is never left out, so that order and commits stay simple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from worker.batch import (
    LENT_OFTEN,
    PAYLOAD_HEADERS,
    RENAMED_HEADERS,
    SKIPPED_RECORD,
    UNREAD_RECORD,
    Columns,
    Headers,
    Outcomes,
    Route,
    Servable,
    Trial,
    largest_bytes,
)
from worker.deadlines import Deadlines, carry_headers, expire
from worker.errors import Reject, Rejection
from worker.loop.series import Sample

EXPIRY_HEADER = "ce_expirytime"
EXPIRY_ATTRIBUTE = b'"expirytime"'
EVENT_BYTES_MAX = 256 << 10
"""Most bytes of a structured event that is parsed before it is routed. That takes less than 8 MiB, which is not charged."""


class Rollout(Protocol):
    """A route, and which servable answers it."""

    @property
    def route(self) -> Route: ...

    @property
    def trial(self) -> Trial | None:
        """A candidate that answers a part of them; None while there is none. It may change only in :meth:`choose`."""

    @property
    def held(self) -> bool:
        """Its records are not to be answered now; they wait."""

    def choose(self) -> Servable:
        """Who answers the records of the slab that is being closed. Asked once for each slab."""

    def sick(self, servable: Servable, why: str) -> None:
        """Decide what a sick servable means. Where this returns, somebody else answers from now on.

        Raises:
            WorkerError: the process cannot go on.
        """


@dataclass(slots=True)
class Admitted:
    """A run of records after admission, aligned with its columns."""

    routes: Sequence[Route | None]
    """The route of each row; None where no route takes it."""
    servables: Mapping[Route, Servable]
    """Who answers the rows of each route."""
    costs: list[int]
    """Bytes each row needs beside its payload: its slot in the batch and decode scratch."""
    decided: set[int]
    """Rows that need no model; their outcomes are below."""
    outcomes: Outcomes
    marked: bool = False
    """A header of some row may say that its value is wrapped, or a structured event."""
    to_open: set[int] = field(default_factory=set)
    """Rows whose value is wrapped, or a structured event."""
    deadlines_ms: dict[int, float] = field(default_factory=dict)
    """Unix milliseconds of the rows that have a deadline ahead of them."""
    expired: str = ""
    """``limits.expired``."""
    trials: Mapping[Route, Trial] = field(default_factory=dict)
    """The trials that run."""
    others: dict[int, Servable] = field(default_factory=dict)
    """Who answers the rows that a candidate answers."""

    def servable_of(self, row: int, route: Route) -> Servable:
        """Who answers a row of this route."""
        return self.others.get(row) or self.servables[route]

    def deadlines_of(self, rows: Sequence[int]) -> Deadlines | None:
        """The deadlines of a batch of these rows; None when no row has one."""
        at_ms = {
            index: ms for index, row in enumerate(rows) if (ms := self.deadlines_ms.get(row)) is not None
        }
        return Deadlines(self.expired, at_ms) if at_ms else None


class _Candidates(dict[str, list[Route]]):
    """Topic -> the routes that take records of it, in file order; made when the first record of the topic comes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        super().__init__()
        self._routes = routes

    def __missing__(self, topic: str) -> list[Route]:
        self[topic] = found = [route for route in self._routes if topic in route.topics]
        return found


class Admission:
    """Routes records in file order and decides about those that need no model.

    Args:
        rollouts: in the order of the configuration; the first route that matches takes the record.
        max_age_ms: records older than this are expired; None = only the expiry header counts.
        expired: ``dead_letter``, ``drop`` or ``publish``.
        budget_bytes: a record whose slot and scratch exceed this on their own can never be decoded.
    """

    def __init__(
        self, rollouts: Sequence[Rollout], max_age_ms: int | None, expired: str, budget_bytes: int
    ) -> None:
        self.max_age_ms = max_age_ms
        self.expired = expired
        self.budget_bytes = budget_bytes
        self.rollouts = {rollout.route: rollout for rollout in rollouts}
        routes = [*self.rollouts]
        self._sole = routes[0] if len(routes) == 1 and routes[0].when is None else None
        self._by_topic = _Candidates(routes)

    def admit(self, columns: Columns, now_ms: float) -> Admitted:
        """Decide for every row; per-row work only where a row is out of the ordinary."""
        rows = len(columns)
        chosen = {route: rollout.choose() for route, rollout in self.rollouts.items()}
        trials = {route: trial for route, rollout in self.rollouts.items() if (trial := rollout.trial)}
        if self._sole is not None and self._ordinary(columns, self._sole, chosen[self._sole]):
            costs = [chosen[self._sole].item_nbytes] * rows
            admitted = Admitted([self._sole] * rows, chosen, costs, set(), Outcomes([]))
            if not trials:
                return admitted
            if self._ordinary(columns, self._sole, trials[self._sole].candidate):
                _divide(admitted, trials, columns)
                return admitted
        given = columns
        if (counted := self._counted(columns)) is not None:
            columns = replace(columns, headers=counted)
        routes = self.route_of(columns)
        costs = [chosen[route].item_nbytes if route is not None else 0 for route in routes]
        admitted = Admitted(routes, chosen, costs, set(), Outcomes.empty(rows), _marked(columns))
        _divide(admitted, trials, given)
        for row, headers in enumerate(given.headers):
            if headers and headers[0][0] is SKIPPED_RECORD:
                admitted.outcomes.dropped.add(row)
                self._decide(admitted, row)
        for row, deadline_ms in self.deadlines(columns):
            route = routes[row]
            if row in admitted.decided:
                continue
            if deadline_ms >= now_ms:
                admitted.deadlines_ms[row], admitted.expired = deadline_ms, self.expired
            elif route is not None:
                self._expire(admitted, given, row, route, now_ms - deadline_ms)
        for row, route in enumerate(routes):
            headers = given.headers[row]
            if row in admitted.decided:
                continue
            if headers and any(headers[0][0] is mark for mark in _UNFIT):
                self._reject(admitted, row, _unfit(*headers[0]))
            elif route is None:
                self._reject(admitted, row, Reject(_unroutable(columns, row), "unroutable"))
            else:
                self._inspect(admitted, given, row, route)
        return admitted

    def _ordinary(self, columns: Columns, route: Route, servable: Servable) -> bool:
        """Whether no record here can need a second look: the case that carries the load, found without a loop."""
        most = min(route.max_bytes, servable.free_bytes)
        if not most or self.max_age_ms is not None or any(columns.headers) or columns.fetched is not None:
            return False
        if route.opening is not None and route.opening.always:
            return False
        if type(columns.values[0]) is Sample:
            return False
        return not columns.values.count(None) and largest_bytes(columns.values) <= most

    def route_of(self, columns: Columns) -> Sequence[Route | None]:
        """The route of each record; None where no route takes it."""
        if self._sole is not None:
            return [self._sole] * len(columns)
        routes: list[Route | None] = []
        for partition, headers in zip(columns.partitions, columns.headers, strict=True):
            candidates = self._by_topic[partition.topic]
            routes.append(next((r for r in candidates if matches(r.when, headers)), None))
        return routes

    def routed(self, columns: Columns) -> Sequence[Route | None]:
        """The route of each record, by its headers as they count."""
        counted = self._counted(columns)
        return self.route_of(columns if counted is None else replace(columns, headers=counted))

    def _counted(self, columns: Columns) -> list[Headers | None] | None:
        """The column of headers with the attributes of structured events, as far as anything here looks at them; None: as it is.

        An event that is wrapped, or large, is parsed on the pool alone: its attributes count from there on. A broken one is
        refused there.
        """
        found: list[Headers | None] | None = None
        if not _marked(columns):
            return None
        for row, headers in enumerate(columns.headers):
            value = columns.values[row]
            if not headers or not value or len(value) > EVENT_BYTES_MAX:
                continue
            routes = self._by_topic[columns.partitions[row].topic]
            opening = routes[0].opening if routes else None
            if opening is None or not opening.is_event(headers):
                continue
            if any(route.when for route in routes) or EXPIRY_ATTRIBUTE in value:
                found = found or [*columns.headers]
                with suppress(Reject):
                    found[row] = opening.counted(value, headers)
        return found

    def deadlines(self, columns: Columns) -> list[tuple[int, float]]:
        """Rows that have a deadline, with it in Unix milliseconds; the earlier one where a row has two."""
        deadlines: dict[int, float] = {}
        if self.max_age_ms is not None:
            for row, stamp in enumerate(columns.timestamps_ms):
                if stamp > 0:
                    deadlines[row] = stamp + self.max_age_ms
        for row, headers in enumerate(columns.headers):
            stated = _expiry_ms(headers) if headers else None
            if stated is not None:
                deadlines[row] = min(stated, deadlines.get(row, stated))
        return list(deadlines.items())

    def _inspect(self, admitted: Admitted, columns: Columns, row: int, route: Route) -> None:
        value = columns.values[row]
        if columns.fetched is not None:
            fetched = columns.fetched[row]
            if fetched.rejection is not None:
                admitted.outcomes.rejected[row] = fetched.rejection
                self._decide(admitted, row)
                return
            if fetched.payload is not None:
                value = fetched.payload
        if value is None:
            self._bury(admitted, columns, row, route)
        elif len(value) > route.max_bytes:
            limit = f"the record has {len(value)} bytes, input.max_bytes is {route.max_bytes}"
            self._reject(admitted, row, Reject(limit, "too_large"))
        elif isinstance(value, Sample):
            self._put_into_window(admitted, row, value)
        elif self._opens(admitted, columns.headers[row], route):
            try:
                admitted.costs[row] += self._opened(
                    value, columns.headers[row], route, admitted.servable_of(row, route)
                )
                admitted.to_open.add(row)
            except Reject as error:
                self._reject(admitted, row, error)
        elif len(value) > (servable := admitted.servable_of(row, route)).free_bytes:
            try:
                admitted.costs[row] += self._scratch(value, servable)
            except Reject as error:
                self._reject(admitted, row, error)

    def _opens(self, admitted: Admitted, headers: Headers | None, route: Route) -> bool:
        """Whether a record of this route is wrapped, or a structured event."""
        if route.opening is None:
            return False
        return route.opening.always or (admitted.marked and route.opening.applies(headers))

    def _opened(self, value: bytes, headers: Headers | None, route: Route, servable: Servable) -> int:
        """Bytes that opening and decoding a wrapped record take; what only an upper bound says, at most the whole budget."""
        assert route.opening is not None
        inside, unwrapping, event = route.opening.cost(value, headers)
        room = self.budget_bytes - servable.item_nbytes - len(value)
        if route.opening.hides:
            return min(unwrapping + event, room)
        if unwrapping > room:
            raise Reject(
                f"unwrapping the record needs {unwrapping} bytes, limits.in_flight_bytes is {self.budget_bytes}",
                "too_large",
            )
        return min(unwrapping + event + servable.cost_of_length(inside), room)

    def _put_into_window(self, admitted: Admitted, row: int, sample: Sample) -> None:
        """Only the record that completes a window goes to the model."""
        if sample.refused is not None:
            self._reject(admitted, row, sample.refused)
        elif sample.window is None:
            admitted.outcomes.dropped.add(row)
            self._decide(admitted, row)
        else:
            admitted.costs[row] += sum(map(len, sample.window))

    def _scratch(self, value: bytes, servable: Servable) -> int:
        scratch = servable.cost(value)
        need = scratch + servable.item_nbytes + len(value)
        if scratch and need > self.budget_bytes:
            message = f"decoding needs {need} bytes, limits.in_flight_bytes is {self.budget_bytes}"
            raise Reject(message, "too_many_pixels")
        return scratch

    def _bury(self, admitted: Admitted, columns: Columns, row: int, route: Route) -> None:
        if route.tombstone == "reject":
            self._reject(admitted, row, Reject("the value is null and input.tombstone is reject"))
            return
        if route.tombstone == "drop":
            admitted.outcomes.dropped.add(row)
        else:
            carry_headers(admitted.outcomes, columns, row, route)
        self._decide(admitted, row)

    def _expire(self, admitted: Admitted, columns: Columns, row: int, route: Route, late_ms: float) -> None:
        message = f"the record's deadline passed {late_ms:.0f} ms before it was looked at"
        servable = admitted.servable_of(row, route)
        expire(admitted.outcomes, columns, row, route, servable, self.expired, message)
        self._decide(admitted, row)

    def _reject(self, admitted: Admitted, row: int, error: Reject) -> None:
        admitted.outcomes.rejected[row] = Rejection.of(error, "decode", self)
        self._decide(admitted, row)

    def _decide(self, admitted: Admitted, row: int) -> None:
        admitted.decided.add(row)
        admitted.costs[row] = 0


def _divide(admitted: Admitted, trials: Mapping[Route, Trial], columns: Columns) -> None:
    """Give the candidates their rows."""
    admitted.trials = trials
    for route, trial in trials.items():
        ours: Sequence[int] = range(len(columns))
        if admitted.routes.count(route) < len(columns):
            ours = [row for row in ours if admitted.routes[row] is route]
        candidate = trial.candidate
        for index in trial.rows(columns.select(ours)):
            admitted.others[ours[index]] = candidate
            admitted.costs[ours[index]] = candidate.item_nbytes


def _marked(columns: Columns) -> bool:
    """Whether any record has a header that may say something of its value; found by the few names that there are."""
    names = {name for headers in columns.headers if headers for name, _ in headers}
    return not PAYLOAD_HEADERS.isdisjoint(map(str.lower, names))


def matches(when: tuple[str, bytes] | None, headers: Headers | None) -> bool:
    """Whether the last header of that name, matched without case, has exactly these bytes."""
    if when is None:
        return True
    if not headers:
        return False
    name, wanted = when[0].lower(), when[1]
    return next((value for key, value in reversed(headers) if key.lower() == name), None) == wanted


_UNFIT = (RENAMED_HEADERS, UNREAD_RECORD, LENT_OFTEN)


def _unfit(mark: str, detail: bytes | None) -> Reject:
    """Why the source marked a record."""
    if mark is LENT_OFTEN:
        return Reject(
            f"this is delivery {(detail or b'').decode()} of the record by its share group: processes died with it, or did "
            "not answer it in the time for which it was lent",
            "crashed",
        )
    if mark is UNREAD_RECORD:
        return Reject(
            "fetching this record ended a process, so it is not here; it is still in its topic", "crashed"
        )
    return Reject(f"expected header names in UTF-8, other bytes in header {(detail or b'').decode()}")


def _unroutable(columns: Columns, row: int) -> str:
    topic = columns.partitions[row].topic
    return f"no pipeline takes this record of topic {topic}: none of their `when` headers matches"


def _expiry_ms(headers: Headers) -> float | None:
    """The CloudEvents ``expirytime`` (RFC 3339) in Unix milliseconds; one that cannot be read does not count."""
    for name, value in reversed(headers):
        if name == EXPIRY_HEADER:
            try:
                moment = datetime.fromisoformat((value or b"").decode())
            except ValueError:
                return None
            return moment.timestamp() * 1000 if moment.tzinfo else None
    return None
