"""The one decision of a turn: whether to wait, for what and how long, and whether to read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

TICK_S = 0.1
"""Longest wait for anything: rebalances, signals and snapshots are served this often."""
BUSY_POLL_S = 0.001
"""Wait for records or acknowledgements while results are due. librdkafka counts whole milliseconds, so that a shorter
wait would not wait at all."""
SERVE_S = 0.05
"""How often the source is asked, for the group's sake, while nothing can be submitted. It may return a record then."""


NEWEST_S = 0.01
"""How often the source is asked, while nothing can be submitted, for records that take the place of waiting ones."""


class IntakeView(NamedTuple):
    """What one intake looks like at the start of a turn."""

    may_submit: bool
    """A slab of it could go now: its lanes have room, and nothing else holds it back."""
    room: bool
    """Its open slab may take more records."""
    filled: bool
    """Its open slab has records."""
    due: bool
    """Its open slab goes in this turn."""
    left_s: float
    """Seconds until the open slab should go; only where it is filled."""
    pace_left_s: float
    """Seconds until its next slab may follow the one before."""
    newest: bool = False
    """It has room, and newer records are wanted although no slab can go: they take the place of those that wait."""
    yields: bool = False
    """More important ones go first in this turn."""


class View(NamedTuple):
    """What the loop looks like at the start of a turn."""

    intakes: Sequence[IntakeView]
    pool_busy: bool
    """Batches are in the pool."""
    publishable: bool
    """Outputs may be handed to the producer; no transaction is being committed or undone."""
    unacknowledged: bool
    """Outputs wait for the producer, or for their acknowledgement."""
    in_flight: bool
    """Slabs are in flight."""
    careful: bool
    """Some record must be worked on alone."""


class Action(NamedTuple):
    """What to do before batches are submitted and results collected."""

    wait_for: Literal["nothing", "time", "pool", "sink"]
    wait_s: float
    """Longest wait."""
    read_s: float | None
    """Then read, and wait so long for the first record; None: do not read."""
    serve: bool = False
    """Read only to keep our place in the group: one record at most, and not when the source was asked lately."""


def what_now(view: View) -> Action:
    """What the loop does with this turn.

    Gather while an open slab waits for company: a turn for every record would cost more. Read when a slab goes now
    or an intake is empty. When nothing can be submitted, wait for what is in flight.
    """
    able, due = [], False
    for intake in view.intakes:
        due = due or intake.due
        if intake.may_submit and intake.room:
            able.append(intake)
    if due:
        return Action("nothing", 0.0, 0.0 if able else None)
    gathering = [intake.left_s for intake in able if intake.filled]
    if gathering:
        return _gather(view, min(gathering), len(gathering) < len(able))
    if able:
        return _read(view, min(intake.pace_left_s for intake in able))
    return _wait(view)


def _gather(view: View, left_s: float, others_are_empty: bool) -> Action:
    if others_are_empty:
        left_s = min(left_s, BUSY_POLL_S)  # a record of another intake must not wait for this one's company
    if view.pool_busy:
        return Action("pool", min(max(left_s, BUSY_POLL_S), TICK_S), 0.0)
    if left_s > 0 and view.publishable:
        # Sleep: in a poll every acknowledgement would wake the loop.
        return Action("time", min(left_s, TICK_S), 0.0)
    return Action("sink", BUSY_POLL_S, 0.0)


def _read(view: View, pace_left_s: float) -> Action:
    read_s = BUSY_POLL_S if view.in_flight else TICK_S
    busy = view.pool_busy or view.careful or not view.publishable
    if pace_left_s > 0 and not busy:
        # Leave records with the client until the next slab may go: one take and one turn for all of them.
        return Action("time", min(pace_left_s, TICK_S), read_s)
    return Action("nothing", 0.0, read_s)


def _wait(view: View) -> Action:
    """Only a take serves rebalances, so the source is asked now and then all the same."""
    if any(intake.newest for intake in view.intakes):
        busy_s = BUSY_POLL_S if view.unacknowledged else NEWEST_S
        return Action("pool" if view.pool_busy else "sink", busy_s if view.pool_busy else BUSY_POLL_S, 0.0)
    if view.pool_busy:
        return Action("pool", BUSY_POLL_S if view.unacknowledged else SERVE_S, 0.0, serve=True)
    return Action("sink", BUSY_POLL_S, 0.0, serve=True)
