"""Live accuracy over HTTP: what ``streaminfer score`` has counted, for Prometheus and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.scoring.joiner import Group
from worker.scoring.records import Totals, described
from worker.scoring.tally import Tally, figures
from worker.telemetry import quality_names as names
from worker.telemetry.names import PREFIX, Metric
from worker.telemetry.prometheus import CONTENT_TYPE
from worker.telemetry.routes import Answer, Route

MOST_CLASSES = 200
"""Classes of one version that have series of their own: those with most items."""
MOST_CELLS = 400
Sample = tuple[Metric, tuple[str, ...], float]


@dataclass(frozen=True)
class View:
    """What is known at one moment; never changed afterwards."""

    totals: Totals = field(default_factory=dict)
    windows: Mapping[Group, Tally] = field(default_factory=dict)
    """Oldest first."""
    counts: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[int, int] = (0, 0)
    """(results, labels)"""
    over_ms: int = 0
    """Windows that begin before this are over, Unix milliseconds."""


def lines(view: View, window_ms: int) -> Iterator[dict[str, Any]]:
    """The view as JSON objects: windows, versions, and what makes no pair."""
    for group, tally in view.windows.items():
        pipeline, version, start_ms = group
        yield {
            "type": "window",
            "pipeline": pipeline,
            "version": version,
            "start_ms": start_ms,
            "end_ms": start_ms + window_ms,
            **described(tally),
        }
    for (pipeline, version), tally in sorted(view.totals.items()):
        yield {"type": "total", "pipeline": pipeline, "version": version, **described(tally)}
    results, labels = view.waiting
    yield {"type": "summary", "waiting": {"results": results, "labels": labels}, "counts": dict(view.counts)}


def routes(
    look: Callable[[], View], ready: Callable[[], bool], alive: Callable[[], bool], window_ms: int
) -> dict[str, Route]:
    """What each path answers.

    Args:
        look: the newest view; called on request threads, as the others are.
        ready: whether the group was joined.
        alive: whether the process still turns.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(look))
    ProcessCollector(registry=registry)

    def metrics() -> Answer:
        return Answer(HTTPStatus.OK, CONTENT_TYPE, generate_latest(registry))

    def quality() -> Answer:
        return Answer(HTTPStatus.OK, "application/json", orjson.dumps([*lines(look(), window_ms)]))

    return {
        "/metrics": metrics,
        "/quality": quality,
        "/livez": lambda: _health("live", alive()),
        "/readyz": lambda: _health("ready", ready()),
    }


def _health(name: str, good: bool) -> Answer:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, "application/json", orjson.dumps({name: good}))


class _Collector(Collector):
    def __init__(self, look: Callable[[], View]) -> None:
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families = {
            metric: GaugeMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
            for metric in names.QUALITY
        }
        for metric, labels, value in _samples(self._look()):
            families[metric].add_metric(labels, value)
        return families.values()


def _samples(view: View) -> Iterator[Sample]:
    for version, tally in view.totals.items():
        yield from _of_version(version, tally)
    for kind, waiting in zip(("results", "labels"), view.waiting, strict=True):
        yield names.QUALITY_WAITING, (kind,), waiting
    for what, count in view.counts.items():
        yield names.QUALITY_LEFT_OUT, (what,), count
    newest = {
        (group.pipeline, group.version): tally
        for group, tally in view.windows.items()
        if group.start_ms < view.over_ms and tally.items
    }
    for version, tally in newest.items():
        yield names.QUALITY_WINDOW_ACCURACY, version, tally.correct / tally.items


def _of_version(version: tuple[str, str], tally: Tally) -> Iterator[Sample]:
    found = figures(tally)
    for outcome in ("labelled", "unlabelled", "given_up"):
        yield names.QUALITY_RESULTS, (*version, outcome), getattr(tally, outcome)
    single = {
        names.QUALITY_COVERAGE: "coverage",
        names.QUALITY_ACCURACY: "accuracy",
        names.QUALITY_MAE: "mae",
        names.QUALITY_RMSE: "rmse",
        names.QUALITY_BIAS: "bias",
        names.QUALITY_MAP: "map_50",
        names.QUALITY_MAP_ALL: "map_50_95",
        names.QUALITY_IOU: "mean_iou",
    }
    for metric, key in single.items():
        if found.get(key) is not None:
            yield metric, version, found[key]
    for bound, value in zip(("lower", "upper"), found.get("accuracy_95", ()), strict=False):
        yield names.QUALITY_ACCURACY_BOUND, (*version, bound), value
    for quantile, key in (("0.5", "p50"), ("0.99", "p99")):
        if "delay_s" in found:
            yield names.QUALITY_DELAY, (*version, quantile), found["delay_s"][key]
    classes = {**found.get("classes", {}), **found.get("box_classes", {})}
    most = sorted(classes.items(), key=lambda item: -item[1]["support"])[:MOST_CLASSES]
    for label, its in most:
        yield names.QUALITY_PRECISION, (*version, label), its["precision"]
        yield names.QUALITY_RECALL, (*version, label), its["recall"]
        yield names.QUALITY_F1, (*version, label), its["f1"]
        yield names.QUALITY_SUPPORT, (*version, label), its["support"]
    largest = sorted(tally.cells.items(), key=lambda item: -item[1])[:MOST_CELLS]
    for (true, predicted), items in largest:
        yield names.QUALITY_CONFUSION, (*version, true, predicted), items
