"""What made-up items show about a model before the first record: does it run, does it repeat itself, may items share a run.

A batch is only worth anything if the answer for an item does not depend on its neighbours, and no declaration
in a model file says so. It is found by running two different items together and alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worker.batch import Array
from worker.model.compare import same
from worker.model.signature import TensorSpec

Tensors = dict[str, Array]
Run = Callable[[Tensors], Tensors]

# What integers, booleans and strings of a made-up item hold. Zeros are what nearly every model takes (an id, a
# mask); "wide" fills 8-bit integers with random values, as pixels are, and every other one with ones.
_Filling = Literal["zeros", "ones", "wide"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the made-up items showed."""

    item: Tensors | None
    """The first one the model took, with its batch dimension; None when it refused them all."""
    outputs: Tensors | None = None
    """What the model answered to it."""
    repeatable: bool = False
    """The same item gave the same answer twice."""
    batchable: bool = False
    refusal: str = ""
    """Why the first made-up item was refused, when all were."""


def probe(
    run: Run, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], of_largest: float = 0.0
) -> Probe:
    """Runs made-up items until the model takes one, then finds out whether items may be run together.

    Free dimensions of an item are not known, so a few likely sizes are tried. ``of_largest``: see :func:`same`.
    """
    refusal = ""
    for size in _likely_sizes(inputs):
        item = made_up(inputs, size)
        try:
            answer, again = run(item), run(item)
        except Exception as error:
            refusal = refusal or str(error)
            continue
        repeatable = same(answer, again, of_largest)
        batchable = (
            repeatable
            and _may_be_batchable(inputs, outputs, answer)
            and _keeps_items_apart(run, item, answer, _other_items(inputs, size), of_largest)
        )
        return Probe(item, answer, repeatable, batchable)
    return Probe(None, refusal=refusal)


def batch_of(item: Tensors, count: int) -> Tensors:
    """``count`` copies of an item as one batch, C order."""
    return {name: np.repeat(array, count, axis=0) for name, array in item.items()}


def made_up(inputs: Sequence[TensorSpec], size: int, seed: int = 0, filling: _Filling = "zeros") -> Tensors:
    """One item for every input: seeded random floats in [0, 1), ``size`` for each free dimension of an item.

    The first dimension is 1, or what the model fixes it to; a rank-0 input gets rank 0.
    """
    random = np.random.default_rng(seed)
    item: Tensors = {}
    for spec in inputs:
        first = [1 if dimension is None else dimension for dimension in spec.shape[:1]]
        shape = (*first, *(size if dimension is None else dimension for dimension in spec.item_shape))
        item[spec.name] = _values(spec.dtype, shape, random, filling)
    return item


def _values(
    dtype: np.dtype[Any], shape: tuple[int, ...], random: np.random.Generator, filling: _Filling
) -> Array:
    if dtype.kind == "f":
        return np.asarray(random.random(shape), dtype)
    if dtype.kind == "O":
        return np.full(shape, "" if filling == "zeros" else "a", dtype)
    if filling == "wide" and dtype.itemsize == 1 and dtype.kind != "b":
        return np.asarray(random.integers(0, np.iinfo(dtype).max, shape), dtype)
    return np.full(shape, filling != "zeros", dtype)


def _likely_sizes(inputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Sizes to try for the free dimensions of an item."""
    if all(spec.fixed for spec in inputs):
        return (1,)
    if any(len(spec.shape) == 4 for spec in inputs):  # images: networks halve them several times
        return (32, 1, 16, 224)
    return (4, 1, 16)


def _other_items(inputs: Sequence[TensorSpec], size: int) -> Iterator[Tensors]:
    """Second items, the most telling first: different in every input, then in fewer, for models that refuse."""
    fillings: tuple[_Filling, ...] = ("wide", "ones", "zeros")
    for filling in fillings:
        yield made_up(inputs, size, seed=1, filling=filling)


def _may_be_batchable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], answer: Tensors) -> bool:
    """Whether every first dimension is free, and one item gave outputs of one row.

    An empty output shape may also stand for an unknown rank; the answer shows which.
    """
    return (
        all(spec.shape and spec.shape[0] is None for spec in inputs)
        and all(not spec.shape or spec.shape[0] is None for spec in outputs)
        and all(array.ndim > 0 and len(array) == 1 for array in answer.values())
    )


def _keeps_items_apart(
    run: Run, item: Tensors, answer: Tensors, others: Iterator[Tensors], of_largest: float
) -> bool:
    """Whether two different items together, in either order, give what each gives alone.

    Both orders because one may hide it: sorting zeros before ones leaves them where they were.
    """
    for other in others:
        try:
            other_answer = run(other)
        except Exception:
            continue
        if _identical(item, other):
            return False  # nothing different was taken, so nothing is shown
        try:
            return all(
                same(run(_joined(*pair)), _joined(*answers), of_largest)
                for pair, answers in (
                    ((item, other), (answer, other_answer)),
                    ((other, item), (other_answer, answer)),
                )
            )
        except Exception:  # it takes no two items, or their answers have different shapes
            return False
    return False


def _joined(first: Tensors, second: Tensors) -> Tensors:
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def _identical(first: Tensors, second: Tensors) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)
