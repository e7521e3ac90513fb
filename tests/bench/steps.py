"""CPU microseconds per record of the engine's own steps, without Kafka: `python tests/bench/steps.py [--rounds N]`.

Decode, infer and encode of one slab after the other through a real pipeline, with the compiled batch path where it is
there and without it. The two are interleaved round by round, so their ratio holds on a busy machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from workloads import WORKLOADS, Workload

from worker import native
from worker.batch import Batch, Columns, Partition
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import Settings, validate

SLAB = 2048
STEPS = ("decode", "infer", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--workload", choices=["json", "raw"], default="json")
    args = parser.parse_args()
    paths = {"python": None, "compiled": native.records} if native.records is not None else {"python": None}
    with tempfile.TemporaryDirectory() as folder:
        work = WORKLOADS[args.workload](Path(folder))
        pipelines = {name: _pipeline(work, records) for name, records in paths.items()}
    columns = slab(work)
    rounds: dict[str, list[list[float]]] = {name: [] for name in paths}
    for _ in range(args.rounds):
        for name, records in paths.items():
            native.records = records
            rounds[name].append(times_us(pipelines[name], columns))
    print(f"{'us per record':13} " + " ".join(f"{name:>9}" for name in paths))
    for index, step in enumerate(STEPS):
        medians = [statistics.median(r[index] for r in rounds[name]) for name in paths]
        print(f"{step:13} " + " ".join(f"{us:9.3f}" for us in medians))
    print(f"{'sum':13} " + " ".join(f"{statistics.median(map(sum, rounds[name])):9.3f}" for name in paths))


def _pipeline(work: Workload, records: ModuleType | None) -> Rollout:
    """The workload's pipeline, made for one path: a decoder chooses its reader when it is made."""
    native.records = records
    return next(iter(load(settings_for(work)).values()))


def settings_for(work: Workload) -> Settings:
    document: dict[str, Any] = {
        **work.settings,
        "name": "p",
        "input": {**work.settings["input"], "topics": ["in"]},
        "output": {**work.settings["output"], "topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }
    return validate(document, Path.cwd())


def slab(work: Workload, rows: int = SLAB) -> Columns:
    """Records of one partition, as a take gives them."""
    now_ms = int(time.time() * 1000)
    values: list[bytes | None] = [*(work.values * (rows // len(work.values) + 1))[:rows]]
    nothing: list[Any] = [None] * rows
    stamps = [now_ms - 2 - row // 100 for row in range(rows)]
    offsets = list(range(1_000_000, 1_000_000 + rows))
    return Columns(values, nothing, nothing, stamps, offsets, [Partition("records.in", 3)] * rows)


def times_us(rollout: Rollout, columns: Columns) -> list[float]:
    """One slab through the engine, by step."""
    engine, rows = Engine(), len(columns)
    taken = time.monotonic_ns(), time.time() * 1000
    batch = Batch(None, range(rows), columns, rollout.route, rollout.choose(), *taken)
    clock = [time.process_time()]
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    clock.append(time.process_time())
    engine.infer(batch)
    clock.append(time.process_time())
    engine.finish(batch)
    clock.append(time.process_time())
    assert batch.outcomes is not None
    assert all(batch.outcomes.bodies)
    return [(after - before) * 1e6 / rows for before, after in pairwise(clock)]


if __name__ == "__main__":
    main()
