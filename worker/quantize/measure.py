"""Compares a model's accuracy, speed and size with those of the model it was made from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worker.batch import Array
from worker.model.session import Model
from worker.quantize.images import Pictures, Preparation

BATCH = 8
SECONDS = 0.5
"""How long each figure is measured."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with the preparation of its input."""

    kind: str
    path: Path
    model: Model
    preparation: Preparation

    @property
    def input_name(self) -> str:
        return self.model.signature.inputs[0].name

    def answer(self, pixels: Array) -> Array:
        """Pixels (n, *item) -> the first output, (n, ...)."""
        first_output = self.model.signature.outputs[0].name
        size = run_size(self.model)
        answers = []
        for start in range(0, len(pixels), size):
            rows = self.preparation.tensor(pixels[start : start + size])
            padding = [(0, (self.model.fixed_batch or len(rows)) - len(rows))] + [(0, 0)] * (rows.ndim - 1)
            outputs = self.model.run({self.input_name: np.pad(rows, padding)})
            answers.append(np.asarray(outputs[first_output], np.float64)[: len(rows)])
        return np.concatenate(answers)


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table; None if there is no such figure."""

    kind: str
    path: str
    bytes: int
    pictures: int
    accuracy: float | None
    """Share of pictures whose best class is their label."""
    agreement: float | None
    """Share of pictures whose best class is the float model's."""
    similarity: float
    """Cosine between the answers and the float model's, mean over the pictures; 1 = the same direction."""
    prepare_us: float
    """Microseconds from fitted pixels to the model's input, per picture."""
    batch_1_us: float | None
    """Microseconds per picture on one CPU thread, alone."""
    batch_8_us: float | None
    """The same in batches of 8."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(candidates: Sequence[Candidate], pictures: Pictures) -> list[Figures]:
    """The figures of each candidate; the others are compared with the first one."""
    answers = [candidate.answer(pictures.pixels) for candidate in candidates]
    return [
        _figures(candidate, pictures, answer, answers[0])
        for candidate, answer in zip(candidates, answers, strict=True)
    ]


def run_size(model: Model) -> int:
    """Pictures per run when measuring accuracy: as many as the worker may run together, up to ``BATCH``."""
    return model.fixed_batch or (BATCH if model.signature.batchable else 1)


def _figures(candidate: Candidate, pictures: Pictures, answer: Array, reference: Array) -> Figures:
    best, expected = _best_class(answer), _best_class(reference)
    accuracy = None if best is None or pictures.labels is None else float((best == pictures.labels).mean())
    return Figures(
        kind=candidate.kind,
        path=str(candidate.path),
        bytes=candidate.path.stat().st_size,
        pictures=len(pictures),
        accuracy=accuracy,
        agreement=None if best is None or expected is None else float((best == expected).mean()),
        similarity=_similarity(answer, reference),
        prepare_us=_prepare_us(candidate.preparation, pictures.pixels[0]),
        batch_1_us=_run_us(candidate, pictures.pixels, 1),
        batch_8_us=_run_us(candidate, pictures.pixels, BATCH),
    )


def _best_class(answer: Array) -> Array | None:
    """(n,) class indices if an answer is one score per class, else None."""
    items = answer.reshape(len(answer), -1)
    return items.argmax(axis=1) if max(answer.shape[1:], default=0) == items.shape[1] > 1 else None


def _similarity(answer: Array, reference: Array) -> float:
    ours, theirs = (values.reshape(len(values), -1) for values in (answer, reference))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.mean((ours * theirs).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)))


def _prepare_us(preparation: Preparation, pixels: Array) -> float:
    slot = np.empty(pixels.shape, preparation.dtype)
    return _median_us(lambda: preparation.prepare_one(pixels, slot))


def _run_us(candidate: Candidate, pixels: Array, size: int) -> float | None:
    """Microseconds per picture; None if the model does not take that many at once."""
    model = candidate.model
    if size != (model.fixed_batch or size) or (size > 1 and run_size(model) == 1):
        return None
    feeds = {candidate.input_name: candidate.preparation.tensor(np.resize(pixels, (size, *pixels.shape[1:])))}
    return _median_us(lambda: model.run(feeds)) / size


def _median_us(call: Callable[[], object]) -> float:
    call()  # the first call allocates buffers
    took_ns: list[int] = []
    end = time.perf_counter_ns() + int(SECONDS * 1e9)
    while not took_ns or time.perf_counter_ns() < end:
        started = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - started)
    return statistics.median(took_ns) / 1000
