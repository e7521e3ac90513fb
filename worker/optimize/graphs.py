"""What several methods ask of a model's graph, and runs of a model that is only in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from worker.batch import Array
from worker.model.opening import import_runtime
from worker.optimize.items import Tensors


class Graph:
    """A model with its weights by name. It changes the model that it is made of.

    Constants that are nodes become initializers first, so that there is one kind of weight.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        for node in [node for node in graph.node if node.op_type == "Constant"]:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                value.name = node.output[0]
                graph.initializer.append(value)
                graph.node.remove(node)
        self.weights: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._raw = {tensor.name: tensor for tensor in graph.initializer}

    def add_weight(self, name: str, values: Array) -> str:
        """A new initializer; returns its name, which differs from ``name`` where that is taken."""
        while name in self.weights:
            name += "_"
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.model.graph.initializer.append(tensor)
        self.weights[name] = values
        return name

    def gemm(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
        """Of a Gemm with constant weights: what ``x @ weights + bias`` needs. None if the node is no such Gemm."""
        if node.op_type != "Gemm" or node.input[1] not in self.weights or attribute(node, "transA", 0):
            return None
        weights = self.weights[node.input[1]]
        if attribute(node, "transB", 0):
            weights = weights.T
        weights = weights * np.float32(attribute(node, "alpha", 1.0))
        if len(node.input) < 3 or not node.input[2]:
            return weights, None
        if node.input[2] not in self.weights:
            return None
        bias = self.weights[node.input[2]] * np.float32(attribute(node, "beta", 1.0))
        if bias.size not in (1, weights.shape[1]):
            return None
        return weights, np.broadcast_to(bias.reshape(-1), (weights.shape[1],)).astype(weights.dtype)

    def drop_unused(self) -> None:
        """Remove initializers that no node reads."""
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
            graph.initializer.remove(tensor)
            self.weights.pop(tensor.name, None)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def layers(model: onnx.ModelProto, operators: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes of these operators whose second input is a weight."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return [
        node
        for node in model.graph.node
        if node.op_type in operators and len(node.input) > 1 and node.input[1] in constants
    ]


def float_weights(model: onnx.ModelProto) -> bool:
    """Whether a model has weights in float32."""
    float32 = onnx.TensorProto.FLOAT
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    return any(tensor.data_type == float32 for tensor in [*model.graph.initializer, *constants])


def has_subgraphs(model: onnx.ModelProto) -> bool:
    """Whether a node holds a graph of its own: If, Loop, Scan."""
    return any(a.type == onnx.AttributeProto.GRAPH for node in model.graph.node for a in node.attribute)


def outputs_of(model: onnx.ModelProto, feeds: Iterable[Tensors]) -> list[Array]:
    """All outputs of all runs, one after the other."""
    session = opened(model)
    return [output for feed in feeds for output in session.run(feed)]


class Opened:
    """A model in memory, ready to run on one CPU thread. It takes those of its inputs that it needs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {value.name for value in self._session.get_inputs()}

    def run(self, feeds: Tensors) -> Sequence[Array]:
        found: Sequence[Array] = self._session.run(
            None, {n: v for n, v in feeds.items() if n in self._inputs}
        )
        return found


def opened(model: onnx.ModelProto) -> Opened:
    return Opened(model)


def up_to(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that computes only these tensors, as its outputs and in this order."""
    needed, kept = set(names), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    made = onnx.ModelProto()
    made.CopyFrom(onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import))
    made.functions.extend(model.functions)
    graph = made.graph
    graph.name = model.graph.name
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    graph.input.extend(value for value in model.graph.input if value.name in needed)
    known = {v.name: v for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    for name in names:
        value = known.get(name)
        graph.output.append(value if value is not None else onnx.ValueInfoProto(name=name))
    return made
