"""The supervisor: which end of a replica restarts it, ends everything, or is simply the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.process.supervisor import Supervisor

TERM, KILL = signal.SIGTERM, signal.SIGKILL


class FakeProcess:
    """Ends when the test says so, or with ``on_term`` at SIGTERM."""

    def __init__(self, index: int, on_term: int | None) -> None:
        self.index = index
        self.pid = 1000 + index
        self.code: int | None = None
        self.signals: list[int] = []
        self.on_term = on_term
        self.member: str | None = None
        self.predecessor: str | None = None
        self.closed = 0

    def close(self) -> None:
        assert self.code is not None
        self.closed += 1

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)
        if sig == signal.SIGHUP:
            return
        self.code = -KILL if sig == KILL else self.on_term


class World:
    """Manual time: each sleep passes 0.1 s and runs the next step of the script when its moment has come."""

    def __init__(self, replicas: int, on_term: int | None = 0) -> None:
        self.now_s = 0.0
        self.started: list[tuple[float, FakeProcess]] = []
        self.script: list[tuple[float, Callable[[], None]]] = []
        self.on_term = on_term
        self.refused_starts = 0
        self.supervisor = Supervisor(self._start, replicas, lambda: self.now_s, self._sleep)

    def at(self, time_s: float, step: Callable[[], None]) -> None:
        self.script.append((time_s, step))

    def ends(self, time_s: float, index: int, code: int) -> None:
        def end() -> None:
            self.current(index).code = code

        self.at(time_s, end)

    def signal(self, time_s: float, signum: int) -> None:
        self.at(time_s, lambda: self.supervisor.on_signal(signum))

    def current(self, index: int) -> FakeProcess:
        return [process for _time, process in self.started if process.index == index][-1]

    def starts(self, index: int) -> list[float]:
        return [round(time_s, 1) for time_s, process in self.started if process.index == index]

    def _start(self, index: int, predecessor: str | None) -> FakeProcess:
        if self.refused_starts:
            self.refused_starts -= 1
            raise OSError("no more processes")
        process = FakeProcess(index, self.on_term)
        process.predecessor = predecessor
        self.started.append((self.now_s, process))
        return process

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        assert self.now_s < 1000, "the supervisor does not end"
        for step in [step for time_s, step in self.script if time_s <= self.now_s]:
            step()
        self.script = [(time_s, step) for time_s, step in self.script if time_s > self.now_s]


def test_children_that_are_done_are_not_started_again() -> None:
    """Exit 0 of every replica, unasked, is exit 0 of the whole."""
    world = World(2)
    world.ends(1, 0, 0)
    world.ends(50, 1, 0)
    assert world.supervisor.run() == 0
    assert len(world.started) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_passed_on_once_and_drains(signum: int) -> None:
    """Every child gets one SIGTERM, whichever signal came, and the drain is exit 0."""
    world = World(2)
    world.signal(1, signum)
    assert world.supervisor.run() == 0
    assert [process.signals for _time, process in world.started] == [[TERM], [TERM]]


def test_a_hangup_goes_to_every_replica_that_listens() -> None:
    """SIGHUP is passed on once and ends nothing; to a replica that is still starting, as soon as it is up."""
    world = World(2)
    world.at(1, lambda: setattr(world.current(0), "member", "a"))
    world.at(2, world.supervisor.read_again)
    world.at(4, lambda: setattr(world.current(1), "member", "b"))
    world.signal(6, TERM)
    assert world.supervisor.run() == 0
    assert [process.signals for _time, process in world.started] == [
        [signal.SIGHUP, TERM],
        [signal.SIGHUP, TERM],
    ]


def test_a_child_that_recycled_itself_is_replaced_at_once() -> None:
    """Exit 8 is no death: a fresh child starts at once, however often; while draining it counts as drained."""
    world = World(2)
    for time_s in range(1, 8):
        world.ends(time_s, 0, 8)
    world.signal(10, TERM)
    world.on_term = 8
    assert world.supervisor.run() == 0
    assert len(world.starts(0)) == 8
    assert all(start <= end + 0.2 for end, start in enumerate(world.starts(0)))
    assert world.starts(1) == [0.0]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_kills(signum: int, code: int) -> None:
    """Children that do not finish draining are killed, and the exit code names the signal."""
    world = World(2, on_term=None)
    world.signal(1, TERM)
    world.signal(5, signum)
    assert world.supervisor.run() == code
    assert [process.signals for _time, process in world.started] == [[TERM, KILL], [TERM, KILL]]


@pytest.mark.parametrize("code", [2, 3, 4, 7])
def test_an_end_that_all_would_share_drains_the_others(code: int) -> None:
    """The others get SIGTERM, nothing is restarted, and its code is the code of the whole."""
    world = World(3)
    world.ends(1, 1, code)
    assert world.supervisor.run() == code
    assert [process.signals for _time, process in world.started] == [[TERM], [], [TERM]]


@pytest.mark.parametrize("code", [2, 3])
def test_what_worked_once_is_tried_again(code: int) -> None:
    """A replica that dies in a broker outage, or beside a half-saved file, comes back; the healthy ones stay."""
    world = World(2)
    world.at(1, lambda: setattr(world.current(1), "member", "m-1"))
    world.ends(2, 0, -KILL)
    for restart in range(12):  # the outage lasts two minutes
        world.ends(3 + 10 * restart, 0, code)
    world.signal(150, TERM)
    assert world.supervisor.run() == 0
    assert world.starts(1) == [0]
    assert len(world.starts(0)) > 5
    assert world.current(0).signals == [TERM]
    assert all(process.closed == 1 for _time, process in world.started)


def test_a_successor_is_told_who_died_before_it() -> None:
    """It can then take the dead member out of the group; one that never joined leaves nothing to take out."""
    world = World(1)
    world.at(1, lambda: setattr(world.current(0), "member", "m-1"))
    world.ends(2, 0, -KILL)
    world.ends(4, 0, 3)  # the second never joined: the first is still in the group
    world.signal(9, TERM)
    assert world.supervisor.run() == 0
    assert [process.predecessor for _time, process in world.started] == [None, "m-1", "m-1"]


@pytest.mark.parametrize("code", [1, 5, 6, -KILL, -signal.SIGSEGV])
def test_a_death_is_restarted_after_half_a_second(code: int) -> None:
    """A bug, a stall, a fatal client or a signal: the same index again, the others undisturbed."""
    world = World(2)
    world.ends(1, 0, code)
    world.signal(3, TERM)
    assert world.supervisor.run() == 0
    assert world.starts(1) == [0]
    first, again = world.starts(0)
    assert first == 0
    assert again == pytest.approx(1.5, abs=0.2)


def test_the_delay_doubles_up_to_ten_seconds_and_starts_over_after_a_long_life() -> None:
    """Deaths too rare to give up are waited out longer and longer; 30 s of life forgive."""
    world = World(1)
    lives = iter([16.0] * 6 + [31.0])
    deaths: list[float] = []
    real_start = world.supervisor._start

    def start(index: int, predecessor: str | None) -> FakeProcess:
        process = real_start(index, predecessor)
        life_s = next(lives, None)
        if life_s is None:
            world.signal(world.now_s + 1, TERM)
        else:
            deaths.append(world.now_s + life_s)
            world.ends(world.now_s + life_s, index, 1)
        return process  # type: ignore[return-value]

    world.supervisor._start = start
    assert world.supervisor.run() == 0
    waited = [again - death for death, again in zip(deaths, world.starts(0)[1:], strict=True)]
    assert waited == [pytest.approx(expected, abs=0.3) for expected in [0.5, 1, 2, 4, 8, 10, 0.5]]


def test_five_deaths_within_a_minute_give_up() -> None:
    """Deaths of all replicas count together; the fifth drains what is left and gives its code."""
    world = World(5)
    for index, code in enumerate([1, 6, -KILL, 1, 5]):
        world.ends(1 + index / 5, index, code)
    assert world.supervisor.run() == 5
    assert world.now_s < 5


def test_a_fifth_death_by_signal_is_exit_1() -> None:
    """A signal has no code of its own in the list of exit codes: it counts as a bug."""
    world = World(5)
    for index in range(5):
        world.ends(1, index, -KILL)
    assert world.supervisor.run() == 1


def test_a_failure_while_draining_is_the_exit_code() -> None:
    """A drain over its budget in one child is the whole's; nothing is restarted."""
    world = World(2)
    world.signal(1, TERM)
    world.at(1, lambda: setattr(world.current(1), "on_term", 5))
    assert world.supervisor.run() == 5
    assert len(world.started) == 2


