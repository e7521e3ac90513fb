"""The quality record: what was counted of one partition, for the metrics topic and for the next owner of the partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from worker.scoring.joiner import Group, Joiner
from worker.scoring.tally import Tally, figures

TYPE = "streaminfer.quality"
LARGEST_BYTES = 900_000
"""A record that would be larger leaves out the confusion of classes; Kafka's default limit is a little more."""
_SHORT = ("results", "labelled", "unlabelled", "given_up", "unscored", "items", "correct")

Totals = dict[tuple[str, str], Tally]
"""(pipeline, version) -> tally."""


@dataclass(frozen=True)
class Before:
    """What was counted of a partition before."""

    settled: Totals = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def described(tally: Tally) -> dict[str, Any]:
    """A tally and what it says, as plain data."""
    return {**tally.plain(), **figures(tally)}


def record(
    head: Mapping[str, Any],
    joiner: Joiner,
    taken: Mapping[Group, Tally],
    counts: Counter[str],
    counts_total: Counter[str],
    window_ms: int,
) -> bytes:
    """The record as JSON.

    Args:
        head: the fields that are the same for every partition.
        taken, counts: what has been counted since the last record.
        counts_total: the same since the first record.
    """
    live = joiner.totals()
    pipelines: dict[str, dict[str, Any]] = {}
    for pipeline, version in sorted(live.keys() | joiner.settled.keys()):
        tally = joiner.settled.get((pipeline, version), Tally())
        windows = [
            {"start_ms": group.start_ms, "end_ms": group.start_ms + window_ms, **described(each)}
            for group, each in sorted(taken.items())
            if group[:2] == (pipeline, version)
        ]
        known = live.get((pipeline, version), tally)
        pipelines.setdefault(pipeline, {})[version] = {
            "windows": windows,
            "total": described(tally),
            "live": {**{name: getattr(known, name) for name in _SHORT}, **_headline(known)},
        }
    document = {
        **head,
        "waiting": {
            "results": sum(len(line.waiting) for line in joiner.lines),
            "labels": len(joiner.labels.waiting),
        },
        "counts": dict(sorted(counts.items())),
        "counts_total": dict(sorted(counts_total.items())),
        "pipelines": pipelines,
    }
    value = orjson.dumps(document)
    return value if len(value) <= LARGEST_BYTES else orjson.dumps(_lean(document))


def before(value: bytes, partition: int) -> Before | None:
    """What a quality record says was counted; None if it is none of this partition."""
    try:
        document = orjson.loads(value)
        if document["type"] != TYPE or document["partition"] != partition:
            return None
        settled = {
            (pipeline, version): Tally.of(each["total"])
            for pipeline, versions in document["pipelines"].items()
            for version, each in versions.items()
        }
        return Before(settled, Counter({name: int(n) for name, n in document["counts_total"].items()}))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _headline(tally: Tally) -> dict[str, Any]:
    found = figures(tally)
    names = (
        "coverage",
        "accuracy",
        "accuracy_95",
        "macro_f1",
        "mae",
        "rmse",
        "map_50",
        "mean_iou",
        "delay_s",
    )
    return {name: found[name] for name in names if name in found}


def _lean(document: dict[str, Any]) -> dict[str, Any]:
    """Without what grows with the number of classes."""
    for versions in document["pipelines"].values():
        for each in versions.values():
            for part in (*each["windows"], each["total"]):
                part["confusion"] = [["(other)", "(other)", part.get("items", 0)]]
                part.pop("classes", None)
                part.pop("box_classes", None)
                for its in part.get("boxes", {}).values():
                    its["scores"] = _coarse(its["scores"])
    return document


def _coarse(scores: list[list[int]]) -> list[list[int]]:
    """Scores in steps of a twentieth."""
    merged: dict[int, list[int]] = {}
    for score, *counts in scores:
        kept = merged.setdefault(round(score / 50) * 50, [])
        kept += [0] * (len(counts) - len(kept))
        for at, count in enumerate(counts):
            kept[at] += count
    return [[score, *counts] for score, counts in sorted(merged.items())]
