"""What the log says of a model, decoder or postprocess that has become much slower than it was in this process.

A model run takes longer the more items it has, so durations are compared by size of the run: sizes between two powers of
two together. A size that was not seen yet may take as long as the nearest smaller runs one after the other, or as the
nearest larger run. The worst that this rule hides is a slowdown by less than the factor by which runs grew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2

from worker.telemetry.histogram import Histogram
from worker.telemetry.meters import PipelineCounts
from worker.telemetry.story import Log, Pace, Scene

WINDOW_S = 5.0
"""Durations are looked at for so long together."""
TIMES_SLOWER = 5.0
"""What counts as slow: so many times as long as before."""
AT_SPEED = 2.0
"""What counts as at speed again."""
LEAST_US = 20_000
"""A slowdown by less than this, in microseconds, is no news."""
FEW_BATCHES, FEW_US = 3, 1_000_000
"""Fewer batches than this say something only if they are slower by so many microseconds."""
EVENTS = {
    "infer": ("model slow", "model at speed again"),
    "decode": ("decode slow", "decode at speed again"),
    "encode": ("postprocess slow", "postprocess at speed again"),
}
"""By stage of a record what is said when it becomes slow, and when that is over. The postprocess is a part of `encode`."""


@dataclass(slots=True)
class _Stage:
    """One stage of one pipeline."""

    seen: Histogram
    """Durations up to the last window, in microseconds."""
    usual_us: dict[int, float] = field(default_factory=dict)
    """By size of the runs, as a power of two, the usual duration."""
    slow_s: float | None = None
    """Since when it is slow."""
    pace: Pace = field(default_factory=lambda: Pace(60.0, 600.0))

    def expected_us(self, size: int) -> float | None:
        """How long runs of this size should take at most; None while nothing is known."""
        if size in self.usual_us:
            return self.usual_us[size]
        return min((us * 2.0 ** max(0, size - known) for known, us in self.usual_us.items()), default=None)

    def learn(self, size: int, us: float) -> None:
        usual = self.usual_us.get(size, us)
        self.usual_us[size] = 0.9 * usual + 0.1 * us


@dataclass(slots=True)
class _Pipeline:
    version: str
    batches: int
    items: int
    stages: dict[str, _Stage]


class Slowness:
    """See the module. Figures are those of the metrics, weighted by record."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._pipelines: dict[str, _Pipeline] = {}
        self._due_s = float("-inf")

    def look(self, scene: Scene) -> None:
        if scene.now_s < self._due_s:
            return
        self._due_s = scene.now_s + WINDOW_S
        for name, counts in scene.pipelines.items():
            version = counts.model.version if counts.model is not None else ""
            known = self._pipelines.get(name)
            if known is None or known.version != version:  # another model takes another time
                stages = {stage: _Stage(counts.stages_us[stage].copy()) for stage in EVENTS}
                self._pipelines[name] = _Pipeline(version, counts.batches, counts.items, stages)
            elif counts.batches > known.batches:
                self._look_at(name, known, counts, scene.now_s)

    def _look_at(self, name: str, known: _Pipeline, counts: PipelineCounts, now_s: float) -> None:
        batches = counts.batches - known.batches
        size = round(log2(max(1.0, (counts.items - known.items) / batches)))
        known.batches, known.items = counts.batches, counts.items
        for stage, its in known.stages.items():
            live = counts.stages_us[stage]
            window = live.since(its.seen)
            if not window.count:
                continue
            its.seen = live.copy()
            self._judge(name, stage, its, batches, size, window.percentiles(0.5)[0], now_s)

    def _judge(
        self, name: str, stage: str, its: _Stage, batches: int, size: int, p50_us: int, now_s: float
    ) -> None:
        slow, again = EVENTS[stage]
        usual_us = its.expected_us(size)
        figures = {"p50_ms": _ms(p50_us), "was_ms": _ms(usual_us or 0.0)}
        if usual_us is None:
            its.learn(size, p50_us)
        elif its.slow_s is not None:
            if p50_us <= AT_SPEED * usual_us or p50_us - usual_us < LEAST_US / 2:
                after_s = round(now_s - its.slow_s)
                its.slow_s = None
                self._log.info(again, pipeline=name, after_s=after_s, **figures)
            elif its.pace.due(now_s):
                its.pace.told(now_s)
                self._log.warning(slow, pipeline=name, **figures, for_s=round(now_s - its.slow_s))
        elif p50_us >= TIMES_SLOWER * usual_us and p50_us - usual_us >= (
            LEAST_US if batches >= FEW_BATCHES else FEW_US
        ):
            its.slow_s = now_s
            its.pace.told(now_s)
            self._log.warning(slow, pipeline=name, **figures)
        else:
            its.learn(size, p50_us)


def _ms(us: float) -> float:
    return round(us / 1000, 1 if us >= 10_000 else 3)
