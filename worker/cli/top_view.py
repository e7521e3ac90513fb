"""The state of a group as lines of text: what ``streaminfer top`` shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from worker.text import printable

_BOLD, _DIM, _RED, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
PARTITIONS = 10
"""Partitions shown: those with the most lag."""
_DASH = "-"


def lines(state: dict[str, Any], width: int, colour: bool) -> list[str]:
    """The state as lines of at most ``width`` characters.

    Args:
        state: as :meth:`worker.telemetry.group.GroupView.state` gives it, with ``group``, ``topic`` and ``time_ms``.
        colour: with ANSI colours, which do not count as characters.
    """
    paint = _Paint(width, colour)
    totals = state["totals"]
    clock = time.strftime("%H:%M:%S", time.localtime(state["time_ms"] / 1000))
    replicas = f"{totals['replicas']} replica{'' if totals['replicas'] == 1 else 's'}"
    shown = [
        paint(
            f"{printable(state['group'])}  {replicas}  answered {rate(totals['out'])}/s  dead letters "
            f"{rate(totals['dead_letter'])}/s  lag {number(totals['lag'])}  {clock}",
            _BOLD,
        ),
        "",
    ]
    if not state["replicas"]:
        return [
            *shown,
            paint(
                f"no replica wrote to {state['topic']} in the last minute; they write every {state['interval_s']:g} s"
            ),
        ]
    shown += _replicas(state["replicas"], paint)
    shown += ["", *_pipelines(state["replicas"], paint)]
    if state["partitions"]:
        shown += ["", *_partitions(state["partitions"], paint)]
    return shown


def _replicas(rows: Sequence[dict[str, Any]], paint: _Paint) -> list[str]:
    heads = ("REPLICA", "OUT/s", "P50", "P99", "DEAD/s", "LAG", "PARTS", "MEMORY", "CORES", "AGE")
    table = [
        (
            printable(row["id"]),
            rate(row["rates"]["out"]),
            millis(row["p50_ms"]),
            millis(row["p99_ms"]),
            rate(row["rates"]["dead_letter"]),
            number(row["lag"]),
            number(row["partitions"]),
            f"{row['rss_bytes'] / 2**20:.0f}M",
            f"{row['cpu']:.2f}",
            f"silent {duration(row['age_s'])}" if row["silent"] else duration(row["age_s"]),
        )
        for row in rows
    ]
    colours = [_DIM if row["silent"] else _RED if row["rates"]["dead_letter"] else "" for row in rows]
    return _table(heads, table, colours, paint)


def _pipelines(rows: Sequence[dict[str, Any]], paint: _Paint) -> list[str]:
    """Each pipeline over the replicas that are awake, with why records failed in their last interval."""
    awake = [row for row in rows if not row["silent"]]
    names = dict.fromkeys(name for row in awake for name in row["pipelines"])
    table, colours = [], []
    for name in names:
        parts = [(row, row["pipelines"][name]) for row in awake if name in row["pipelines"]]
        models = sorted({f"{each['model']['name']}@{each['model']['version']}" for _, each in parts})
        totals = [each["latency_ms"]["total"] for _, each in parts if each["latency_ms"]["total"]["count"]]
        errors: Counter[str] = Counter()
        for _, each in parts:
            errors.update(each["errors"])
        why = ", ".join(f"{count} {reason}" for reason, count in errors.most_common(3) if count)
        items, batches = sum(each["items"] for _, each in parts), sum(each["batches"] for _, each in parts)
        table.append(
            (
                printable(name),
                printable(", ".join(models)),
                rate(
                    sum(
                        each["records"]["out"] / row["interval_s"] for row, each in parts if row["interval_s"]
                    )
                ),
                millis(max((each["p50"] for each in totals), default=None)),
                millis(max((each["p99"] for each in totals), default=None)),
                f"{items / batches:.1f}" if batches else _DASH,
                why or _DASH,
            )
        )
        colours.append(_RED if why else "")
    return _table(("PIPELINE", "MODEL", "OUT/s", "P50", "P99", "BATCH", "FAILED"), table, colours, paint)


def _partitions(partitions: dict[str, dict[str, Any]], paint: _Paint) -> list[str]:
    most = sorted(partitions.items(), key=lambda each: -(each[1]["lag"] or 0))
    table = [
        (
            name,
            number(state["lag"]),
            "not moving" if state["moving"] is False else duration(state["seconds_to_drain"]),
            number(state["committed"]),
            number(state["end"]),
            printable(state["worker"]),
        )
        for name, state in most[:PARTITIONS]
    ]
    colours = [_YELLOW if row[2] == "not moving" else "" for row in table]
    shown = _table(("PARTITION", "LAG", "DRAIN", "COMMITTED", "END", "REPLICA"), table, colours, paint)
    if len(most) > PARTITIONS:
        shown.append(paint(f"and {len(most) - PARTITIONS} more with less lag", _DIM))
    return shown


_LEFT = frozenset({"REPLICA", "PIPELINE", "MODEL", "FAILED", "PARTITION"})


def _table(
    heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], colours: Sequence[str], paint: _Paint
) -> list[str]:
    wide = [max(len(each) for each in column) for column in zip(heads, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        fitted = zip(heads, cells, wide, strict=True)
        return "  ".join(
            f"{cell:<{n}}" if head in _LEFT else f"{cell:>{n}}" for head, cell, n in fitted
        ).rstrip()

    return [
        paint(line(heads), _DIM),
        *(paint(line(row), each) for row, each in zip(rows, colours, strict=True)),
    ]


class _Paint:
    """Cuts a line to the width, then colours it."""

    def __init__(self, width: int, colour: bool) -> None:
        self._width = width
        self._colour = colour

    def __call__(self, text: str, code: str = "") -> str:
        cut = text if len(text) <= self._width else text[: max(0, self._width - 1)] + "…"
        return f"{code}{cut}{_PLAIN}" if code and self._colour else cut


def number(value: int | None) -> str:
    return _DASH if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    if value is None:
        return _DASH
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def millis(value: float | None) -> str:
    if value is None:
        return _DASH
    if value >= 1000:
        return f"{value / 1000:.1f}s"
    return f"{value:.0f}ms" if value >= 100 else f"{value:.1f}ms" if value >= 1 else f"{1000 * value:.0f}us"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}min" if seconds < 6000 else f"{seconds / 3600:.1f}h"
