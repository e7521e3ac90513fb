"""What made-up items show about a model before the first record: does it run, does it repeat itself, may items share a run.

A batch is worth something only if the answer for an item does not depend on the items beside it, and no declaration in a
model file says so. Running shows it: several items of different scales, alone and together. Items of one range would
hide a figure that the model takes over the whole batch. Answers that are alike for all items show nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from worker.model.backend import Tensors
from worker.model.compare import ABSOLUTE_TOLERANCE, difference, same
from worker.model.made_up import FIRST, joined, likely_sizes, made_up, pinned, second_items
from worker.model.signature import TensorSpec

Run = Callable[[Tensors], Tensors]

BUDGET_S = 2.0
"""After this time no further made-up batch is started, beyond two items in both orders. A large model starts sooner."""
BATCH_BYTES = 64 << 20
"""Made-up batches never take more than this."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the made-up items showed."""

    item: Tensors | None
    """The first one that the model took, with its batch dimension; None if it refused them all."""
    outputs: Tensors | None = None
    """What the model answered to it."""
    repeatable: bool = False
    """The same item gave the same answer twice."""
    refusal: str = ""
    """Why the first made-up item was refused, if all were."""
    reason: str = ""
    """Why items may not share a run; empty if they may."""
    answers: tuple[Tensors, ...] = ()
    """To each item that the model took, alone; the first one is ``outputs``."""
    largest_difference: float = 0.0
    """The largest difference of two floats between an item's answer alone and in a batch, absolute."""

    @property
    def answer_share(self) -> float:
        """Bytes of the answer for each byte of the item; 0 if no item was taken."""
        taken, given = (sum(a.nbytes for a in (t or {}).values()) for t in (self.item, self.outputs))
        return given / taken if taken else 0.0

    @property
    def batchable(self) -> bool:
        """Items may share a run."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class _Sample:
    """A made-up item and the model's answer to it alone."""

    item: Tensors
    answer: Tensors
    scale: float
    """Of its floats. What is computed from larger numbers is rounded in larger steps."""


