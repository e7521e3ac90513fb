"""The last resort: a thread that ends the process when it is stuck and cannot know it itself.

It logs its state and the stacks of all threads, then ends the process at once: whatever is stuck would hold up any
gentler end. A restarted process reads again from the last commit.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from worker.errors import Stalled

TICK_S = 0.25


Check = Callable[[], str | None]
"""One way to be stuck: called at every tick, returns a sentence once the process is stuck in this way."""


class AwakeClock:
    """Seconds during which this process was awake: a suspended machine or a stopped process is not stuck.

    The watchdog advances it at every tick, by one second at most.
    """

    LONGEST_STEP_S = 1.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._awake_s = 0.0

    def __call__(self) -> float:
        return self._awake_s

    def tick(self) -> None:
        now = self._clock()
        self._awake_s += min(now - self._last, self.LONGEST_STEP_S)
        self._last = now


class Watchdog:
    """Calls every check until one says that the process is stuck.

    Args:
        state: what goes into the log line: everything the process knows of itself.
        report: logs an event with fields.
        fatal: says why the process ends, with its exit code.
        clock: what the checks measure by.
        leave: ends the process with an exit code.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        state: Callable[[], dict[str, Any]],
        report: Callable[..., Any],
        fatal: Callable[[str, int], Any],
        clock: AwakeClock,
        leave: Callable[[int], Any],
        tick_s: float = TICK_S,
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._state = state
        self._report = report
        self._fatal = fatal
        self._leave = leave
        self._tick_s = tick_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(self._tick_s):
            self._clock.tick()
            for check in self._checks:
                why = check()
                if why is not None:
                    self._end(why)
                    return

    def _end(self, why: str) -> None:
        try:
            state = self._state()
        except Exception as error:  # the state is a help; without it the process must end all the same
            state = {"unknown": str(error)}
        self._report("stuck", reason=why, state=state, stacks=_stacks())
        self._fatal(why, Stalled.exit_code)
        self._leave(Stalled.exit_code)


def _stacks() -> dict[str, list[str]]:
    """Where each thread is, innermost call last.

    Python's own frames, not ``faulthandler``: that writes to standard error while it holds the interpreter lock, and
    a log pipe that nobody reads would then stop the whole process, this thread included.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, '?')} ({ident})": [
            f"{call.filename}:{call.lineno} in {call.name}" for call in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
    }


class Standstill:
    """A loop that does not turn.

    Args:
        read: a number that changes at every turn, such as the time of the last one.
    """

    def __init__(self, stall_s: float, read: Callable[[], int], clock: Callable[[], float]) -> None:
        self.stall_s = stall_s
        self._read = read
        self._clock = clock
        self._seen = (read(), clock())

    def stuck(self) -> str | None:
        value, now = self._read(), self._clock()
        if value != self._seen[0]:
            self._seen = (value, now)
        stood_s = now - self._seen[1]
        if stood_s <= self.stall_s:
            return None
        return f"the loop has not turned for {stood_s:.0f} s (limits.stall_s is {self.stall_s:g})"


class BatchDeadline:
    """A batch that takes longer than ``batch_timeout_s``: its run is cancelled, and 2 s later it counts as stuck.

    Args:
        oldest: the batch that has been worked on for longest; None: no batch is worked on.
        interrupt: cancels the runs of that batch's model.
    """

    GRACE_S = 2.0

    def __init__(
        self,
        timeout_s: float,
        oldest: Callable[[], Any],
        interrupt: Callable[[Any], None],
        clock: Callable[[], float],
    ) -> None:
        self.timeout_s = timeout_s
        self._oldest = oldest
        self._interrupt = interrupt
        self._clock = clock
        self._timed: Any = None
        self._since = 0.0
        self._interrupted: Any = None

    def stuck(self) -> str | None:
        batch = self._oldest()
        if batch is not self._timed:
            self._timed, self._since = batch, self._clock()
        if batch is None:
            return None
        age = self._clock() - self._since
        if age > self.timeout_s + self.GRACE_S:
            return (
                f"a batch of pipeline {batch.route.name} has been worked on for {age:.1f} s "
                f"(limits.batch_timeout_s is {self.timeout_s:g}) and did not stop when told to"
            )
        if age > self.timeout_s and batch is not self._interrupted:
            self._interrupted = batch
            self._interrupt(batch)
        return None


class DrainDeadline:
    """A loop that is asked to drain and does not begin: its own thread runs a batch that never ends.

    Args:
        waiting: whether the loop was asked and has not begun. Once it has begun, it keeps the budget itself.
    """

    def __init__(self, drain_s: float, waiting: Callable[[], bool], clock: Callable[[], float]) -> None:
        self.drain_s = drain_s
        self._waiting = waiting
        self._clock = clock
        self._since: float | None = None

    def stuck(self) -> str | None:
        if not self._waiting():
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since > self.drain_s:
            return (
                f"drain took longer than limits.drain_s ({self.drain_s:g} s): a batch did not end, "
                "and what was in flight will be read again"
            )
        return None


class Outage:
    """No broker can be reached for longer than the user wants to wait.

    Args:
        outage_s: ``limits.outage_s``; None: an outage is waited out however long it lasts.
        away: whether no broker can be reached now.
    """

    def __init__(self, outage_s: float | None, away: Callable[[], bool], clock: Callable[[], float]) -> None:
        self.outage_s = outage_s
        self._away = away
        self._clock = clock
        self._since: float | None = None

    def stuck(self) -> str | None:
        if self.outage_s is None or not self._away():
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since > self.outage_s:
            return f"no broker could be reached for {self.outage_s:g} s (limits.outage_s)"
        return None
