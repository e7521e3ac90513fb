"""Structured pruning: channels are cut out of layers, and the layers behind are refitted to the original's outputs.

The recovery is distillation on the calibration part, which needs no labels: layer by layer, from the first to the last,
least squares on what the cut network now feeds the layer and what the original's layer answered to the same record.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from worker.optimize import least_squares
from worker.optimize.channels import Channels
from worker.optimize.graphs import Graph, has_subgraphs, opened, up_to
from worker.optimize.least_squares import Moments, Part
from worker.optimize.methods import DoesNotApply, Made, Work

ERRORS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5)
"""What a layer's outputs may lose, as a share of their variance, before the refit; the largest that works is searched."""
FITTED = 0.8
"""Share of the calibration items that weights are fitted to; the others choose the ridge."""
ROWS = 4096
"""Rows of one layer's inputs, or twice as many as it has features."""
SMALLEST = 8
"""Channels of a layer that is worth cutting."""


def make(work: Work) -> Iterator[Made]:
    """The network with most channels cut that keeps the loss on the calibration part, and one with fewer cut.

    The held-out part decides between them: weights that were fitted lose less on what they were fitted to.
    """
    pruner = Pruner(work)
    cuts: dict[int, onnx.ModelProto | None] = {}

    def cut(index: int) -> onnx.ModelProto | None:
        if index not in cuts:
            cuts[index] = pruner.cut(ERRORS[index])
        return cuts[index]

    low, high = 0, len(ERRORS)
    while high - low > 1:
        middle = (low + high) // 2
        model = cut(middle)
        low, high = (middle, high) if model is None or work.loss(model) <= work.max_loss else (low, middle)
    before = parameters(work.base)
    found = {parameters(model): model for index in (low, low - 1) if index >= 0 and (model := cut(index))}
    if not found:
        raise DoesNotApply("no channel can be left out: each one tells something that the others do not")
    shares = {count: 1 - count / before for count in found}
    digits = next(n for n in range(9) if len({f"{share:.{n}%}" for share in shares.values()}) == len(shares))
    for count, model in found.items():
        note = f"{count:,} of {before:,} weights; refitted layer by layer"
        yield Made(f"prune {shares[count]:.{digits}%}", model, note)


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in all floating weights."""
    return sum(
        values.size for values in Graph(copy.deepcopy(model)).weights.values() if values.dtype.kind == "f"
    )


@dataclass(slots=True)
class _Reader:
    """What the original told about a layer that reads channels."""

    moments: Moments
    wanted: list[NDArray[np.float32]]
    """Per item the layer's outputs for its rows, without the bias."""


