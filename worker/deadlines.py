"""Records past their deadline: what becomes of one, wherever it is found.

A deadline is looked at when a record is admitted, again before it is decoded, and again before the model runs: a record
may wait for seconds between these moments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from worker.batch import Batch, Columns, Headers, Outcomes, Route, Servable
from worker.errors import Reject, Rejection


@dataclass(slots=True)
class Deadlines:
    """The deadlines of one batch.

    Args:
        policy: ``limits.expired``: ``dead_letter``, ``drop`` or ``publish``.
        at_ms: Unix milliseconds of each row that has a deadline.
    """

    policy: str
    at_ms: dict[int, float]
    passed: dict[int, str] = field(default_factory=dict)
    """Rows whose deadline has passed -> the message that says so. They are not decoded or run."""
    _next_ms: float = 0.0

    def look(self, now_ms: float, doing: str) -> None:
        """Find the rows whose deadline has passed by now.

        Args:
            now_ms: Unix milliseconds. doing: what would be done with the row now, for the message.
        """
        if now_ms <= self._next_ms:
            return
        for row in [row for row, deadline_ms in self.at_ms.items() if deadline_ms < now_ms]:
            late_ms = now_ms - self.at_ms.pop(row)
            self.passed[row] = f"the record's deadline passed {late_ms:.0f} ms before it was {doing}"
        self._next_ms = min(self.at_ms.values(), default=float("inf"))

    def part(self, rows: Sequence[int]) -> Deadlines | None:
        """Those of some rows, as the rows of a batch of their own; None when no one of them has a deadline ahead."""
        at_ms = {index: ms for index, row in enumerate(rows) if (ms := self.at_ms.get(row)) is not None}
        return Deadlines(self.policy, at_ms) if at_ms else None

    def decide(self, batch: Batch) -> None:
        """Give every row that is past its deadline its outcome, in the place of any other."""
        outcomes = batch.outcomes
        assert outcomes is not None
        for row, message in self.passed.items():
            outcomes.rejected.pop(row, None)
            expire(outcomes, batch.columns, row, batch.route, batch.servable, self.policy, message)


def past_deadline(batch: Batch, now_ns: int, doing: str) -> Collection[int]:
    """Rows that are past their deadline at this moment of the monotonic clock."""
    if batch.deadlines is None:
        return ()
    batch.deadlines.look(batch.taken_ms + (now_ns - batch.taken_ns) / 1e6, doing)
    return batch.deadlines.passed


def expire(
    outcomes: Outcomes,
    columns: Columns,
    row: int,
    route: Route,
    servable: Servable,
    policy: str,
    message: str,
) -> None:
    """The outcome of one record that is past its deadline.

    Args:
        policy: ``limits.expired``: ``dead_letter``, ``drop`` or ``publish``.
    """
    if policy == "dead_letter":
        outcomes.rejected[row] = Rejection.of(Reject(message, "expired"), "decode", expire)
    elif policy == "drop":
        outcomes.dropped.add(row)
    else:
        try:
            outcomes.bodies[row], headers = route.envelope.expired(columns, row, message, servable)
        except Reject as error:
            outcomes.rejected[row] = Rejection.of(error, "encode", route.envelope)
            return
        _put_headers(outcomes, row, headers)


def carry_headers(outcomes: Outcomes, columns: Columns, row: int, route: Route) -> None:
    """Give a tombstone that is passed on the headers that a result would have: a trace must not end there."""
    _put_headers(outcomes, row, route.envelope.headers(columns, row))


def _put_headers(outcomes: Outcomes, row: int, headers: Headers | None) -> None:
    if headers:
        outcomes.headers = outcomes.headers or [None] * len(outcomes.bodies)
        outcomes.headers[row] = headers
