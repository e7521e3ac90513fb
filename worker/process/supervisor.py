"""``run --replicas N``: N worker processes and what to do when one ends.

The supervisor never touches Kafka; replicas find each other through their consumer group.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from worker.telemetry import logs

FINAL_CODES = frozenset({4, 7})
"""Exits that every replica would repeat (dead-letter limit, sick model): no restart."""
START_CODES = frozenset({2, 3})
"""Exits for configuration and start. They are final until a replica has been up; from then on the configuration is
known to be good, and a broker that is away or a file that is half written passes."""

RECYCLED = 8
"""A child that drained to give memory back: the next one starts at once."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 10.0
LIVED_LONG_S = 30.0
"""A replica that lived this long is restarted with the first delay again."""
MOST_DEATHS, DEATHS_WITHIN_S = 5, 60.0
_TICK_S = 0.1

log = logs.get(__name__)


class Process(Protocol):
    """What the supervisor needs of a child; :class:`worker.process.replica.Replica` has it."""

    @property
    def pid(self) -> int: ...

    @property
    def member(self) -> str | None:
        """The child's id in its consumer group, as last reported; None: it was never in."""

    def poll(self) -> int | None:
        """None while it runs, else its exit code, or minus the signal that killed it."""

    def send_signal(self, sig: int) -> None: ...

    def close(self) -> None:
        """The child has ended; give back what was held for it."""


@dataclass(slots=True)
class _Replica:
    """One index: the process that has it now, or when it gets the next one."""

    index: int
    process: Process | None = None
    started_s: float = 0.0
    start_at_s: float | None = 0.0
    """None while it runs and when it is done for good."""
    delay_s: float = FIRST_DELAY_S
    member: str | None = None
    """The id that its last process had in the consumer group."""
    reread_due: bool = False
    """Its process has not yet been told to read its configuration again."""


class Supervisor:
    """Runs children until they are done or drained. `run` gives the exit code for the whole.

    The first signal drains the children, the second kills them (128 + its number). A child that ends with code 0 is
    done, one with `RECYCLED` is followed by a fresh one at once. One of `FINAL_CODES` drains the others and is the exit code, and so is one of `START_CODES` as long as no child
    was ever up. Any other end, a death by signal included, is followed by a restart. The fifth such death within 60 s
    drains the others and is the exit code (a death by signal counts as 1, a bug). A child that could not start again
    (`START_CODES`) does not count there: it is tried for as long as it takes, and the healthy ones stay.

    Args:
        start: starts the child with this index. The second argument is the member id of the child that died before it,
            so that the new one can take it out of the group; None when there was none.
        clock, sleep: monotonic seconds.
    """

    def __init__(
        self,
        start: Callable[[int, str | None], Process],
        replicas: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._start = start
        self._replicas = [_Replica(index) for index in range(replicas)]
        self._clock = clock
        self._sleep = sleep
        self._signals: list[int] = []
        self._reread = False
        self._draining = False
        self._was_up = False
        """Whether any child was ever up."""
        self._exit_code = 0
        self._deaths_s: deque[float] = deque(maxlen=MOST_DEATHS)

    def on_signal(self, signum: int) -> None:
        """A signal came, on any thread; `run` acts at its next tick."""
        self._signals.append(signum)

    def read_again(self) -> None:
        """Have every replica read its configuration again; called on any thread, `run` acts at its next tick."""
        self._reread = True

    def run(self) -> int:
        """See the class."""
        while True:
            if self._reread:
                self._reread = False
                for replica in self._replicas:
                    replica.reread_due = replica.process is not None
            if len(self._signals) > 1:
                return self._stop_now(self._signals[1])
            if self._signals:
                self._drain("asked to")
            for replica in self._replicas:
                self._reap(replica)
                self._pass_on(replica)
            for replica in self._replicas:
                self._start_if_due(replica)
            if all(replica.process is None and replica.start_at_s is None for replica in self._replicas):
                return self._exit_code
            self._sleep(_TICK_S)

    def _pass_on(self, replica: _Replica) -> None:
        """Send a SIGHUP on. A process that is still starting may have read the old file, and not yet listen to signals."""
        if replica.reread_due and replica.process is not None and replica.process.member is not None:
            replica.reread_due = False
            replica.process.send_signal(signal.SIGHUP)

    def _start_if_due(self, replica: _Replica) -> None:
        now = self._clock()
        if replica.start_at_s is None or now < replica.start_at_s:
            return
        replica.started_s, replica.start_at_s = now, None
        try:
            replica.process = self._start(replica.index, replica.member)
        except OSError as error:
            log.error("cannot start a replica", replica=replica.index, error=str(error))
            self._died(replica, 1)
            return
        log.info("replica started", replica=replica.index, pid=replica.process.pid)

    def _reap(self, replica: _Replica) -> None:
        """Look whether the replica's process has ended, and decide what that means."""
        if replica.process is None:
            return
        code = replica.process.poll()
        member = replica.process.member
        self._was_up = self._was_up or member is not None
        if code is None:
            return
        replica.member = member or replica.member
        replica.process.close()
        replica.process = None
        if code == RECYCLED and not self._draining:
            log.info("replica recycled itself", replica=replica.index)
            replica.start_at_s, replica.delay_s = self._clock(), FIRST_DELAY_S
        elif code in (0, RECYCLED) or (
            self._draining and code == -signal.SIGTERM
        ):  # not yet far enough to drain
            log.debug("replica done", replica=replica.index)  # its own last words have said it
        elif self._draining:
            log.error("replica failed while draining", replica=replica.index, ended=_describe(code))
            self._exit_code = self._exit_code or _exit_code(code)
        elif code in FINAL_CODES or (code in START_CODES and not self._was_up):
            log.error("replica ended for good", replica=replica.index, ended=_describe(code))
            self._exit_code = code
            self._drain("a replica cannot go on")
        else:
            self._died(replica, code)

    def _died(self, replica: _Replica, code: int) -> None:
        """Restart after a while, or give up when there are too many deaths."""
        now = self._clock()
        if code not in START_CODES:
            self._deaths_s.append(now)
        if len(self._deaths_s) == MOST_DEATHS and now - self._deaths_s[0] <= DEATHS_WITHIN_S:
            log.error("too many deaths, giving up", replica=replica.index, ended=_describe(code))
            self._exit_code = _exit_code(code)
            self._drain("too many deaths")
            return
        if now - replica.started_s >= LIVED_LONG_S:
            replica.delay_s = FIRST_DELAY_S
        log.error("replica died", replica=replica.index, ended=_describe(code), restart_in_s=replica.delay_s)
        replica.start_at_s = now + replica.delay_s
        replica.delay_s = min(2 * replica.delay_s, LONGEST_DELAY_S)

    def _drain(self, why: str) -> None:
        """Ask every child once to finish; nothing is started any more."""
        if self._draining:
            return
        self._draining = True
        log.info("draining the replicas", why=why)
        for replica in self._replicas:
            replica.start_at_s = None
            if replica.process:
                replica.process.send_signal(signal.SIGTERM)

    def _stop_now(self, signum: int) -> int:
        for replica in self._replicas:
            if replica.process:
                replica.process.send_signal(signal.SIGKILL)
        for _ in range(10):  # a moment for them to be gone, not a condition
            if all(
                replica.process is None or replica.process.poll() is not None for replica in self._replicas
            ):
                break
            self._sleep(_TICK_S)
        return 128 + signum


def _exit_code(code: int) -> int:
    return code if code > 0 else 1


def _describe(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"killed by signal {-code} ({signal.strsignal(-code)})"