class Pruner:
    """Cuts a network at any error; what it needs of the original is found once.

    Raises:
        DoesNotApply: the network has no channels that can be cut.
    """

    def __init__(self, work: Work) -> None:
        if has_subgraphs(work.base):
            raise DoesNotApply("the model has graphs inside nodes (If, Loop, Scan)")
        self._work = work
        self._original = onnx.shape_inference.infer_shapes(work.base)
        _float_layers_only(self._original)
        self._channels = self._copied()
        self._sources = [
            name for name in self._channels.prunable() if self._channels.widths[name] >= SMALLEST
        ]
        if not self._sources:
            raise DoesNotApply(
                "no layer's channels end in other layers: they meet in sums or in other operators"
            )
        self._readers = self._read()
        self._paths = {name: self._eliminated(name) for name in self._sources}

    def cut(self, error: float) -> onnx.ModelProto | None:
        """The network with as many channels cut as each layer's ``error`` allows, refitted; None if none may be cut."""
        kept = {name: rows for name in self._sources if (rows := self._kept(name, error)) is not None}
        if not kept:
            return None
        student = self._copied()
        student.cut(kept)
        self._refit(student, kept)
        return student.graph.model

    def _copied(self) -> Channels:
        model = copy.deepcopy(self._original)
        shapes = {
            value.name: [
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            ]
            for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
            if value.type.tensor_type.HasField("shape")
        }
        return Channels(Graph(model), shapes)

    def _kept(self, name: str, error: float) -> NDArray[np.int64] | None:
        """The channels that a source keeps; None if that is all of them."""
        order, errors = self._paths[name]
        width = self._channels.widths[name]
        step = _step(width)
        fewest = width - int(np.searchsorted(errors, error, side="right"))
        count = max(step, -(-fewest // step) * step)
        return np.sort(np.setdiff1d(np.arange(width), order[: width - count])) if count < width else None

    # the original

    def _read(self) -> dict[str, _Reader]:
        names = list(dict.fromkeys(r for source in self._sources for r in self._channels.readers_of(source)))
        nodes = [self._channels.nodes[name] for name in names]
        tensors = list(dict.fromkeys(node.input[0] for node in nodes))
        model = opened(up_to(self._channels.graph.model, tensors))
        found: dict[str, _Reader] = {}
        for index, feeds in enumerate(self._work.feeds()):
            values = dict(zip(tensors, model.run(feeds), strict=True))
            for node in nodes:
                weights = self._channels.graph.weights[node.input[1]]
                matrix = least_squares.as_matrix(node, weights)
                rows = self._rows(node, weights, values[node.input[0]], index, len(matrix))
                reader = found.setdefault(node.name, _Reader(Moments.of(len(matrix)), []))
                reader.moments.add(rows)
                reader.wanted.append(rows @ matrix.astype(np.float32))
        return found

    def _rows(
        self,
        node: onnx.NodeProto,
        weights: NDArray[np.float32],
        x: NDArray[np.float32],
        item: int,
        features: int,
    ) -> NDArray[np.float32]:
        """Rows of a layer's inputs for one item: at the same places for the original and for the cut network.

        Args:
            features: of the layer before anything was cut.
        """
        most = -(-max(ROWS, 2 * features) // len(self._work.calibration))
        place = list(self._channels.nodes).index(node.name)
        random = np.random.default_rng([self._work.seed, place, item])
        return least_squares.rows_of(node, weights, x, most, random)

    def _eliminated(self, source: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        parts = []
        for name in self._channels.readers_of(source):
            node, reader = self._channels.nodes[name], self._readers[name]
            weights = self._channels.graph.weights[node.input[1]]
            kernel = int(np.prod(weights.shape[2:])) if node.op_type == "Conv" else 1
            blocks, start = [], 0
            for segment in self._channels.readers[name].segments:
                size = segment.each * kernel
                if segment.source == source:
                    blocks.append(start + np.arange(segment.channels * size).reshape(segment.channels, size))
                start += segment.channels * size
            if len(blocks) != 1:
                continue  # the channels come twice: the other reader decides
            wanted = np.concatenate(reader.wanted).astype(np.float64)
            scale = float(((wanted - wanted.mean(axis=0)) ** 2).sum())
            matrix = least_squares.as_matrix(node, weights)
            second = reader.moments.second(centred=self._channels.bias_of(node) is not None)
            parts.append(Part(second, matrix, blocks[0], max(scale, 1e-12)))
        width = self._channels.widths[source]
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0)
        return least_squares.elimination(parts, min(width, max(_step(width), width // 16)))

    # the cut network

    def _refit(self, student: Channels, kept: dict[str, NDArray[np.int64]]) -> None:
        """Fit every layer behind cut channels, in the order of execution, to what the original's layer gave."""
        changed = [
            name
            for name, layout in student.readers.items()
            if name in self._readers and any(segment.source in kept for segment in layout.segments)
        ]
        behind: dict[str, list[str]] = {}
        for name in changed:
            behind.setdefault(student.nodes[name].input[0], []).append(name)
        for tensor, names in behind.items():
            model = opened(up_to(student.graph.model, [tensor]))
            rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
            for index, feeds in enumerate(self._work.feeds()):
                x = model.run(feeds)[0]
                for name in names:
                    node = student.nodes[name]
                    features = len(self._readers[name].moments.total)
                    rows[name].append(
                        self._rows(node, student.graph.weights[node.input[1]], x, index, features)
                    )
            for name in names:
                self._refit_one(student, name, rows[name], kept.get(name))

    def _refit_one(
        self,
        student: Channels,
        name: str,
        rows: list[NDArray[np.float32]],
        outputs: NDArray[np.int64] | None,
    ) -> None:
        node, graph = student.nodes[name], student.graph
        weights = graph.weights[node.input[1]]
        wanted = np.concatenate(self._readers[name].wanted).astype(np.float64)
        if outputs is not None:
            wanted = wanted[:, outputs]
        bias = student.bias_of(node)
        # What is wanted is without the bias, so that a change of it is what is found.
        nothing = np.zeros(wanted.shape[1]) if bias is not None else None
        fitted = sum(len(each) for each in rows[: max(1, int(len(rows) * FITTED))])
        matrix = least_squares.as_matrix(node, weights)
        matrix, shift = least_squares.refitted(np.concatenate(rows), wanted, matrix, nothing, fitted)
        node.input[1] = graph.add_weight(f"{name}_refitted", least_squares.as_weights(node, matrix, weights))
        if bias is not None and shift is not None:
            holder, place = bias
            given = len(holder.input) > place and holder.input[place]
            before = graph.weights[holder.input[place]] if given else np.zeros(len(shift), weights.dtype)
            shifted = (before.reshape(-1) + shift).astype(weights.dtype)
            del holder.input[place : place + 1]
            holder.input.insert(place, graph.add_weight(f"{name}_bias_refitted", shifted))
        graph.drop_unused()


def _step(width: int) -> int:
    """Channels are kept in multiples of this: the runtime computes convolutions in blocks of 8 or 16."""
    return 16 if width >= 64 else 8 if width >= 16 else 2


def _float_layers_only(model: onnx.ModelProto) -> None:
    """Raise unless the weights are in float32, as least squares need them."""
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise DoesNotApply("the model has no float32 weights")