def probe(
    run: Run,
    inputs: Sequence[TensorSpec],
    *,
    tolerance: float = 0.0,
    max_size: int = 2,
    sizes: Sequence[int] = (),
    shapes: Sequence[Mapping[str, Sequence[int]]] = (),
    mixes: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Probe:
    """Run made-up items until the model takes one, then find out whether items may share a run.

    Args:
        run: one run of the model.
        inputs: what it takes.
        tolerance: what floats may differ by besides, as a share of the output's largest value.
        max_size: items in the largest batch that is tried.
        sizes: known lengths of an item's free dimension, tried before likely ones.
        shapes: what one item's tensors look like, by input; these are made up, and no others, if there are any.
        mixes: a clause on what in the model is known to mix the items of a batch.
        clock: seconds.
    """
    refusal = ""
    for known, size in _candidates(inputs, sizes, shapes):
        for recipe in FIRST if any(spec.dtype.kind != "f" for spec in inputs) else FIRST[:1]:
            item = made_up(known, size, recipe)
            try:
                answer, again = run(item), run(item)
            except Exception as error:
                refusal = refusal or str(error)
                continue
            if not same(answer, again, tolerance):
                return Probe(item, answer, reason=mixes or "it answers one item differently each time")
            trial = _Trial(run, tolerance, max_size, clock, _Sample(item, answer, 1.0))
            reason = mixes or _fixed_first(inputs) or _not_one_row(answer) or _two_batches(run, inputs, item)
            reason = trial.alone(known, size, reason) if reason else trial.together(known, size)
            return Probe(item, answer, True, "", reason, trial.answers, trial.largest)
    return Probe(None, refusal=refusal, reason="it refuses the made-up items")


def _candidates(
    inputs: Sequence[TensorSpec], sizes: Sequence[int], shapes: Sequence[Mapping[str, Sequence[int]]]
) -> Iterator[tuple[Sequence[TensorSpec], int]]:
    """The inputs with the lengths to try, and the length of a dimension that stays free."""
    for known in [pinned(inputs, each) for each in shapes] or [tuple(inputs)]:
        for size in likely_sizes(known, sizes):
            yield known, size


def beside_variants(run: Run, item: Tensors, tolerance: float = 0.0) -> str:
    """Why a real item may not share a run with variants of itself at other scales; empty if it may.

    Args:
        run: one run of the model.
        item: with its batch dimension of 1.
        tolerance: as for :func:`probe`.
    """
    first = _Sample(item, run(item), 1.0)
    trial = _Trial(run, tolerance, 2, time.perf_counter, first)
    return trial.beside(_scaled(item, factor) for factor in (0.01, 100.0, -1.0, 0.0))


def _scaled(item: Tensors, factor: float) -> Tensors:
    """The item with its floats times ``factor``; its integers and strings stay, except that zeros take their place for 0."""
    return {
        name: np.asarray(array * factor, array.dtype)
        if array.dtype.kind == "f"
        else np.zeros_like(array)
        if factor == 0 and array.dtype != object
        else array
        for name, array in item.items()
    }


def _fixed_first(inputs: Sequence[TensorSpec]) -> str:
    """Why an input's first dimension cannot count the items of any batch; empty if every one can."""
    for spec in inputs:
        if spec.whole is not None:
            return f"the first dimension of input {spec.name} counts no items"
        if not spec.shape:
            return f"input {spec.name} is a single value"
        if spec.shape[0] is not None:
            return f"input {spec.name} is fixed to {spec.shape[0]} in its first dimension"
    return ""


def _not_one_row(answer: Tensors) -> str:
    """Why the answer to one item is not a batch of one; empty if it is. A declared shape is not asked: it may be wrong."""
    for name, array in answer.items():
        if not array.ndim or len(array) != 1:
            return f"output {name} has shape {list(array.shape)} for one item"
    return ""


def _two_batches(run: Run, inputs: Sequence[TensorSpec], item: Tensors) -> str:
    """Why the inputs' first dimensions are not one batch; empty if they may be.

    The file calls them differently, as some converters do for one batch too. So the model is run with more rows in
    one input than in the others: if it takes that, and not all outputs have as many rows, there are two counts.
    """
    called = {spec.name: spec.names[0] for spec in inputs if spec.names and spec.names[0]}
    if len(set(called.values())) < 2:
        return ""
    for more in dict.fromkeys(called.values()):
        uneven = {
            name: np.repeat(array, 2, axis=0) if called.get(name) == more else array
            for name, array in item.items()
        }
        try:
            answer = run(uneven)
        except Exception:
            continue
        if any(not array.ndim or len(array) != 2 for array in answer.values()):
            names = ", ".join(f"{name} by {dimension}" for name, dimension in called.items())
            return f"its inputs are counted differently: {names}"
    return ""


class _Trial:
    """Items of different scales, alone and together."""

    def __init__(
        self, run: Run, tolerance: float, max_size: int, clock: Callable[[], float], first: _Sample
    ) -> None:
        self._run = run
        self._tolerance = tolerance
        self._max_size = max_size
        self._clock = clock
        self._ends = clock() + BUDGET_S
        self._run_s = 0.0
        """What a run of one item took last."""
        self._samples = [first]
        self.largest = 0.0
        """The largest difference seen."""

    @property
    def answers(self) -> tuple[Tensors, ...]:
        return tuple(sample.answer for sample in self._samples)

    def alone(self, inputs: Sequence[TensorSpec], size: int, reason: str) -> str:
        """One more item alone, for what answers show besides; the reason, which is known already."""
        self._samples += islice(self._others(inputs, size), 1)
        return reason

    def together(self, inputs: Sequence[TensorSpec], size: int) -> str:
        """Why items may not share a run, empty if they may."""
        samples = self._samples
        first = samples[0]
        for sample in self._others(inputs, size):
            samples.append(sample)
            # In both orders, because one may hide it: to sort zeros before ones leaves them where they were.
            for pair in ([samples[-2], sample], [sample, samples[-2]]):
                if reason := self._together(pair):
                    return reason
        if len(samples) == 1:
            return "it took no two different made-up items"
        most = self._affordable(first)
        for count in dict.fromkeys((3, most)):
            if 2 < count <= most and (reason := self._together([*islice(cycle(samples), count)])):
                return reason
        if all(same(sample.answer, first.answer, self._tolerance) for sample in samples):
            return "it gives all made-up items the same answer, which shows nothing"
        return ""

    def beside(self, variants: Iterable[Tensors]) -> str:
        """Why the first item may not share a run with any of these, empty if it may; refused ones are left out."""
        for item in variants:
            try:
                other = _Sample(item, self._run(item), math.inf)  # what is rounded in these does not matter
            except Exception:
                continue
            self._samples.append(other)
            for pair in ([self._samples[0], other], [other, self._samples[0]]):
                if reason := self._together(pair):
                    return reason
        return ""

    def _others(self, inputs: Sequence[TensorSpec], size: int) -> Iterator[_Sample]:
        """Further items with the model's answers, as long as there is time; those that it refuses are left out."""
        taken = [self._samples[0].item]
        for recipe, ways in second_items(inputs, size):
            if len(taken) > 1 and self._clock() + 3 * self._run_s > self._ends:
                return
            for item in ways:
                if any(_identical(item, other) for other in taken):
                    continue
                began = self._clock()
                try:
                    answer = self._run(item)
                except Exception:
                    continue
                self._run_s = self._clock() - began
                taken.append(item)
                yield _Sample(item, answer, recipe.scale)
                break

    def _together(self, samples: Sequence[_Sample]) -> str:
        """Why these items may not share a run; empty if they may."""
        count = len(samples)
        try:
            answer = self._run(joined([sample.item for sample in samples]))
        except Exception as error:
            # More than two may be too many for its memory; warming up finds how many it takes.
            return f"it refuses two items at once: {' '.join(str(error).split())[:200]}" if count == 2 else ""
        for name, array in answer.items():
            if not array.ndim or len(array) != count:
                return f"output {name} has shape {list(array.shape)} for {count} items"
        for place, sample in enumerate(samples):
            ours = {name: array[place : place + 1] for name, array in answer.items()}
            absolute = ABSOLUTE_TOLERANCE * max(1.0, sample.scale)
            largest, reason = difference(ours, sample.answer, self._tolerance, absolute)
            self.largest = max(self.largest, largest)
            if reason is not None:
                return f"{reason} for item {place + 1} of {count}"
        return ""

    def _affordable(self, first: _Sample) -> int:
        """Items in the largest batch that there is time and memory for."""
        nbytes = sum(array.nbytes for array in (*first.item.values(), *first.answer.values()))
        left_s = self._ends - self._clock()
        by_time = math.floor(left_s / self._run_s) if self._run_s > 0 else self._max_size
        return min(self._max_size, by_time, BATCH_BYTES // max(1, nbytes))


def _identical(first: Tensors, second: Tensors) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)
