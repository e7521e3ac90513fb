"""What a campaign of chaos found, as tables for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from accounts import Counted, total


@dataclass
class Outcome:
    """What a campaign found. ``broken`` names every promise that was not kept."""

    delivery: str
    seed: int
    minutes: float
    records: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    early_commits: int = 0
    commits_looked_at: int = 0
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    """Fault -> seconds from its end until every input partition had the answer to a record sent after it."""
    drain_s: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    counted: list[Counted] = field(default_factory=list)
    """The last words of every replica that ended in order."""
    broken: list[str] = field(default_factory=list)
    logs: str = ""

    def recovered(self, share: float) -> float:
        """This quantile of the recovery times, in seconds."""
        every = [seconds for times in self.recovery_s.values() for seconds in times]
        return float(np.quantile(every, share)) if every else 0.0


def document(outcomes: list[Outcome]) -> str:
    """Everything that was counted, as JSON."""
    # not by dataclasses.asdict: it makes a Counter anew of its items, which counts the items
    return json.dumps([vars(outcome) for outcome in outcomes], indent=2, default=vars) + "\n"


def table(outcomes: list[Outcome]) -> str:
    """Two Markdown tables: the promises, and the faults that were survived."""
    heads = ["", *(outcome.delivery for outcome in outcomes)]
    rows = [
        ("faults", [sum(o.faults.values()) for o in outcomes]),
        ("input records", [f"{o.records:,}" for o in outcomes]),
        ("lost", [o.lost for o in outcomes]),
        ("doubled", [o.doubled for o in outcomes]),
        ("reordered", [o.reordered for o in outcomes]),
        ("commits ahead of outputs", [f"{o.early_commits} of {o.commits_looked_at}" for o in outcomes]),
        ("recovery p50 / p99", [f"{o.recovered(0.5):.1f} s / {o.recovered(0.99):.1f} s" for o in outcomes]),
        ("replicas that ended in order", [len(o.counted) for o in outcomes]),
        (
            "their counters: taken = ok + dead letters + dropped",
            [total(o.counted).equation for o in outcomes],
        ),
        ("replicas that ended by themselves", [ended(o) for o in outcomes]),
    ]
    kinds = sorted({kind for outcome in outcomes for kind in outcome.faults})
    rows += [(f"survived: {kind}", [survived(o, kind) for o in outcomes]) for kind in kinds]
    lines = [heads, ["---"] * len(heads), *([name, *map(str, cells)] for name, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def survived(outcome: Outcome, kind: str) -> str:
    """How often, and the longest recovery of those that came alone."""
    longest = max(outcome.recovery_s.get(kind, []), default=None)
    return f"{outcome.faults[kind]}" + (f" (at most {longest:.1f} s)" if longest is not None else "")


def ended(outcome: Outcome) -> str:
    return ", ".join(f"{count} x {end}" for end, count in outcome.ends.items()) or "none"
