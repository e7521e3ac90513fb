"""What the log says of dead letters: how many for which reason, where the first one is, and where custom code failed."""

from __future__ import annotations

from collections import Counter

from worker.batch import Partition
from worker.errors import Rejection
from worker.telemetry.story import Log, Pace, Scene

OVER_AFTER_S = 60.0
"""Letters that were told more than once are over after this long without one."""
PLACES_KEPT = 1000
"""Most places in custom code that are counted."""


class LettersTold:
    """Follows the dead letters of each pipeline.

    The counts are those of the metrics, of letters that are acknowledged. The hook :meth:`add` notes the first place only.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._first: dict[str, tuple[str, str]] = {}
        """By pipeline: place and message of the first letter since the last line."""
        self._told: dict[str, Counter[tuple[str, str]]] = {}
        """By pipeline the errors told so far, by reason and stage."""
        self._paces: dict[str, Pace] = {}
        self._runs: dict[str, _Run] = {}
        self._failures: Counter[tuple[str, str, str]] = Counter()
        """How often custom code failed: by pipeline, exception and line."""

    def add(
        self, pipeline: str, _model: str | None, partition: Partition, offset: int, why: Rejection
    ) -> None:
        """A record is to become a dead letter; ``why.message`` holds no secrets. Called for each, so it does next to nothing."""
        if pipeline not in self._first:
            self._first[pipeline] = (f"{partition.topic}/{partition.number}/{offset}", why.message)
        if why.frames:
            self._failed(pipeline, partition, offset, why)

    def look(self, scene: Scene) -> None:
        for pipeline, counts in scene.pipelines.items():
            told = self._told.get(pipeline)
            if told is None or counts.errors != told:
                self._look_at(pipeline, counts.errors, told or Counter(), scene)
            elif (run := self._runs.get(pipeline)) and scene.now_s - run.last_s >= OVER_AFTER_S:
                del self._runs[pipeline]
                if run.lines > 1:
                    for_s = round(run.last_s - run.first_s)
                    self._log.info("dead letters ended", pipeline=pipeline, records=run.records, for_s=for_s)

    def _look_at(
        self,
        pipeline: str,
        errors: Counter[tuple[str, str]],
        told: Counter[tuple[str, str]],
        scene: Scene,
    ) -> None:
        new: Counter[str] = Counter()
        for (reason, stage), records in errors.items():
            if more := records - told[reason, stage]:
                new[reason] += more
        if not new:
            self._told[pipeline] = errors.copy()
            return
        run = self._runs.setdefault(pipeline, _Run(scene.now_s))
        run.last_s = scene.now_s
        pace = self._paces.setdefault(pipeline, Pace())
        if not pace.due(scene.now_s) and not scene.ending:
            return
        pace.told(scene.now_s)
        self._told[pipeline] = errors.copy()
        run.lines += 1
        run.records += new.total()
        place, message = self._first.pop(pipeline, (None, None))
        first = {"first": place, "message": message} if place is not None else {}
        self._log.warning("dead letters", pipeline=pipeline, **new, **first)

    def _failed(self, pipeline: str, partition: Partition, offset: int, why: Rejection) -> None:
        """Custom code failed: the first time at a line with its calls, then at each tenfold count."""
        key = (pipeline, why.exception_class_name, why.frames[-1])
        if len(self._failures) >= PLACES_KEPT and key not in self._failures:
            self._failures.clear()
        self._failures[key] += 1
        so_far = self._failures[key]
        if so_far == 1 or (so_far >= 10 and str(so_far).strip("0") == "1"):
            self._log.warning(
                "custom code failed",
                pipeline=pipeline,
                stage=why.stage,
                error=f"{why.exception_class_name.rpartition('.')[2]}: {why.message}",
                calls=[*why.frames],
                record=f"{partition.topic}/{partition.number}/{offset}",
                so_far=so_far,
            )


class _Run:
    """Letters of one pipeline without a long pause between them."""

    __slots__ = ("first_s", "last_s", "lines", "records")

    def __init__(self, now_s: float) -> None:
        self.first_s = self.last_s = now_s
        self.lines = self.records = 0