def test_a_child_that_was_not_far_enough_to_drain_is_no_failure() -> None:
    """SIGTERM before the child has installed its handler ends it by that signal: there was nothing to drain."""
    world = World(1, on_term=-TERM)
    world.signal(1, TERM)
    assert world.supervisor.run() == 0


def test_a_drain_cancels_restarts_that_wait() -> None:
    """A replica waiting for its next start is simply not started."""
    world = World(1)
    world.ends(1, 0, 1)
    world.signal(1.2, TERM)
    assert world.supervisor.run() == 0
    assert world.starts(0) == [0]


def test_a_process_that_cannot_be_made_is_tried_again() -> None:
    """A passing shortage of processes is a death like any other."""
    world = World(1)
    world.refused_starts = 2
    world.signal(5, TERM)
    assert world.supervisor.run() == 0
    assert len(world.starts(0)) == 1


CHILD = """
    import os, signal, sys, time
    from worker.process.replica import take_orders
    signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"drained\\n"), os._exit(0)))
    orders = take_orders()
    assert "hunter2" not in " ".join(sys.argv)
    assert orders.overrides == ["kafka.sasl.password=hunter2"]
    orders.report_up("member-1")
    os.write(1, b"up\\n")
    while True:
        time.sleep(10)
"""

PARENT = """
    import sys
    from worker.process.replica import Replica
    from worker.process.signals import listening
    from worker.process.supervisor import Supervisor
    from worker.telemetry import logs
    logs.configure()
    with listening() as stop:
        supervisor = Supervisor(
            lambda index, died: Replica([sys.executable, sys.argv[1]], ["kafka.sasl.password=hunter2"], died), 2
        )
        stop.give_to(supervisor.on_signal)
        sys.exit(supervisor.run())
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Two real children, both up."""
    for name, source in (("child.py", CHILD), ("parent.py", PARENT)):
        (tmp_path / name).write_text(textwrap.dedent(source))
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path / "child.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        try:
            assert parent.stdout
            assert [parent.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
            yield parent
        finally:
            parent.kill()


def test_real_children_drain_at_sigterm(supervised: subprocess.Popen[str]) -> None:
    """With real processes: SIGTERM to the supervisor, a drain in each child, exit 0."""
    supervised.send_signal(signal.SIGTERM)
    out, _ = supervised.communicate(timeout=30)
    assert out.split() == ["drained", "drained"]
    assert supervised.returncode == 0


def test_real_children_drain_when_the_supervisor_is_killed(supervised: subprocess.Popen[str]) -> None:
    """After kill -9 of the supervisor no child stays: its output ends only when all have ended."""
    os.kill(supervised.pid, signal.SIGKILL)
    out, _ = supervised.communicate(timeout=30)
    assert out.split() == ["drained", "drained"]
