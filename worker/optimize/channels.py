"""Which channels of a network can be cut out, and cutting them.

A *source* is a layer (Conv, Gemm, MatMul) whose output channels may be cut. From it, channels are followed through
operators that treat each channel alone, to the *readers*: layers whose weights have a part for each of these channels.
Where channels meet something that is not understood (a residual sum, a reshape, a softmax, the graph's output), their
source is *fixed*: it keeps all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from worker.batch import Array
from worker.optimize.graphs import Graph, attribute

Kept = Mapping[str, NDArray[np.int64]]
"""Name of a source -> the channels that it keeps, in ascending order."""

ELEMENTWISE = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Elu",
        "Selu",
        "Celu",
        "Softplus",
        "Softsign",
        "Erf",
        "Gelu",
        "Mish",
        "Exp",
        "Sqrt",
        "Abs",
        "Neg",
        "Identity",
        "Dropout",
        "Clip",
        "ThresholdedRelu",
        "Swish",
    ]
)
POOLS = frozenset(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
PAIRS = frozenset(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"])


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive channels that come from one layer."""

    source: str | None
    """The layer's name; None: they come from elsewhere and stay."""
    channels: int
    each: int = 1
    """Positions that each channel takes: more than 1 behind a Flatten."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor has its channels, and whose these are."""

    segments: tuple[Segment, ...]
    rank: int
    """Of a tensor with channels in its second dimension; 0 = they are its last dimension."""

    @property
    def width(self) -> int:
        return sum(segment.channels * segment.each for segment in self.segments)

    def kept(self, kept: Kept) -> NDArray[np.int64]:
        """Positions along the dimension of channels that remain."""
        found, start = [], 0
        for segment in self.segments:
            channels = np.arange(segment.channels)
            if segment.source is not None:
                channels = kept.get(segment.source, channels)
            found.append(
                start + (channels[:, np.newaxis] * segment.each + np.arange(segment.each)).reshape(-1)
            )
            start += segment.channels * segment.each
        return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class Follower:
    """A weight with a part for each channel, on the way from a source to its readers."""

    node: onnx.NodeProto
    place: int
    """Which of the node's inputs it is."""
    axis: int
    layout: Layout


