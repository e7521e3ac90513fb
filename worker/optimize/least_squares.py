"""What a layer computes, as rows of a linear problem: which inputs matter least, and weights that make up for them.

Choosing channels follows Optimal Brain Surgeon (Hassibi and Stork, 1993) with blocks of weights: the error of leaving out
a block S, when all other weights adapt, is the trace of W_S' ((H^-1)_SS)^-1 W_S, with H the inputs' second moments.
Refitting is ridge regression towards the weights that are there, on inputs of the cut network and outputs of the
original layer: distillation of one layer in closed form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from worker.batch import Array
from worker.optimize.graphs import attribute

Matrix = NDArray[np.float64]

DAMPING = 1e-3
"""Added to H, as a share of the mean of its diagonal: inputs that never vary have no inverse."""
DAMPING_FEW = 0.05
"""Added as well, times features over rows: few rows make inputs look as if one could stand for another."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried for the refit, as shares of the mean of the diagonal; what does best on rows that were not fitted is taken."""
ROUND_WORK = 1.5e11
"""About how many multiplications the choice of one layer's channels may take."""


def rows_of(
    node: onnx.NodeProto, weights: Array, x: Array, most: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Inputs of a layer as rows, at most ``most``, drawn by ``random``: (rows, features).

    Args:
        node: Conv, Gemm or MatMul.
        weights: of the layer, for the size of its kernel.
        x: (n, channels, ...) for a Conv, (..., features) else.
    """
    if node.op_type != "Conv":
        flat = x.reshape(-1, x.shape[-1])
        return np.ascontiguousarray(flat[_drawn(len(flat), most, random)], np.float32)
    kernel = weights.shape[2:]
    steps, gaps = (_ints(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    pads = _ints(node, "pads", [0] * 2 * len(kernel))
    half = len(kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[half + i]) for i in range(half))])
    reach = [gap * (k - 1) + 1 for gap, k in zip(gaps, kernel, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, steps, strict=True)]
    chosen = _drawn(len(x) * math.prod(sizes), most, random)
    item, *places = np.unravel_index(chosen, (len(x), *sizes))
    columns = []
    for offsets in itertools.product(*map(range, kernel)):
        where = [p * s + o * g for p, s, o, g in zip(places, steps, offsets, gaps, strict=True)]
        index: tuple[Any, ...] = (item, slice(None), *where)
        columns.append(padded[index])
    return np.ascontiguousarray(np.stack(columns, -1).reshape(len(chosen), -1), np.float32)


def _drawn(count: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(random.choice(count, min(count, most), replace=False))


def _ints(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    found = attribute(node, name, default)
    assert isinstance(found, list)
    return found


def as_matrix(node: onnx.NodeProto, weights: Array) -> Matrix:
    """The weights of a layer as (features, outputs)."""
    if node.op_type == "Conv":
        return weights.reshape(len(weights), -1).T.astype(np.float64)
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return (weights.T if transposed else weights).astype(np.float64)


def as_weights(node: onnx.NodeProto, matrix: Matrix, like: Array) -> Array:
    """The inverse of :func:`as_matrix`, in the shape and dtype of ``like``."""
    transposed = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0))
    found: Array = (matrix.T if transposed else matrix).reshape(like.shape).astype(like.dtype)
    return found


@dataclass(slots=True)
class Moments:
    """Sums over the rows of one layer's inputs."""

    count: int
    total: Matrix
    products: Matrix

    @classmethod
    def of(cls, features: int) -> Moments:
        return cls(0, np.zeros(features), np.zeros((features, features), np.float32))

    def add(self, rows: NDArray[np.float32]) -> None:
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.products += rows.T @ rows

    def second(self, centred: bool) -> Matrix:
        """H, damped; about the mean where the layer's bias makes up for that."""
        found = self.products.astype(np.float64)
        if centred:
            found -= np.outer(self.total, self.total) / max(1, self.count)
        damping = DAMPING + DAMPING_FEW * len(found) / max(1, self.count)
        found[np.diag_indices_from(found)] += damping * max(float(np.trace(found)) / len(found), 1e-12)
        return found


@dataclass(slots=True)
class Part:
    """One reader of the channels that are to be cut."""

    second: Matrix
    """H of its inputs, (features, features)."""
    weights: Matrix
    """(features, outputs)."""
    blocks: NDArray[np.int64]
    """(channels, features of one channel): places among the features."""
    scale: float
    """Sum of squares of its outputs about their mean, over the same rows."""


def elimination(parts: Sequence[Part], least: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The channels in the order in which to cut them, and the error after each.

    The error is what the readers' outputs lose when all other weights adapt, as a share of their variance, added up over
    the readers. Channels are cut a few at a time; within such a few the error grows evenly.

    Args:
        least: how many channels remain in any case.
    """
    channels = len(parts[0].blocks)
    alive = [np.ones(len(part.second), bool) for part in parts]
    weights = [part.weights.copy() for part in parts]
    left = np.arange(channels)
    cost = max(float(len(part.second)) ** 3 for part in parts)
    step = max(1, math.ceil((channels - least) / max(4, min(48, int(ROUND_WORK / cost)))))
    order: list[int] = []
    errors: list[float] = []
    error = 0.0
    while len(left) > least:
        scores = np.zeros(len(left))
        inverses = []
        for part, living, current in zip(parts, alive, weights, strict=True):
            inverse = np.linalg.inv(part.second[np.ix_(living, living)])
            inverses.append(inverse)
            places = _places(living)[part.blocks[left]]
            own = inverse[places[:, :, np.newaxis], places[:, np.newaxis, :]]
            blocks = current[part.blocks[left]]
            scores += (blocks * np.linalg.solve(own, blocks)).sum(axis=(1, 2)) / part.scale
        worst = np.argsort(scores, kind="stable")[: min(step, len(left) - least)]
        grows = 0.0
        for index, (part, living, inverse) in enumerate(zip(parts, alive, inverses, strict=True)):
            gone = part.blocks[left[worst]].reshape(-1)
            places = _places(living)
            own = inverse[np.ix_(places[gone], places[gone])]
            pushed = np.linalg.solve(own, weights[index][gone])
            grows += float((weights[index][gone] * pushed).sum()) / part.scale
            weights[index][living] -= inverse[:, places[gone]] @ pushed
            living[gone] = False
        errors += [error + grows * (i + 1) / len(worst) for i in range(len(worst))]
        error += grows
        order += left[worst].tolist()
        left = np.delete(left, worst)
    return np.array(order, np.int64), np.array(errors)


def _places(living: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.cumsum(living) - 1


def refitted(
    rows: NDArray[np.float32], wanted: Matrix, weights: Matrix, bias: Matrix | None, fitted: int
) -> tuple[Matrix, Matrix | None]:
    """Weights and bias with which the layer gives what is wanted, as nearly as inputs allow.

    Args:
        rows: the layer's inputs now, (rows, features).
        wanted: what it should give, (rows, outputs).
        weights, bias: those it has, (features, outputs) and (outputs,); without a bias none is made.
        fitted: so many rows are fitted; the others choose the ridge, and whether anything changes at all.
    """
    inputs = rows.astype(np.float64)
    missing = wanted - inputs @ weights
    if bias is not None:
        missing = missing - bias
    centre = inputs[:fitted].mean(axis=0) if bias is not None else np.zeros(inputs.shape[1])
    offset = missing[:fitted].mean(axis=0) if bias is not None else np.zeros(missing.shape[1])
    fit, check = inputs[:fitted] - centre, inputs[fitted:] - centre
    target, checked = missing[:fitted] - offset, missing[fitted:] - offset
    second, mixed = fit.T @ fit, fit.T @ target
    mean = max(float(np.trace(second)) / len(second), 1e-12)
    best, change = float((checked**2).sum()), np.zeros_like(weights)
    for ridge in RIDGES:
        damped = second.copy()
        damped[np.diag_indices_from(damped)] += ridge * mean
        tried = np.linalg.solve(damped, mixed)
        error = float(((checked - check @ tried) ** 2).sum())
        if error < best:
            best, change = error, tried
    if bias is None:
        return weights + change, None
    return weights + change, bias + offset - centre @ change
