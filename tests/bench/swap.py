"""What a change of the model's version costs those who wait for answers: latency around it against latency before it.

One worker, a model of 40 MB from a repository, half the load that it could take. A new version is renamed into place in the
middle: it is loaded, checked and warmed on a thread of its own while records are answered.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from limits import session
from onnx import TensorProto, helper, numpy_helper
from report import Report
from stage import Broker, Subject
from workloads import IR_VERSION, OPSET, Workload

from worker import settings as configuration
from worker.bench.load import Load

FEATURES, HIDDEN, CLASSES = 256, 3000, 10
BATCH = 64
SHARE = 0.5
"""Of the load that one thread could take."""
BEFORE_S, AROUND_S = 10.0, 10.0
WARM_S = 2.0
"""At the beginning of each trial; not counted."""
BOUND = 1.5
MOST_ROUNDS = 5


@dataclass(frozen=True)
class Trial:
    """One change of the version under load."""

    before_ms: float
    """p99 of the records that were due in the 10 s before the new version was there."""
    around_ms: float
    """p99 of those of the 10 s from then on."""
    lost: int


def swap(broker: Broker, folder: Path, report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Measure some changes of the version, and add the promises about them."""
    models = folder / "swap" / "wide"
    models.mkdir(parents=True)
    _written(models, 1).rename(models / "1")
    per_s = SHARE / _run_s(models / "1" / "model.onnx")
    group = f"swap at {per_s:,.0f} records/s"
    report.titles[group] = (
        f"{FEATURES} float32 -> MLP of 40 MB from a repository -> JSON, half of what one thread can"
    )
    rows = np.random.default_rng(2).random((100, FEATURES), np.float32)
    work = Workload(
        "swap",
        "",
        [row.tobytes() for row in rows],
        {
            "input": {"format": "tensor"},
            "model": {"repository": str(models.parent), "name": "wide", "poll_s": 0.2},
            "batching": {"max_size": BATCH},
            "output": {"format": "json"},
        },
        records=500,
        single_records=100,
        batch=BATCH,
    )
    running = Subject("swap", work, work.records, broker, 12).start(folder)
    running.thawed()
    log = running.processes[0].log
    trials = []
    try:
        settings = configuration.load(running.config, [])
        (pipeline,) = settings.pipelines.values()
        with Load(settings, pipeline, work.values) as load:
            load.probe()
            for version in range(2, 2 + min(rounds, MOST_ROUNDS)):
                say(f"swap: version {version}")
                trials.append(_trial(load, per_s, models, version))
                if f"wide@{version}" not in log.read_text(errors="replace"):
                    raise RuntimeError(f"version {version} was not taken over: {log.read_text()[-300:]}")
    finally:
        running.stop()
    ratios = [trial.around_ms / trial.before_ms for trial in trials]
    told = ", ".join(f"{trial.before_ms:.2f} -> {trial.around_ms:.2f}" for trial in trials)
    report.notes.append(f"{group}: p99 before -> around in ms: {told}")
    report.at_most(group, "p99 around a swap / before", statistics.median(ratios), BOUND)
    report.at_most(group, "records lost", float(sum(trial.lost for trial in trials)), 0.0)


def _trial(load: Load, per_s: float, models: Path, version: int) -> Trial:
    placed_ns: list[int] = []
    part = _written(models, version)

    def place() -> None:
        part.rename(models / str(version))
        placed_ns.append(time.monotonic_ns())

    placing = threading.Timer(WARM_S + BEFORE_S, place)
    placing.start()
    sent, answers = load.run(per_s, int(per_s * (WARM_S + BEFORE_S + AROUND_S + 1)))
    placing.join()
    arrived = dict(zip(answers.places.tolist(), answers.read_ns.tolist(), strict=True))
    known = [place in arrived for place in sent.places.tolist()]
    due = sent.due_ns[known]
    took_ms = np.array([arrived[place] for place in sent.places[known].tolist()]) - due
    (moment,) = placed_ns

    def p99(start_s: float, stop_s: float) -> float:
        inside = (due >= moment + start_s * 1e9) & (due < moment + stop_s * 1e9)
        return float(np.quantile(took_ms[inside], 0.99)) / 1e6

    return Trial(p99(-BEFORE_S, 0), p99(0, AROUND_S), known.count(False))


def _run_s(path: Path) -> float:
    """Seconds of the model for one record in a batch."""
    run = session(str(path)).run
    batch = np.zeros((BATCH, FEATURES), np.float32)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        run(None, {"x": batch})
        times.append(time.perf_counter() - began)
    return statistics.median(times) / BATCH


def _written(models: Path, version: int) -> Path:
    """A version under another name than its own."""
    random = np.random.default_rng(version)
    sizes = (FEATURES, HIDDEN, HIDDEN, CLASSES)
    weights = [
        numpy_helper.from_array(random.normal(size=pair, scale=0.02).astype(np.float32), f"w{place}")
        for place, pair in enumerate(pairwise(sizes))
    ]
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("MatMul", [names[place], f"w{place}"], [names[place + 1]]) for place in range(3)
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    part = models / f".{version}.part"
    part.mkdir()
    (part / "model.onnx").write_bytes(data)
    (part / "model.sha256").write_text(hashlib.sha256(data).hexdigest())
    return part
