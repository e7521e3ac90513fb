"""The decision of a turn, as tables: what the loop looks like -> what it waits for and whether it reads."""

from __future__ import annotations

import pytest

from worker.loop.what_now import BUSY_POLL_S, NEWEST_S, SERVE_S, TICK_S, Action, IntakeView, View, what_now

EMPTY = IntakeView(may_submit=True, room=True, filled=False, due=False, left_s=0.0, pace_left_s=0.0)
FILLED = EMPTY._replace(filled=True, left_s=0.004)
DUE = EMPTY._replace(filled=True, due=True)
FULL = DUE._replace(room=False)
BLOCKED = EMPTY._replace(may_submit=False)
NEWEST = FILLED._replace(may_submit=False, newest=True)
STUCK = FILLED._replace(may_submit=False, room=False)

READ, NO_READ = Action("nothing", 0.0, 0.0), Action("nothing", 0.0, None)


def view(*intakes: IntakeView, **more: bool) -> View:
    given = {
        "pool_busy": False,
        "publishable": True,
        "unacknowledged": False,
        "in_flight": False,
        "careful": False,
    }
    return View(intakes, **{**given, **more})


@pytest.mark.parametrize(
    ("look", "action"),
    [
        # nothing anywhere: wait for a record, in ticks
        (view(EMPTY), Action("nothing", 0.0, TICK_S)),
        # results are due: a short wait for records
        (view(EMPTY, in_flight=True), Action("nothing", 0.0, BUSY_POLL_S)),
        (view(EMPTY, in_flight=True, pool_busy=True), Action("nothing", 0.0, BUSY_POLL_S)),
        # the next slab may not follow yet: records stay with the client meanwhile
        (view(EMPTY._replace(pace_left_s=0.003)), Action("time", 0.003, TICK_S)),
        (view(EMPTY._replace(pace_left_s=9.0)), Action("time", TICK_S, TICK_S)),
        (view(EMPTY._replace(pace_left_s=0.003), pool_busy=True), Action("nothing", 0.0, TICK_S)),
        (view(EMPTY._replace(pace_left_s=0.003), careful=True), Action("nothing", 0.0, TICK_S)),
        (view(EMPTY._replace(pace_left_s=0.003), publishable=False), Action("nothing", 0.0, TICK_S)),
        # a slab goes now: what is there already joins it
        (view(DUE), READ),
        (view(FULL), NO_READ),
        # a slab waits for company: gather
        (view(FILLED), Action("time", 0.004, 0.0)),
        (view(FILLED._replace(left_s=3.0)), Action("time", TICK_S, 0.0)),
        (view(FILLED, pool_busy=True), Action("pool", 0.004, 0.0)),
        (view(FILLED._replace(left_s=-1.0), pool_busy=True), Action("pool", BUSY_POLL_S, 0.0)),
        (view(FILLED, publishable=False), Action("sink", BUSY_POLL_S, 0.0)),
        (view(FILLED._replace(left_s=-1.0)), Action("sink", BUSY_POLL_S, 0.0)),
        # nothing can be submitted: wait for what is in flight, keep the place in the group
        (view(BLOCKED, pool_busy=True), Action("pool", SERVE_S, 0.0, serve=True)),
        (view(STUCK, pool_busy=True, unacknowledged=True), Action("pool", BUSY_POLL_S, 0.0, serve=True)),
        (view(STUCK, unacknowledged=True), Action("sink", BUSY_POLL_S, 0.0, serve=True)),
        # newer records would take the place of those that wait: read them meanwhile
        (view(NEWEST, pool_busy=True), Action("pool", NEWEST_S, 0.0)),
        (view(NEWEST, pool_busy=True, unacknowledged=True), Action("pool", BUSY_POLL_S, 0.0)),
        (view(NEWEST, unacknowledged=True), Action("sink", BUSY_POLL_S, 0.0)),
    ],
)
def test_one_intake(look: View, action: Action) -> None:
    """With one intake the loop reads, gathers or waits as that intake needs."""
    assert what_now(look) == action


@pytest.mark.parametrize(
    ("look", "action"),
    [
        # a slab of one goes now: the other one's records are read on the way
        (view(FULL, EMPTY), READ),
        (view(DUE, STUCK), READ),
        (view(FULL, STUCK), NO_READ),
        # one is stuck: the other one is served as if it were alone, with short waits
        (view(STUCK, EMPTY, pool_busy=True, in_flight=True), Action("nothing", 0.0, BUSY_POLL_S)),
        (view(STUCK, FILLED, pool_busy=True, in_flight=True), Action("pool", 0.004, 0.0)),
        # one gathers and another is empty: a record of the other one must not wait for this one's company
        (view(FILLED, EMPTY), Action("time", BUSY_POLL_S, 0.0)),
        (view(FILLED, EMPTY, pool_busy=True), Action("pool", BUSY_POLL_S, 0.0)),
        # both gather: until the first of them is due
        (view(FILLED, FILLED._replace(left_s=0.002)), Action("time", 0.002, 0.0)),
        # both are stuck
        (view(STUCK, BLOCKED, pool_busy=True), Action("pool", SERVE_S, 0.0, serve=True)),
        # both are empty: until the first of them may follow
        (
            view(EMPTY._replace(pace_left_s=0.005), EMPTY._replace(pace_left_s=0.001)),
            Action("time", 0.001, TICK_S),
        ),
    ],
)
def test_several_intakes(look: View, action: Action) -> None:
    """With several intakes no one waits for what another one lacks."""
    assert what_now(look) == action
