"""What every candidate is measured for: answers on the held-out part, bytes, time per item."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.filesystem import is_file
from worker.model.fingerprint import external_locations
from worker.model.opening import one_line
from worker.model.session import Model
from worker.optimize.items import Item, Tensors
from worker.optimize.judge import Judge, Score, joined

SECONDS = 0.3
"""How long each model is timed at each batch size."""
BLOCK_S = 0.002
"""A model runs for about so long before it is another one's turn: single runs would find the caches full of other models."""
ROUNDS = 5
"""Each model has its turn at least so often."""
SIZES = (2, 4, 8, 16, 32, 64)
LONGEST_S = 0.4
"""Larger batches are not tried once the original takes so long for one."""
BATCH_BYTES = 64 << 20
ALIKE = 1.03
"""Two times within this factor are the same time: what is measured again differs by as much."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model file that may be chosen."""

    method: str
    name: str
    path: Path
    note: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds per item."""

    alone_us: float
    """Of a run with one record."""
    best_us: float
    """In the batch size that is best for this model."""
    best_size: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; None where there is no such figure."""

    method: str
    name: str
    verdict: str
    """chosen, kept (within the loss), lost (not), does not help, not made."""
    reason: str
    """What there is to say about the verdict."""
    accuracy: float | None = None
    agreement: float | None = None
    similarity: float | None = None
    loss: float | None = None
    bytes: int | None = None
    alone_us: float | None = None
    best_us: float | None = None
    best_size: int | None = None
    batchable: bool | None = None
    sha256: str | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate with its figures."""

    candidate: Candidate
    model: Model
    score: Score
    loss: float
    nbytes: int
    times: Times


def measure(
    candidates: Sequence[Candidate],
    load: Callable[[Path], Model],
    judge: Judge,
    original: Model,
    held_out: Sequence[Item],
    say: Callable[[str], None],
) -> tuple[list[Measured], dict[str, str]]:
    """The figures of every candidate; the first one is the original. And why others could not be measured, by name."""
    before = judge.original_score(held_out)
    models: dict[str, Model] = {}
    scores: dict[str, Score] = {}
    failed: dict[str, str] = {}
    for candidate in candidates:
        try:
            model = original if candidate is candidates[0] else load(candidate.path)
            if reason := other_signature(original, model):
                failed[candidate.name] = reason
                continue
            scores[candidate.name] = judge.score(model, held_out)
            models[candidate.name] = model
        except Exception as error:  # a file that cannot be loaded or run is a candidate less
            failed[candidate.name] = f"cannot be run: {one_line(str(error)) or type(error).__name__}"
    say("time per item")
    clock = time.thread_time if original.provider == "cpu" else time.perf_counter
    times = timed(models, held_out, clock)
    return [
        Measured(
            candidate,
            models[candidate.name],
            scores[candidate.name],
            judge.loss(scores[candidate.name], before),
            nbytes(candidate.path),
            times[candidate.name],
        )
        for candidate in candidates
        if candidate.name in models
    ], failed


def other_signature(original: Model, model: Model) -> str:
    """Why a model cannot stand in the original's place; empty if it can."""
    for kind in ("inputs", "outputs"):
        ours, theirs = (
            [(spec.name, spec.dtype.str) for spec in getattr(each.signature, kind)]
            for each in (original, model)
        )
        if ours != theirs:
            return f"its {kind} are not the original's"
    return ""


def nbytes(path: Path) -> int:
    """Bytes of a model file with its external data."""
    external = (path.parent / location for location in external_locations(path))
    return sum(file.stat().st_size for file in (path, *external) if is_file(file))


