"""What ``streaminfer score`` prints at its end: one line for each version, its classes, its newest windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from worker.cli.text import moment
from worker.scoring.tally import Tally, figures
from worker.telemetry.quality import View
from worker.text import printable

WINDOWS = 12
"""Newest windows that are shown."""
CLASSES = 30
"""Classes that are shown: those with most items."""
DASH = "-"


def table(view: View) -> list[str]:
    """The view as lines of text."""
    if not view.totals:
        return ["no result has a label yet", *_rest(view)]
    found = [
        "",
        *_aligned([HEAD, *(_row(*version, tally) for version, tally in sorted(view.totals.items()))]),
    ]
    for (pipeline, version), tally in sorted(view.totals.items()):
        classes = figures(tally)
        by_class = {**classes.get("classes", {}), **classes.get("box_classes", {})}
        if by_class:
            found += ["", f"{printable(pipeline)} {printable(version)}", *_classes(by_class)]
    if windows := [*view.windows.items()][-WINDOWS:]:
        rows = [
            (moment(group.start_ms, _clock), *_row(group.pipeline, group.version, tally))
            for group, tally in windows
        ]
        found += ["", *_aligned([("WINDOW", *HEAD), *rows])]
    return [*found, *_rest(view)]


HEAD = ("PIPELINE", "VERSION", "RESULTS", "LABELLED", "FIGURE", "95 %", "DELAY P50", "P99")


def _row(pipeline: str, version: str, tally: Tally) -> tuple[str, ...]:
    found = figures(tally)
    coverage = found["coverage"]
    share = DASH if coverage is None else f"{100 * coverage:.1f} %"
    delay = found.get("delay_s", {})
    return (
        printable(pipeline),
        printable(version),
        str(tally.results),
        share,
        *_headline(found),
        *(_seconds(delay.get(name)) for name in ("p50", "p99")),
    )


def _headline(found: dict[str, Any]) -> tuple[str, str]:
    """The figure that says most, and its interval."""
    if "accuracy" in found:
        lower, upper = found["accuracy_95"]
        return f"accuracy {100 * found['accuracy']:.3f} %", f"{100 * lower:.2f}..{100 * upper:.2f}"
    if "mae" in found:
        lower, upper = found["mae_95"]
        return f"MAE {found['mae']:.5g}, RMSE {found['rmse']:.5g}", f"{lower:.5g}..{upper:.5g}"
    if found.get("map_50") is not None:
        iou = found["mean_iou"]
        return f"mAP {found['map_50_95']:.4f}, at 0.5 {found['map_50']:.4f}" + (
            f", IoU {iou:.3f}" if iou is not None else ""
        ), DASH
    return DASH, DASH


def _classes(by_class: dict[str, dict[str, Any]]) -> list[str]:
    most = sorted(by_class.items(), key=lambda item: -item[1]["support"])[:CLASSES]
    rows = [
        (printable(name), *(f"{its[key]:.4f}" for key in ("precision", "recall", "f1")), str(its["support"]))
        for name, its in sorted(most)
    ]
    more = [f"and {len(by_class) - len(most)} more classes"] if len(by_class) > len(most) else []
    return [
        *_aligned(
            [("  CLASS", "PRECISION", "RECALL", "F1", "ITEMS"), *(("  " + r[0], *r[1:]) for r in rows)]
        ),
        *more,
    ]


def _rest(view: View) -> Iterator[str]:
    results, labels = view.waiting
    yield ""
    yield f"waiting: {_counted(results, 'result')}, {_counted(labels, 'label')}"
    if counts := {name: count for name, count in sorted(view.counts.items()) if count}:
        yield "no pair: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"


def _seconds(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds:.3g} s"


def _clock(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S")
