"""The log tells the story: what a person on call must know, once for each kind and stretch of time, with counts and places.

One look a second on the loop's thread reads what is counted anyway, so a record costs nothing here. Each teller follows
one kind of trouble: it says when the trouble begins, now and then that it goes on, and when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from worker.batch import Partition
from worker.telemetry.histogram import Histogram
from worker.telemetry.meters import PartitionState, PipelineCounts
from worker.telemetry.rss import rss_bytes

LOST_AFTER_S = 2.0
"""A broker counts as lost after this long without any connection: one that restarts in between is no news."""
STILL_AFTER_S = (30.0, 60.0)
"""When it is said again that there is no broker; after the last of these once for each such time."""
SETTLE_S = 5.0
"""Errors that arrive so soon around an outage belong to it."""
HEARTBEAT_S = 60.0


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Scene:
    """A worker at one moment. What is counted counts since the start of the process."""

    now_s: float
    """Monotonic seconds."""
    brokers: bool
    """Whether any broker is connected."""
    partitions: Mapping[Partition, PartitionState]
    """Those of this process."""
    pipelines: Mapping[str, PipelineCounts]
    """The live counters: a teller that compares must copy."""
    errors: Mapping[str, int]
    """Errors of the Kafka clients, by the name of librdkafka's code."""
    last_error: str
    """What the last of them said."""
    draining: bool = False
    waits: str | None = None
    """What records wait for, if that is unusual."""
    ending: bool = False
    """This is the last look: what is not told now is never told."""
    away: str = ""
    """The settings of the cluster for results that cannot be reached, such as `output.kafka`; empty: none, or that of `kafka`."""


class Teller(Protocol):
    """Follows one kind of trouble."""

    def look(self, scene: Scene) -> None:
        """Called once a second; logs what is new."""


class Story:
    """Tells of every scene what its tellers find new in it."""

    def __init__(self, tellers: Sequence[Teller], scene: Callable[[], Scene | None]) -> None:
        self._tellers = tellers
        self._scene = scene

    def look(self) -> None:
        """Look once; nothing is to be told while the worker is not complete yet."""
        if (scene := self._scene()) is not None:
            self._tell(scene)

    def close(self) -> None:
        """Look for the last time."""
        if (scene := self._scene()) is not None:
            self._tell(replace(scene, draining=True, ending=True))

    def _tell(self, scene: Scene) -> None:
        for teller in self._tellers:
            teller.look(scene)


