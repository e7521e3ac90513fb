"""Items made up for a model, before the first record: to find out what it does, to warm it up and to measure it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from worker.batch import Array
from worker.model.backend import Tensors
from worker.model.signature import TensorSpec

_Integers = Literal["zeros", "ones", "bits", "wide"]
"""How integers are filled: all alike, random 0 and 1, or random below 100 (an 8-bit one: any value, as pixels are)."""
_BELOW = 100
"""Beyond most classes, below most vocabularies; not so large that a model which takes it for a length runs for long."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one made-up item is filled."""

    integers: _Integers
    text: str = ""
    """What every string is."""
    scale: float = 1.0
    """Floats are random in [0, scale), or of both signs around 0 with this deviation if ``signed``."""
    signed: bool = False
    seed: int = 0


FIRST = (Recipe("zeros"), Recipe("zeros", "0"), Recipe("ones", "a"))
"""What nearly every model takes: zeros as an id or a mask, an empty string or one that is a number."""
OTHERS = (
    Recipe("wide", "a", seed=1),
    Recipe("bits", "0", scale=0.01, seed=2),
    Recipe("wide", "1", scale=100.0, seed=3),
    Recipe("bits", "b", signed=True, seed=4),
)
"""Items of other scales. In a batch of them, a figure that is taken over the whole batch is wrong for most."""


def made_up(inputs: Sequence[TensorSpec], size: int, recipe: Recipe = FIRST[0]) -> Tensors:
    """One item for every input, with its batch dimension: 1, or what the model fixes it to.

    Args:
        size: for each free dimension of an item. A free dimension of an input that one item gives whole is 1: where
            such a dimension is free, it is most likely the batch.
    """
    random = np.random.default_rng(recipe.seed)
    return {spec.name: _values(spec, _shape(spec, size), random, recipe) for spec in inputs}


def second_items(inputs: Sequence[TensorSpec], size: int) -> Iterator[tuple[Recipe, list[Tensors]]]:
    """Items unlike the first one, the most telling first; each with simpler ones for a model that refuses it."""
    plain = any(spec.dtype.kind != "f" for spec in inputs)
    for recipe in OTHERS:
        simpler = [_simpler(recipe, integers) for integers in ("bits", "ones", "zeros")] if plain else []
        yield recipe, [made_up(inputs, size, way) for way in (recipe, *simpler)]


def likely_sizes(inputs: Sequence[TensorSpec], known: Sequence[int] = ()) -> list[int]:
    """Sizes to try for the free dimensions of an item; ``known`` ones first."""
    if all(spec.fixed for spec in inputs):
        return [1]
    # networks for images halve them several times; those for audio take windows of about 512 samples
    guesses = (32, 1, 16, 224) if any(len(spec.shape) == 4 for spec in inputs) else (4, 1, 16, 512)
    return list(dict.fromkeys((*known, *guesses)))


def pinned(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
    """The inputs with known lengths in the place of free ones; an input's first dimension stays if it counts items.

    Args:
        shapes: by input, the shape of the tensor of one item, its batch dimension included.
    """
    found = []
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is None:
            found.append(spec)
        elif spec.whole is not None:
            found.append(replace(spec, whole=tuple(shape)))
        else:
            found.append(replace(spec, shape=(*spec.shape[:1], *shape[1:])))
    return tuple(found)


def batch_of(item: Tensors, count: int) -> Tensors:
    """``count`` copies of an item as one batch, C order."""
    return {name: np.repeat(array, count, axis=0) for name, array in item.items()}


def joined(items: Sequence[Tensors]) -> Tensors:
    """Items, or answers, as one batch in this order."""
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def _simpler(recipe: Recipe, integers: _Integers) -> Recipe:
    text = "0" if integers == "zeros" else recipe.text
    return Recipe(integers, text, recipe.scale, recipe.signed, recipe.seed)


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    if spec.whole is not None:
        return tuple(1 if length is None else length for length in spec.whole)
    first = [1 if length is None else length for length in spec.shape[:1]]
    return (*first, *(size if length is None else length for length in spec.shape[1:]))


def _values(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator, recipe: Recipe) -> Array:
    dtype: np.dtype[Any] = spec.dtype
    if dtype.kind == "f":
        floats = random.standard_normal(shape) if recipe.signed else random.random(shape)
        return np.asarray(floats * recipe.scale, dtype)
    if dtype.kind == "O":
        return np.full(shape, recipe.text, dtype)
    if recipe.integers == "bits" or (recipe.integers == "wide" and dtype.kind == "b"):
        return np.asarray(random.integers(0, 2, shape), dtype)
    if recipe.integers == "wide":
        below = np.iinfo(dtype).max if dtype.itemsize == 1 else _BELOW
        return np.asarray(random.integers(0, below, shape), dtype)
    return np.full(shape, recipe.integers == "ones", dtype)
