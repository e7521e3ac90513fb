"""One worker process, from its settings to its exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from worker.errors import WorkerError
from worker.process import runtime
from worker.process.leaving import leave

if TYPE_CHECKING:
    from worker.settings import Settings


class Worker(Protocol):
    """A worker that is warm and connected."""

    def run(self) -> None:
        """Work until asked to stop, then drain.

        Raises:
            WorkerError: the process cannot go on.
        """

    def ask_to_stop(self) -> None:
        """Drain soon; called by a signal handler."""

    def give_up(self) -> None:
        """Leave the consumer group without a drain."""

    def close(self) -> None:
        """Report the last numbers and close the clients, within a few seconds whatever the brokers do."""


Build = Callable[["Settings", int], Worker]
"""Loads the models and connects: takes the settings and the index of this replica."""


def run(settings: Settings, index: int | None, build: Build) -> int:
    """Run one worker until it has drained.

    Args:
        index: which replica this is; None when there is only one.
        build: makes the worker.

    Raises:
        WorkerError: see its exit code.
    """
    runtime.prepare()
    settings = _of_replica(settings, index)
    stop = Stop()
    worker = build(settings, index or 0)
    stop.requested = worker.ask_to_stop
    # a parent may hand its signal mask down, and building a client blocks all signals for a moment
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    if stop.asked:
        worker.ask_to_stop()
    try:
        worker.run()
        return 0
    except WorkerError:
        worker.give_up()
        raise
    finally:
        worker.close()


def _of_replica(settings: Settings, index: int | None) -> Settings:
    """A configured client.id gets the replica's index, so that no two replicas share one."""
    if index is None or "client.id" not in settings.kafka:
        return settings
    named = {**settings.kafka, "client.id": f"{settings.kafka['client.id']}-{index}"}
    return settings.model_copy(update={"kafka": named})


class Stop:
    """SIGTERM and SIGINT: the first drains, the second ends the process now."""

    def __init__(self) -> None:
        self.requested: Callable[[], None] | None = None
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            leave(128 + number)
        self.asked = True
        if self.requested is not None:
            self.requested()
