"""Whether padding leaves a model's answers alone, found by running made-up items: alone, and padded in one run.

A text encoder that is given an attention mask ignores padded positions; one without a mask averages over them. No
declaration in a model file says which it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import structlog

from worker.batch import Array, Padding
from worker.model.compare import difference
from worker.model.made_up import FIRST, OTHERS, made_up
from worker.model.signature import TensorSpec
from worker.serving.ragged import Ragged, cut_output, padded, padded_shape
from worker.serving.servable import Model

_LENGTHS = (16, 64, 512)
"""Lengths of the longer made-up item; a network of convolutions may need many positions."""
_RECIPES = (OTHERS[1], FIRST[2], OTHERS[0])
"""Random 0 and 1 first: they are ids of any vocabulary, and a mask may hold them."""

log = structlog.get_logger()

Tensors = dict[str, Array]


def ragged_of(
    model: Model, padding: Mapping[str, Padding] | None, name: str, tolerance: float = 0.0
) -> Ragged | None:
    """How records of unlike length share a run; None if they may not.

    Args:
        padding: by model input, as the decoder wants it; None = its items have one shape.
        name: of the model, for the log.
        tolerance: what floats may differ by besides, as a share of the output's largest value.
    """
    if not padding or not model.signature.batchable:
        return None
    found = _checked(model, padding, tolerance)
    if isinstance(found, Ragged):
        return found
    log.warning(
        "padding changes the model's answers: only records of the same length share a run",
        model=name,
        reason=found,
    )
    return None


def _checked(model: Model, padding: Mapping[str, Padding], tolerance: float) -> Ragged | str:
    """How to pad, or why not to."""
    refusal = "it refuses the made-up items"
    for short, long in _pairs(model.signature.inputs, padding):
        try:
            answers = [model.run(item) for item in (short, long)]
            together = model.run(_together(model, padding, (short, long)))
        except Exception as error:
            refusal = " ".join(str(error).split())[:200]
            continue
        return _compared(padding, (short, long), answers, together, tolerance)
    return refusal


def _pairs(inputs: Sequence[TensorSpec], padding: Mapping[str, Padding]) -> Iterator[tuple[Tensors, Tensors]]:
    """A short and a long made-up item, in several ways."""
    for length in _LENGTHS:
        for recipe in _RECIPES:
            long = made_up(inputs, length, recipe)
            short = {
                name: np.ascontiguousarray(
                    array.take(range(array.shape[padding[name].axis + 1] * 5 // 16), padding[name].axis + 1)
                )
                if name in padding
                else array
                for name, array in long.items()
            }
            yield short, long


def _together(model: Model, padding: Mapping[str, Padding], items: Sequence[Tensors]) -> Tensors:
    """The items as one run."""
    found = {}
    for name in items[0]:
        arrays = [item[name] for item in items]
        if name in padding:
            whole = model.empty(padded_shape(arrays, padding[name]), arrays[0].dtype)
            found[name] = padded(arrays, padding[name], whole)
        else:
            found[name] = np.concatenate(arrays)
    return found


def _compared(
    padding: Mapping[str, Padding],
    items: Sequence[Tensors],
    answers: Sequence[Tensors],
    together: Tensors,
    tolerance: float,
) -> Ragged | str:
    """How to pad, from two answers alone and the answer to both padded; or why not to."""
    name, first = next(iter(padding.items()))
    lengths = [item[name].shape[first.axis + 1] for item in items]
    whole = padded_shape([item[name] for item in items], first)[first.axis + 1]
    follows = {}
    for output, array in together.items():
        shapes = [answer[output].shape for answer in answers]
        unlike = [
            axis for axis in range(1, array.ndim) if len({*(s[axis] for s in shapes), array.shape[axis]}) > 1
        ]
        for axis in unlike:
            if [*(shape[axis] for shape in shapes), array.shape[axis]] != [*lengths, whole]:
                return f"output {output} has shape {list(shapes[0])} for {lengths[0]} positions"
        if unlike:
            follows[output] = tuple(axis - 1 for axis in unlike)
    if follows and len({padding[name].group for name in padding}) > 1:
        return f"output {next(iter(follows))} is as long as one of several inputs of unlike length"
    for place, answer in enumerate(answers):
        ours = {
            output: cut_output(
                array[place : place + 1], follows.get(output, ()), lengths[place], first.before
            )
            for output, array in together.items()
        }
        if (reason := difference(ours, answer, tolerance).reason) is not None:
            return f"{reason} for an item of {lengths[place]} positions padded to {whole}"
    return Ragged(padding, follows)