@dataclass
class Channels:
    """What is known of a network's channels.

    Args:
        graph: the network, with unique node names; :meth:`cut` changes it.
        shapes: of tensors whose shape is inferred; None for a free dimension.
    """

    graph: Graph
    shapes: Mapping[str, Sequence[int | None]]
    layouts: dict[str, Layout] = field(default_factory=dict)
    sources: dict[str, onnx.NodeProto] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    """Output channels of each source."""
    readers: dict[str, Layout] = field(default_factory=dict)
    """Name of a layer -> the layout of its input."""
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    _followers: list[Follower] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.graph.model.graph.node:
            self.nodes[node.name] = node
            self._follow(node)
        self._fix(value.name for value in self.graph.model.graph.output)

    def prunable(self) -> list[str]:
        """Sources whose channels all end in readers, in the order of execution."""
        read = {segment.source for layout in self.readers.values() for segment in layout.segments}
        return [name for name in self.sources if name not in self.fixed and name in read]

    def readers_of(self, source: str) -> list[str]:
        return [
            name
            for name, layout in self.readers.items()
            if any(segment.source == source for segment in layout.segments)
        ]

    def bias_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
        """Which input of which node is added to each of a layer's outputs, or could be; None if nothing can.

        A MatMul has none of its own: it is what the only node behind it adds.
        """
        if node.op_type != "MatMul":
            return node, 2
        behind = [each for each in self.graph.model.graph.node if node.output[0] in each.input]
        if len(behind) != 1 or behind[0].op_type != "Add":
            return None
        place = 1 if behind[0].input[0] == node.output[0] else 0
        added = self.graph.weights.get(behind[0].input[place])
        outputs = self.graph.weights[node.input[1]].shape[1]
        return (behind[0], place) if added is not None and added.shape == (outputs,) else None

    def cut(self, kept: Kept) -> None:
        """Leave only the kept channels of these sources, in every weight that has a part for each."""
        taken: dict[tuple[str, int], Array] = {}
        for name, rows in kept.items():
            node = self.sources[name]
            axis = 0 if node.op_type == "Conv" or _transposed(node) else 1
            self._take(taken, node, 1, axis, rows)
            if len(node.input) > 2 and node.input[2] and self.graph.weights[node.input[2]].size > 1:
                self._take(taken, node, 2, self.graph.weights[node.input[2]].ndim - 1, rows)
        cut = set(kept)
        for name, layout in self.readers.items():
            if cut.intersection(segment.source or "" for segment in layout.segments):
                node = self.nodes[name]
                axis = 1 if node.op_type == "Conv" or _transposed(node) else 0
                self._take(taken, node, 1, axis, layout.kept(kept))
        for follower in self._followers:
            if cut.intersection(segment.source or "" for segment in follower.layout.segments):
                self._take(taken, follower.node, follower.place, follower.axis, follower.layout.kept(kept))
                if follower.node.op_type == "Conv":  # one group for each channel
                    group = next(a for a in follower.node.attribute if a.name == "group")
                    group.i = len(follower.layout.kept(kept))
        for (name, place), values in taken.items():
            node = self.nodes[name]
            node.input[place] = self.graph.add_weight(f"{node.input[place]}_cut", values)
        self.graph.drop_unused()
        del self.graph.model.graph.value_info[:]  # the shapes are other ones now

    def _take(
        self,
        taken: dict[tuple[str, int], Array],
        node: onnx.NodeProto,
        place: int,
        axis: int,
        rows: NDArray[np.int64],
    ) -> None:
        """A layer may be cut twice: as a source along one dimension of its weights, as a reader along the other."""
        values = taken.get((node.name, place), self.graph.weights[node.input[place]])
        taken[node.name, place] = np.take(values, rows, axis)

    # following

    def _follow(self, node: onnx.NodeProto) -> None:
        known = [name for name in node.input if name in self.layouts]
        if node.op_type in ("Conv", "Gemm", "MatMul") and self._layer(node):
            return
        layout: Layout | None = None
        if known:
            layout = self._through(node, known)
        if layout is None:
            self._fix(known)
            return
        self.layouts[node.output[0]] = layout

    def _through(self, node: onnx.NodeProto, known: list[str]) -> Layout | None:
        """The layout behind an operator that treats each channel alone; None if it does not, or it is not known to."""
        layout = self.layouts[known[0]]
        if node.op_type == "Concat":
            return self._concatenated(node)
        if node.input[0] != known[0] and node.op_type not in PAIRS:
            return None
        if node.op_type in ELEMENTWISE:
            return layout
        if node.op_type in POOLS:
            return layout if layout.rank else None
        if node.op_type in PAIRS:
            return self._paired(node, known)
        if node.op_type == "Conv" and layout.rank and attribute(node, "group", 1) == layout.width:
            return self._depthwise(node, layout)
        if node.op_type == "BatchNormalization" and layout.rank:
            if any(name not in self.graph.weights for name in node.input[1:]):
                return None
            self._followers += [Follower(node, place, 0, layout) for place in range(1, 5)]
            return layout
        if node.op_type in ("Flatten", "Reshape", "Squeeze", "ReduceMean"):
            return self._flattened(node, layout)
        return None

    def _layer(self, node: onnx.NodeProto) -> bool:
        """Whether the node is a layer; its input's channels end here, its output's begin."""
        if len(node.input) < 2 or node.input[1] not in self.graph.weights:
            return False
        weights = self.graph.weights[node.input[1]]
        if len(node.input) > 2 and node.input[2] and node.input[2] not in self.graph.weights:
            return False
        if node.op_type == "Conv":
            if attribute(node, "group", 1) != 1 or attribute(node, "auto_pad", b"NOTSET") not in (
                b"NOTSET",
                b"VALID",
            ):
                return False
            width, rank = weights.shape[0], weights.ndim
        else:
            if weights.ndim != 2 or (node.op_type == "Gemm" and not self._plain(node)):
                return False
            width, rank = weights.shape[0 if _transposed(node) else 1], 0
        before = self.layouts.get(node.input[0])
        if before is not None:
            if before.rank != rank or (rank and any(segment.each > 1 for segment in before.segments)):
                self._fix([node.input[0]])
            else:
                self.readers[node.name] = before
        self.sources[node.name], self.widths[node.name] = node, width
        self.layouts[node.output[0]] = Layout((Segment(node.name, width),), rank)
        return True

    def _plain(self, node: onnx.NodeProto) -> bool:
        form = self.graph.gemm(node)
        return form is not None and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0

    def _depthwise(self, node: onnx.NodeProto, layout: Layout) -> Layout | None:
        parts = [place for place in (1, 2) if len(node.input) > place and node.input[place]]
        if any(node.input[place] not in self.graph.weights for place in parts):
            return None
        if self.graph.weights[node.input[1]].shape[0] != layout.width:
            return None  # several outputs for each channel
        self._followers += [Follower(node, place, 0, layout) for place in parts]
        return layout

    def _paired(self, node: onnx.NodeProto, known: list[str]) -> Layout | None:
        """Two tensors of the same channels, or channels and a constant: of one value, or with one for each channel."""
        layout = self.layouts[known[0]]
        if len(known) == 2:
            return layout if self.layouts[known[1]] == layout else None
        place = 1 if node.input[0] == known[0] else 0
        if len(node.input) != 2 or node.input[place] not in self.graph.weights:
            return None
        shape = self.graph.weights[node.input[place]].shape
        from_end = layout.rank - 1 if layout.rank else 1
        if layout.rank and len(shape) > layout.rank:
            return None
        if math.prod(shape) == 1 or len(shape) < from_end or shape[len(shape) - from_end] == 1:
            return layout
        if math.prod(shape) != layout.width or shape[len(shape) - from_end] != layout.width:
            return None
        self._followers.append(Follower(node, place, len(shape) - from_end, layout))
        return layout

    def _concatenated(self, node: onnx.NodeProto) -> Layout | None:
        found = [self.layouts.get(name) for name in node.input]
        ranks = {layout.rank for layout in found if layout is not None}
        axis = attribute(node, "axis")
        if len(ranks) != 1 or axis not in ((1,) if max(ranks) else (-1,)):
            return None
        segments: list[Segment] = []
        for name, layout in zip(node.input, found, strict=True):
            width = [*self.shapes.get(name, ()), None, None][1]
            if layout is None and width is None:
                return None
            segments += layout.segments if layout is not None else [Segment(None, width or 0)]
        return Layout(tuple(segments), max(ranks))

    def _flattened(self, node: onnx.NodeProto, layout: Layout) -> Layout | None:
        """The layout where height and width are gone, so that channels are in the last of two dimensions."""
        shape = self.shapes.get(node.input[0], ())
        after = self.shapes.get(node.output[0], ())
        if not layout.rank:
            return layout if node.op_type == "Flatten" and len(shape) == 2 else None
        if any(segment.each > 1 for segment in layout.segments) or len(shape) != layout.rank:
            return None
        if node.op_type == "ReduceMean":
            if len(after) == len(shape) and after[1] == layout.width and shape[2:] != after[2:]:
                return layout
            return Layout(layout.segments, 0) if len(after) == 2 and after[1] == layout.width else None
        if (
            None in shape[2:]
            or len(after) != 2
            or after[1] != layout.width * math.prod(s or 1 for s in shape[2:])
        ):
            return None
        if node.op_type == "Reshape" and not self._keeps_width(node):
            return None
        each = math.prod(s or 1 for s in shape[2:])
        return Layout(tuple(Segment(s.source, s.channels, each) for s in layout.segments), 0)

    def _keeps_width(self, node: onnx.NodeProto) -> bool:
        """Whether a Reshape can be made to two dimensions of any width; makes it so."""
        target = self.graph.weights.get(node.input[1])
        if target is None or len(target) != 2 or target[0] not in (0, -1, 1):
            return False
        if target[1] != -1:
            first = 0 if target[0] == -1 else int(target[0])
            node.input[1] = self.graph.add_weight(f"{node.name}_shape", np.array([first, -1], np.int64))
        return True

    def _fix(self, names: Iterable[str]) -> None:
        for name in names:
            layout = self.layouts.get(name)
            if layout is not None:
                self.fixed.update(segment.source for segment in layout.segments if segment.source is not None)


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
