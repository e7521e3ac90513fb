"""One running worker: started by a signal-safe `run`, drained, and closed within a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.process.rounds import Chore
from worker.process.watchdog import Watchdog
from worker.telemetry import logs
from worker.telemetry.vitals import Vitals

if TYPE_CHECKING:
    from worker.loop.conductor import Conductor
    from worker.reload import Reloader
    from worker.serving.loader import Loader
    from worker.serving.rollout import Rollout
    from worker.serving.steward import Steward

CLOSE_S = 2.0
"""How long each client may take to close."""

LAST_NOTE_S = 0.5
"""Longest wait for the loop's last note when a second signal ends the process."""

log = logs.get("worker")


class Client(Protocol):
    """A client that can be closed."""

    def close(self, budget_s: float) -> None: ...


class Closable(Protocol):
    """Something that is closed at the end."""

    def close(self) -> None: ...


class Pool(Protocol):
    """What the end of the process asks of the pool."""

    @property
    def outstanding(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Worker:
    """See :class:`worker.process.run.Worker`. The composition root makes the parts."""

    conductor: Conductor
    vitals: Vitals
    watchdog: Watchdog
    look: Chore
    """Refreshes how far the partitions go."""
    pool: Pool
    rollouts: Sequence[Rollout]
    loader: Loader
    clients: Sequence[Client]
    """Closed in this order, after the last report."""
    seeing: Closable | None
    """What is shown over HTTP."""
    join: Callable[[], None]
    """What is done right before the group is joined."""
    last_report: Callable[[], None]
    started: dict[str, Any]
    """What the first log line says of this worker."""
    reloader: Reloader
    """Of the configuration."""
    steward: Steward | None = None
    """Of rollouts; None without a control topic."""
    commits_failed: Callable[[], int] = int
    """Positions whose commit the broker refused."""
    traces: Client | None = None
    """Sends the spans of traced records; None where none is traced."""

    def run(self) -> None:
        """Turn the loop until it has drained."""
        log.info("started", **self.started)
        self.join()
        self.loader.start()
        if self.steward is not None:
            self.steward.start()
        self.reloader.start()
        self.conductor.run()

    @property
    def recycles(self) -> str | None:
        """See :class:`worker.process.run.Worker`."""
        return self.loader.overgrown

    def ask_to_stop(self) -> None:
        """Drain soon; called on the thread that receives signals."""
        self.conductor.stop_requested = True
        self.look.due_s = 0.0  # the last look at the ends, for the last metrics

    def read_again(self) -> None:
        """Take the configuration over as it is now, soon; called as above."""
        self.reloader.ask()

    def end_now(self) -> None:
        """Let the loop note that no record is to blame for the end that follows; wait for it a moment at most."""
        self.conductor.ending = True
        deadline_s = time.monotonic() + LAST_NOTE_S
        while not self.conductor.ended and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def give_up(self) -> None:
        """Leave the consumer group without a drain."""
        self.conductor.membership.leave(CLOSE_S)

    def close(self) -> None:
        """Report the last numbers and close the clients, within a few seconds whatever the brokers do."""
        self.watchdog.close()
        self.reloader.close()
        if self.steward is not None:
            self.steward.close()
        self.loader.close()
        if self.traces is not None:
            self.traces.close(CLOSE_S)  # before the last numbers, which count its spans
        self.last_report()
        counts = self.vitals.take_snapshot().pipelines.values()
        log.info(
            "counted",
            client_id=self.started["client_id"],
            taken=sum(count.taken for count in counts),
            ok=sum(count.ok for count in counts),
            dead_letter=sum(count.dead_letter for count in counts),
            dropped=sum(count.dropped for count in counts),
            in_flight=sum(count.in_flight for count in counts),
            commits_failed=self.commits_failed(),
        )
        for client in self.clients:
            client.close(CLOSE_S)
        if self.seeing is not None:
            self.seeing.close()
        if not self.pool.outstanding:  # a run in progress would keep its model, and this process, waiting
            for rollout in self.rollouts:
                rollout.close()
