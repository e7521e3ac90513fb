"""A stuck process is ended, a busy or paused one is not."""

import threading
from types import SimpleNamespace
from typing import Any

from worker.batch import Partition
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Progress, Standstill, Watchdog

P = Partition("in", 0)


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


def test_a_partition_that_stands_while_its_lag_grows_is_reported() -> None:
    """Not while paused, not while anything moves, not while nothing new arrives; told before it is the end."""
    clock = Clock()
    world: dict[str, Any] = {"position": 5, "end": 10, "settled": 0, "paused": False}
    progress = Progress(
        60.0,
        lambda: ({P: (world["position"], world["end"])}, world["settled"], world["paused"]),
        clock,
    )
    for clock.now in (0.0, 50.0, 62.0):
        assert progress.stuck() is None  # behind, but no new record arrives
        assert progress.standing() is None
    world["end"] = 20
    assert progress.stuck() is None
    assert "in/0 has stood at 5" in (progress.standing() or "")
    clock.now = 66.0
    assert "in/0 has stood at 5" in (progress.stuck() or "")
    world["settled"] = 1
    assert progress.stuck() is None
    clock.now, world["end"], world["paused"] = 200.0, 30, True
    assert progress.stuck() is None
    world["paused"], world["end"] = False, 40
    assert progress.stuck() is None


def test_the_watchdog_reports_and_leaves_with_5() -> None:
    """One stuck check ends the process with the exit code for stalled, with its state told first."""
    left: list[int] = []
    told: list[dict[str, Any]] = []
    said: list[str] = []
    done = threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        done.set()

    watchdog = Watchdog(
        [lambda: None, lambda: "it stands still"],
        lambda: {"in_flight": 3},
        lambda event, **fields: told.append({"event": event, **fields}),
        said.append,
        AwakeClock(Clock()),
        leave,
        tick_s=0.001,
    )
    assert done.wait(10)
    watchdog.close()
    assert left == [5]
    stacks = told[0].pop("stacks")
    assert told == [{"event": "stuck", "reason": "it stands still", "state": {"in_flight": 3}}]
    assert said == ["streaminfer: it stands still"]
    assert any("test_the_watchdog_reports" in call for name in stacks for call in stacks[name]), stacks
