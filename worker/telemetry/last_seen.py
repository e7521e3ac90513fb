"""The last dead letters, and with ``page.samples`` the last results with their picture: what the page shows of records.

The loop's thread notes references only, and of results at most two a second. Pictures are made small on the thread
that asks for them.
"""

from __future__ import annotations

import itertools
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from worker.batch import Batch, Outcomes, Partition
from worker.errors import Rejection
from worker.telemetry import logs
from worker.telemetry.observer import Unconcerned

LETTERS = 20
"""Dead letters kept."""
SAMPLE_EVERY_S = 0.5
"""Shortest time between two samples."""
PICTURE_BYTES = 4 << 20
"""A larger file is shown without its picture, so that samples cost a bounded amount of memory."""
BODY_BYTES = 64 << 10
"""A larger result is shown by its size only."""
_WAITING = 2

log = logs.get(__name__)


class Picture(NamedTuple):
    """A record's picture, made small."""

    file: bytes
    mime: str
    width: int
    height: int
    """Of the record's own picture, upright, in pixels: what boxes are given in."""


Small = Callable[[bytes], "Picture | None"]
"""Makes a small picture of a file; None: it is no picture, or too large a one."""


class LastLetters:
    """The last dead letters, newest first. One thread adds; any thread reads."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._letters: deque[dict[str, Any]] = deque(maxlen=LETTERS)

    def add(
        self, pipeline: str, model: str | None, partition: Partition, offset: int, why: Rejection
    ) -> None:
        """A record is to become a dead letter; ``why.message`` holds no secrets."""
        self._letters.appendleft(
            {
                "time_ms": int(self._wall() * 1000),
                "pipeline": pipeline,
                "model": model,
                "topic": partition.topic,
                "partition": partition.number,
                "offset": offset,
                "reason": why.reason,
                "stage": why.stage,
                "message": why.message,
            }
        )

    def state(self) -> list[dict[str, Any]]:
        return [*self._letters]


@dataclass(frozen=True, slots=True)
class _Noted:
    """A result as the loop saw it: references to what was there anyway."""

    time_ms: int
    pipeline: str
    model: str
    partition: Partition
    offset: int
    value: bytes | None
    body: bytes


class LastResults(Unconcerned):
    """The last results, newest first, with their picture where the record is one.

    Args:
        kept: how many (``page.samples``).
        small: makes the pictures.
        clock, wall: monotonic and Unix seconds.
    """

    def __init__(
        self,
        kept: int,
        small: Small,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.kept = kept
        self._small = small
        self._clock = clock
        self._wall = wall
        self._next_s = 0.0
        self._numbers = itertools.count(1)
        self._noted: deque[_Noted] = deque(maxlen=_WAITING)
        self._samples: deque[dict[str, Any]] = deque(maxlen=kept)
        self._making = threading.Lock()

    def batch(self, pipeline: str, batch: Batch) -> None:
        """See :class:`worker.telemetry.observer.Observer`."""
        now_s = self._clock()
        if now_s < self._next_s or batch.outcomes is None:
            return
        self._next_s = now_s + SAMPLE_EVERY_S
        try:
            noted = self._note(pipeline, batch, batch.outcomes)
        except Exception:  # a picture for people must not end the worker
            log.exception("a result is not shown")
            return
        if noted is None:
            self._next_s = now_s
        else:
            self._noted.append(noted)

    def _note(self, pipeline: str, batch: Batch, outcomes: Outcomes) -> _Noted | None:
        """The newest result of a batch; None where it has none."""
        columns = batch.columns
        for row in range(len(batch) - 1, -1, -1):
            body = outcomes.bodies[row]
            if body is None or row in outcomes.rejected or row in outcomes.dropped:
                continue
            value = columns.values[row]
            if columns.fetched is not None and columns.fetched[row].payload is not None:
                value = columns.fetched[row].payload
            if value is not None and len(value) > PICTURE_BYTES:
                value = None
            place = columns.partitions[row], columns.offsets[row]
            moment_ms = int(self._wall() * 1000)
            return _Noted(moment_ms, pipeline, batch.servable.label, *place, value, bytes(body))
        return None

    def state(self, after: int = 0) -> list[dict[str, Any]]:
        """The samples with a number above ``after``, newest first."""
        self.make()
        with self._making:
            return [sample for sample in self._samples if sample["number"] > after]

    def make(self) -> None:
        """Make samples of the results noted since the last call."""
        with self._making:
            while self._noted:
                self._samples.appendleft(self._made(self._noted.popleft()))

    def _made(self, noted: _Noted) -> dict[str, Any]:
        return {
            "number": next(self._numbers),
            "time_ms": noted.time_ms,
            "pipeline": noted.pipeline,
            "model": noted.model,
            "topic": noted.partition.topic,
            "partition": noted.partition.number,
            "offset": noted.offset,
            "result": _result(noted.body),
            "bytes": len(noted.body),
            "picture": self._picture(noted.value),
        }

    def _picture(self, value: bytes | None) -> dict[str, Any] | None:
        try:
            picture = self._small(value) if value is not None else None
        except Exception as error:  # the record was answered; only its picture is not shown
            log.debug("no picture of a sample", reason=repr(error))
            return None
        if picture is None:
            return None
        shown = picture._asdict()
        shown["file"] = b64encode(picture.file).decode()
        return shown


def _result(body: bytes) -> Any:
    """What the result says; None where that is not JSON, or too much of it."""
    if len(body) > BODY_BYTES:
        return None
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict):
        return None
    shown = ("id", "prediction", "predictions", "latency_ms", "outputs", "error")
    return {name: said[name] for name in shown if name in said} or said
