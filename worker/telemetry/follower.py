"""Reads the metrics topic for the page, on a thread of its own and only while somebody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from worker.errors import WorkerError
from worker.telemetry import logs
from worker.telemetry.group import GroupView

LOOKED_S = 15.0
"""So long after the last look the thread ends."""
BACK_S = 70.0
"""How far back reading begins: enough for the rates of a minute."""
READ_S = 0.5
AGAIN_S = 5.0
"""Wait before the topic is tried again."""

log = logs.get(__name__)


class Record(Protocol):
    """What is used of a record."""

    @property
    def value(self) -> bytes | None: ...


class Reader(Protocol):
    """See :class:`worker.kafka.tools.TopicReader`."""

    def read(self, timeout_s: float) -> Sequence[Record]: ...

    def close(self) -> None: ...


class Follower:
    """All replicas of a group, as far as somebody looks.

    Args:
        topic: the metrics topic, for people.
        open_reader: opens a reader that begins at this time, in Unix milliseconds; may raise a :class:`WorkerError`.
        wall: Unix seconds. clock: monotonic seconds.
    """

    def __init__(
        self,
        group: str,
        topic: str,
        open_reader: Callable[[int], Reader],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._topic = topic
        self._open = open_reader
        self._wall = wall
        self._clock = clock
        self._lock = threading.Lock()
        self._view = GroupView(group)
        self._looked_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._ended = threading.Event()

    def state(self) -> dict[str, Any]:
        """What is known now. Asking makes the thread read on."""
        with self._lock:
            self._looked_s = self._clock()
            if self._thread is None and not self._ended.is_set():
                self._view = GroupView(self._group)
                self._thread = threading.Thread(target=self._run, name="page-group", daemon=True)
                self._thread.start()
            known = self._view.state(int(self._wall() * 1000))
            return {"topic": self._topic, "error": self._error, **known}

    def close(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        try:
            while self._wanted():
                try:
                    self._follow()
                except WorkerError as error:
                    self._error = str(error)
                    self._ended.wait(AGAIN_S)
        finally:
            with self._lock:
                self._thread = None

    def _follow(self) -> None:
        reader = self._open(int((self._wall() - BACK_S) * 1000))
        try:
            self._error = None
            while self._wanted():
                for record in reader.read(READ_S):
                    with self._lock:
                        self._view.add(record.value)
        finally:
            reader.close()

    def _wanted(self) -> bool:
        return not self._ended.is_set() and self._clock() - self._looked_s < LOOKED_S
