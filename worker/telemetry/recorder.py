"""Looks at the worker once a second, on a thread of its own: history, ``/state``, and the events of the page.

A second costs one snapshot and one point. The state is put together only while somebody reads it, once for all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import orjson

from worker.telemetry import logs
from worker.telemetry.events import Events, event
from worker.telemetry.history import History, LastMinute, point
from worker.telemetry.last_seen import LastLetters, LastResults
from worker.telemetry.meters import Snapshot
from worker.telemetry.routes import Answer, Provider, Route
from worker.telemetry.rss import rss_bytes
from worker.telemetry.state import About, state

SECOND_S = 1.0

log = logs.get(__name__)


Trials = Callable[[], Mapping[str, Mapping[str, Any]]]
"""By pipeline the rollout that runs: state, mode, share, candidate (a model version), id."""


class Group(Protocol):
    """All replicas of the group: see :class:`worker.telemetry.follower.Follower`."""

    def state(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Recorder:
    """See the module.

    Args:
        letters, results: the last ones; ``results`` is None where none are kept.
        group: None where no metrics topic is named.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        about: About,
        provider: Provider,
        letters: LastLetters,
        results: LastResults | None = None,
        group: Group | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about = about
        self._provider = provider
        self._letters = letters
        self._results = results
        self._group = group
        self._clock = clock
        self._lock = threading.Lock()
        self._history = History()
        self._minute = LastMinute()
        self._whole = provider.snapshot()
        self._second = self._whole.since(self._whole)
        self._warm_bytes: int | None = None
        self._sent = 0
        """Number of the newest sample that an event told."""
        self._ended = threading.Event()
        self.events = Events(self._first)
        self.trials: Trials = dict
        """What of each pipeline is on trial now; set once the models are there."""
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def warm(self) -> None:
        """The models are loaded: memory beyond what the process takes now has a bound."""
        self._warm_bytes = rss_bytes()

    def close(self) -> None:
        """End the streams and the thread."""
        self._ended.set()
        self.events.close()
        if self._group is not None:
            self._group.close()

    def routes(self) -> dict[str, Route]:
        """``/state`` and ``/events``."""

        def whole_state() -> Answer:
            return Answer(HTTPStatus.OK, "application/json", self.json())

        return {"/state": whole_state, "/events": self.events.open}

    def last_minute(self) -> Snapshot:
        """The newest look, with the counters of the last minute."""
        with self._lock:
            return self._minute.until(self._whole)

    def json(self) -> bytes:
        """The state with its history."""
        with self._lock:
            said = self._state()
            said["samples"] = self._results.state() if self._results is not None else []
            return orjson.dumps(said)[:-1] + b',"history":' + self._history.json() + b"}"

    def second(self) -> None:
        """Look at the worker once."""
        snapshot = self._provider.snapshot()
        if self._results is not None:
            self._results.make()
        with self._lock:
            second = snapshot.since(self._whole)
            made = point(second)
            self._history.add(made)
            self._minute.add(snapshot)
            self._whole, self._second = snapshot, second
            if not self.events.readers:
                return
            said = self._state()
            if self._results is not None:
                said["samples"] = self._results.state(self._sent)
                self._sent = max((each["number"] for each in said["samples"]), default=self._sent)
            self.events.publish(event("second", orjson.dumps(said)[:-1] + b',"point":' + made + b"}"))

    def _first(self) -> bytes:
        return event("state", self.json())

    def _state(self) -> dict[str, Any]:
        minute = self._minute.until(self._whole)
        said = state(
            self._about, self._provider.health(), self._second, minute, self._whole, self._warm_bytes
        )
        for name, trial in self.trials().items():
            said["models"].setdefault(name, {})["rollout"] = trial
        said["dead_letters"] = self._letters.state()
        said["group"] = self._group.state() if self._group is not None else None
        return said

    def _run(self) -> None:
        due_s = self._clock()
        while not self._ended.wait(max(0.0, due_s - self._clock())):
            due_s = max(due_s + SECOND_S, self._clock())
            try:
                self.second()
            except Exception:
                log.exception("a second of the page failed")
