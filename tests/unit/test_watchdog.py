"""A stuck process is ended, a busy or paused one is not."""

import threading
from types import SimpleNamespace
from typing import Any

from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Outage, Standstill, Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(name: str = "digits") -> Any:
    return SimpleNamespace(route=SimpleNamespace(name=name))


def test_a_batch_is_told_to_stop_before_it_counts_as_stuck() -> None:
    """Past the limit the run is interrupted once; only after the grace it is stuck."""
    clock, told, running = Clock(), [], batch()
    deadline = BatchDeadline(10.0, lambda: running, told.append, clock)
    assert deadline.stuck() is None
    clock.now = 9.9
    assert deadline.stuck() is None
    assert told == []
    clock.now = 10.1
    assert deadline.stuck() is None
    assert deadline.stuck() is None
    assert told == [running]
    clock.now = 12.1
    assert "digits" in (deadline.stuck() or "")


def test_a_loop_that_does_not_turn_is_stuck_but_a_suspended_machine_is_not() -> None:
    """Time the process could not see does not count: after a pause of an hour it goes on."""
    wall = Clock()
    awake = AwakeClock(wall)
    turns = [0]
    turning = Standstill(60.0, lambda: turns[0], awake)
    wall.now = 3600.0
    awake.tick()
    assert turning.stuck() is None
    for _ in range(61):
        wall.now += 1.0
        awake.tick()
    assert "has not turned for 62 s" in (turning.stuck() or "")
    turns[0] += 1
    assert turning.stuck() is None


def test_nothing_running_is_not_stuck() -> None:
    """Between batches there is nothing to time."""
    assert BatchDeadline(1.0, lambda: None, lambda _: None, Clock()).stuck() is None


def test_a_drain_that_does_not_begin_is_over_its_budget() -> None:
    """Asked and not begun for longer than drain_s: a batch on the loop's own thread does not end."""
    clock, waiting = Clock(), [False]
    drain = DrainDeadline(2.0, lambda: waiting[0], clock)
    clock.now = 10.0
    assert drain.stuck() is None
    waiting[0] = True
    for clock.now in (11.0, 13.0):
        assert drain.stuck() is None
    clock.now = 13.5
    assert "limits.drain_s (2 s)" in (drain.stuck() or "")
    waiting[0] = False
    assert drain.stuck() is None


def test_an_outage_ends_the_process_only_when_the_user_set_a_limit() -> None:
    """Without limits.outage_s an outage is waited out; with it the limit counts from the moment no broker is there."""
    clock, away = Clock(), [True]
    patient, limited = Outage(None, lambda: away[0], clock), Outage(30.0, lambda: away[0], clock)
    for clock.now in (0.0, 29.0):
        assert limited.stuck() is None
    away[0] = False
    assert limited.stuck() is None
    away[0] = True
    for clock.now in (40.0, 69.0):
        assert limited.stuck() is None
    clock.now = 70.5
    assert "limits.outage_s" in (limited.stuck() or "")
    clock.now = 1e6
    assert patient.stuck() is None


def test_the_watchdog_reports_and_leaves_with_5() -> None:
    """One stuck check ends the process with the exit code for stalled, with its state told first."""
    left: list[int] = []
    told: list[dict[str, Any]] = []
    said: list[tuple[str, int]] = []
    done = threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        done.set()

    watchdog = Watchdog(
        [lambda: None, lambda: "it stands still"],
        lambda: {"in_flight": 3},
        lambda event, **fields: told.append({"event": event, **fields}),
        lambda reason, code: said.append((reason, code)),
        AwakeClock(Clock()),
        leave,
        tick_s=0.001,
    )
    assert done.wait(10)
    watchdog.close()
    assert left == [5]
    stacks = told[0].pop("stacks")
    assert told == [{"event": "stuck", "reason": "it stands still", "state": {"in_flight": 3}}]
    assert said == [("it stands still", 5)]
    assert any("test_the_watchdog_reports" in call for name in stacks for call in stacks[name]), stacks