def timed(models: Mapping[str, Model], items: Sequence[Item], clock: Callable[[], float]) -> dict[str, Times]:
    """Time per item of each model, alone and in the batch size that suits it.

    The models take turns, so that a disturbance falls on all of them; each figure is a median over the turns.

    Args:
        models: by name; the first one decides how large batches become.
        clock: seconds. On a CPU that of the calling thread's own CPU time: a run uses this one thread, and others that
            want the processor do not count.
    """
    ordered = sorted(items, key=lambda item: item.nbytes)
    typical = ordered[len(ordered) // 2]
    alike = [item for item in items if item.shapes == typical.shapes]
    rows = next(iter(models.values())).fixed_batch or 1
    alone = _turns({name: (model, joined([typical])) for name, model in models.items()}, clock)
    best = {name: (us / rows, rows) for name, us in alone.items()}
    first = next(iter(models))
    batchable = {name: model for name, model in models.items() if model.signature.batchable}
    for size in SIZES:
        if not batchable or size * typical.nbytes > BATCH_BYTES:
            break
        batch = joined([alike[i % len(alike)] for i in range(size)])
        found = _turns({name: (model, batch) for name, model in batchable.items()}, clock)
        for name, us in found.items():
            best[name] = min(best[name], (us / size, size))
        if found.get(first, max(found.values())) > LONGEST_S * 1e6:
            break
    return {name: Times(us, *best[name]) for name, us in alone.items()}


def _turns(runs: Mapping[str, tuple[Model, Tensors]], clock: Callable[[], float]) -> dict[str, float]:
    """Microseconds of one run, for each model."""
    repeats: dict[str, int] = {}
    for name, (model, feeds) in runs.items():
        model.run(feeds)  # the first run allocates buffers
        began = clock()
        model.run(feeds)
        repeats[name] = max(1, int(BLOCK_S / max(clock() - began, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + SECONDS * len(runs)
    while time.perf_counter() < end or len(next(iter(found.values()))) < ROUNDS:
        for name, (model, feeds) in runs.items():
            began = clock()
            for _ in range(repeats[name]):
                model.run(feeds)
            found[name].append((clock() - began) / repeats[name] * 1e6)
    return {name: statistics.median(each) for name, each in found.items()}


def best_of(measured: Sequence[Measured], max_loss: float) -> Measured:
    """The fastest in its best batch that keeps the loss; of those that are as fast, the smallest.

    The original, which is the first, loses nothing, so there is always one.
    """
    kept = [each for each in measured if each.loss <= max_loss + 1e-12]
    fastest = min(kept, key=lambda each: each.times.best_us)
    as_fast = [
        each
        for each in kept
        if each.times.best_us <= fastest.times.best_us * ALIKE
        and each.times.alone_us <= fastest.times.alone_us * ALIKE
    ]
    return min(as_fast, key=lambda each: (each.nbytes, each.times.best_us))


def rows_of(measured: Sequence[Measured], chosen: Measured, max_loss: float, target: str) -> list[Row]:
    """The lines of the table for what was measured."""
    original = measured[0]
    rows = []
    for each in measured:
        verdict, reason = _verdict(each, original, chosen, max_loss, target)
        rows.append(
            Row(
                each.candidate.method,
                each.candidate.name,
                verdict,
                reason,
                each.score.accuracy,
                each.score.agreement,
                each.score.similarity,
                each.loss,
                each.nbytes,
                each.times.alone_us,
                each.times.best_us,
                each.times.best_size,
                each.model.signature.batchable,
                each.model.sha256,
                each.candidate.note,
            )
        )
    return rows


def _verdict(
    each: Measured, original: Measured, chosen: Measured, max_loss: float, target: str
) -> tuple[str, str]:
    if each is original:
        return (
            ("chosen", "nothing else keeps the loss and is faster or smaller")
            if each is chosen
            else ("original", "")
        )
    faster = original.times.best_us / each.times.best_us
    alone = original.times.alone_us / each.times.alone_us
    said = f"{faster:.2f} times as fast" + (f" ({alone:.2f} alone)" if alone >= ALIKE > faster else "")
    if each is chosen:
        return (
            "chosen",
            said if faster >= ALIKE else f"{said}, {each.nbytes / original.nbytes:.0%} of the bytes",
        )
    if each.loss > max_loss + 1e-12:
        return "lost", f"loses {each.loss:.4f}, more than {max_loss:g}; {said}"
    if faster >= ALIKE:
        return "kept", said
    why = REASONS.get((target, each.candidate.method), "")
    if original.model.signature.batchable and not each.model.signature.batchable:
        why = "each record runs alone, because its answers depend on the others of a batch"
    return "does not help", f"does not help on this target: {said}" + (f"; {why}" if why else "")


REASONS = {
    ("cpu", "fp16"): "a CPU computes in float32 all the same",
    ("cpu", "int8-static"): "changes between INT8 and float take more time than INT8 saves",
    ("cpu", "int8-mixed"): "changes between INT8 and float take more time than INT8 saves",
    ("cpu", "prune-int8"): "changes between INT8 and float take more time than INT8 saves",
    ("cpu", "int4"): "each run unpacks the weights, which pays where they do not fit the caches",
    ("cpu", "int8-weights"): "each run unpacks the weights, which pays where they do not fit the caches",
    ("cpu", "simplify"): "the runtime folds and fuses as much when it loads the model",
    ("tensorrt", "simplify"): "TensorRT folds and fuses as much when it builds its engine",
}
"""Target and method -> why it gains nothing there."""
