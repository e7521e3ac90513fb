"""``LOG_LEVEL=debug``: a line for each slab and run, and none without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from worker.batch import Batch, Run
from worker.telemetry.debug_lines import SlabLines


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


def test_a_slab_and_its_runs_are_a_line_each() -> None:
    """What was taken, each run with the middle of its records' stage times, and what became of them."""
    log = Told()
    lines = SlabLines(log)
    run = Run(range(3), {}, None, False)
    run.stages_us = {"queue": np.array([1, 7, 9]), "infer": 5}
    batch = Batch.__new__(Batch)
    batch.runs, batch.outcomes = [run], SimpleNamespace(rejected={0: None})  # type: ignore[assignment]
    lines.taken("p", 3, 120)
    lines.batch("p", batch)
    lines.counted("p", ok=2)
    lines.counted("p")
    lines.rebalance()
    assert log.lines == [
        ("slab taken", {"pipeline": "p", "records": 3, "value_bytes": 120}),
        ("model run", {"pipeline": "p", "records": 3, "refused": 1, "queue_us": 7, "infer_us": 5}),
        ("slab acknowledged", {"pipeline": "p", "ok": 2, "dead_letter": 0, "dropped": 0}),
        ("rebalance", {}),
    ]