class Pace:
    """How often one kind of trouble is told while it goes on: after ``first_s``, then ever more rarely, down to once in ``most_s``."""

    def __init__(self, first_s: float = 10.0, most_s: float = 60.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._step_s = first_s
        self._told_s: float | None = None

    def due(self, now_s: float) -> bool:
        """Whether enough time has passed since it was told last. A quiet time in between begins anew."""
        if self._told_s is None:
            return True
        quiet_s = now_s - self._told_s
        if quiet_s >= 2 * self._most_s:
            self._step_s = self._first_s
            return True
        return quiet_s >= self._step_s

    def told(self, now_s: float) -> None:
        """It is told now."""
        if self._told_s is not None and now_s - self._told_s < 2 * self._most_s:
            self._step_s = min(2 * self._step_s, self._most_s)
        self._told_s = now_s


class Brokers:
    """No broker is connected, and is there again; errors of the Kafka clients while one is.

    Args:
        brokers: ``kafka.bootstrap.servers``.
    """

    def __init__(self, log: Log, brokers: str) -> None:
        self._log = log
        self._brokers = brokers
        self._was_up = False
        self._answered = 0
        """Records that were answered up to the last look."""
        self._away_s: float | None = None
        self._told = False
        self._said_s = 0.0
        """For how long the broker was away when that was said last."""
        self._back_s = float("-inf")
        self._errors: dict[str, int] = {}
        """Those that are told, or belong to an outage."""
        self._new_s: float | None = None
        """When the first error came that is not told."""
        self._pace = Pace(10.0, 300.0)

    def look(self, scene: Scene) -> None:
        if scene.draining:
            return
        answered = sum(counts.ok + counts.dead_letter for counts in scene.pipelines.values())
        acknowledged, self._answered = answered > self._answered, answered
        if (
            scene.brokers or acknowledged
        ):  # whoever acknowledges is there, whatever the client's statistics say
            if self._told and self._away_s is not None:
                self._log.info("broker back", after_s=round(scene.now_s - self._away_s))
                self._back_s = scene.now_s
            self._was_up, self._away_s, self._told = True, None, False
            self._look_at_errors(scene)
        elif self._was_up:
            self._look_at_outage(scene)

    def _look_at_outage(self, scene: Scene) -> None:
        if self._away_s is None:
            self._away_s = scene.now_s
        away_s = scene.now_s - self._away_s
        self._errors, self._new_s = {**scene.errors}, None
        if not self._told:
            if away_s >= LOST_AFTER_S:
                self._told, self._said_s = True, 0.0
                self._log.warning(
                    "broker lost", brokers=scene.away or self._brokers, error=_brief(scene.last_error)
                )
            return
        due_s = next((s for s in STILL_AFTER_S if s > self._said_s), self._said_s + STILL_AFTER_S[-1])
        if away_s >= due_s:
            self._said_s = due_s
            self._log.warning("still without broker", for_s=round(away_s))

    def _look_at_errors(self, scene: Scene) -> None:
        """Errors with a broker in sight: of one broker among several, of a right or of a topic."""
        new = {name: n - self._errors.get(name, 0) for name, n in scene.errors.items()}
        new = {name: n for name, n in new.items() if n > 0}
        if not new or scene.now_s - self._back_s < SETTLE_S:
            self._errors, self._new_s = {**scene.errors}, None
            return
        if self._new_s is None:
            self._new_s = scene.now_s
        if scene.now_s - self._new_s >= SETTLE_S and self._pace.due(scene.now_s):
            self._log.warning("kafka errors", errors=new, last=_brief(scene.last_error))
            self._pace.told(scene.now_s)
            self._errors, self._new_s = {**scene.errors}, None


def _brief(error: str) -> str:
    """An error of librdkafka without how long it took and how often it was not told."""
    return error.partition(" (after ")[0]


class Heartbeat:
    """Once a minute how much work is done, also when there is none: a silent log means a dead process."""

    def __init__(self, log: Log, every_s: float = HEARTBEAT_S) -> None:
        self._log = log
        self._every_s = every_s
        self._since_s: float | None = None
        self._counted = (0, 0, 0)
        self._total: dict[str, Histogram] = {}

    def look(self, scene: Scene) -> None:
        if self._since_s is None:
            self._note(scene)
        elif scene.now_s - self._since_s >= self._every_s and not scene.draining:
            self._tell(scene, scene.now_s - self._since_s)
            self._note(scene)

    def _tell(self, scene: Scene, seconds: float) -> None:
        taken, ok, dead = (now - then for now, then in zip(_counted(scene), self._counted, strict=True))
        total = Histogram()
        for name, counts in scene.pipelines.items():
            total.merge(counts.stages_us["total"].since(self._total.get(name, Histogram())))
        p50_us, p99_us = total.percentiles(0.5, 0.99)
        latency = (
            {"p50_ms": round(p50_us / 1000, 1), "p99_ms": round(p99_us / 1000, 1)} if total.count else {}
        )
        lags = [state.lag for state in scene.partitions.values() if state.lag is not None]
        self._log.info(
            "working",
            in_per_s=round(taken / seconds, 1),
            out_per_s=round(ok / seconds, 1),
            **latency,
            dead=dead,
            lag=sum(lags) if lags else None,
            rss_bytes=rss_bytes(),
            **({"waits": scene.waits} if scene.waits else {}),
        )

    def _note(self, scene: Scene) -> None:
        self._since_s = scene.now_s
        self._counted = _counted(scene)
        self._total = {name: counts.stages_us["total"].copy() for name, counts in scene.pipelines.items()}


def _counted(scene: Scene) -> tuple[int, int, int]:
    counts = scene.pipelines.values()
    return sum(c.taken for c in counts), sum(c.ok for c in counts), sum(c.dead_letter for c in counts)
