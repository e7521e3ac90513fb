"""One worker process, from its settings to its exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol

from worker.errors import Recycled, WorkerError
from worker.process import runtime
from worker.process.signals import SIGNALS, Stop
from worker.shortage import shortage
from worker.telemetry import logs

log = logs.get("worker")


class Worker(Protocol):
    """A worker that is warm and connected."""

    def run(self) -> None:
        """Work until asked to stop, then drain.

        Raises:
            WorkerError: the process cannot go on.
        """

    @property
    def recycles(self) -> str | None:
        """Why it drained although nobody asked it to, so that a fresh process goes on; None if that is not so."""

    def ask_to_stop(self) -> None:
        """Drain soon; called on another thread."""

    def read_again(self) -> None:
        """Take the configuration over as it is now, soon; called on another thread."""

    def end_now(self) -> None:
        """The process ends after this call, in the middle of a drain; called on another thread."""

    def give_up(self) -> None:
        """Leave the consumer group without a drain."""

    def close(self) -> None:
        """Report the last numbers and close the clients, within a few seconds whatever the brokers do."""


Build = Callable[[int], Worker]
"""Loads the models and connects: takes the index of this replica."""


def run(index: int | None, build: Build, stop: Stop) -> int:
    """Run one worker until it has drained.

    A signal that comes before the worker is built ends the process with 0: nothing was taken.

    Args:
        index: which replica this is; None when there is only one.
        build: makes the worker.
        stop: where signals go.

    Raises:
        WorkerError: see its exit code.
    """
    runtime.prepare()
    worker = build(index or 0)
    stop.drain_then_leave(worker.ask_to_stop, worker.end_now)
    stop.read_again(worker.read_again)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # building a client blocks all signals for a moment
    try:
        worker.run()
    except WorkerError:
        worker.give_up()
        raise
    except Exception as error:
        if (sentence := shortage(error)) is None:
            raise
        log.error("the system gave no more", exc_info=error)
        raise WorkerError(sentence) from error  # as after a bug, a restart may help
    finally:
        worker.close()
    if (why := worker.recycles) is not None:
        raise Recycled(why)
    return 0
