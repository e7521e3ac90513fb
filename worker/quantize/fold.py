"""Fold a picture's scaling into a model's first layer, so that the camera's bytes are its input.

Preprocessing and whatever arithmetic a model starts with turn a pixel p into x = a p + b, one a and b per channel.
A first layer with weights W then computes W x = (W a)(p - z) + W (b + a z) for any number z: with weights W a and
the last term in its bias, the layer takes p - z, which *is* what ``DequantizeLinear`` makes of an unsigned byte p
with scale 1 and zero point z. Exact, but for the border a convolution adds: there p - z is 0, so the border reads
as the grey level z, where before it read as the level that x = 0 stands for. z is chosen to be just that level;
where channels have different ones, it is their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from worker.batch import Array
from worker.errors import ConfigError

MOVES = {"Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators that pass numbers on, at most in another order; they work on bytes too."""
ARITHMETIC = {"Cast", "Add", "Sub", "Mul", "Div", "BatchNormalization"}
"""Operators that may compute x = a p + b before the first layer; folding removes them."""
LAYERS = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True, slots=True)
class Folded:
    """A model whose first layer takes p - ``zero_point``, still in floating point."""

    model: onnx.ModelProto
    tensor: str
    """Name of the tensor that the first layer reads."""
    zero_point: int
    note: str | None
    """A sentence about the difference that folding makes; None if it is exact."""


def fold(model: onnx.ModelProto, prepared: Callable[[int], Array]) -> Folded:
    """Fold scaling into the first layer. ``model`` is changed.

    Args:
        model: one picture in; constants are initializers, batch normalisation is fused.
        prepared: pixel value -> a picture of only that value, as the model's input, (1, *item).

    Raises:
        ConfigError: the model cannot be folded; the message says why.
    """
    graph = model.graph
    source = image_input(graph)
    prefix, layer = _to_first_layer(graph, source.name)
    black, grey, white = (_run(model, prefix, layer.input[0], prepared(level)) for level in (0, 128, 255))
    factor, offset = (white - black) / 255, black
    if factor.size != prepared(0).size or not np.allclose(factor * 128 + offset, grey, rtol=1e-3, atol=1e-3):
        raise _refusal("what comes before the first layer is not of the form a x pixel + b")
    if not np.all(factor):
        raise _refusal("scaling makes every pixel the same number")

    levels = -offset / factor
    zero_point = int(np.clip(np.rint(levels.mean()), 0, 255))
    _fold_layer(graph, layer, factor, offset + factor * zero_point)
    for node in [node for node in prefix if node.op_type in ARITHMETIC]:
        _bypass(graph, node)
    source.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model)
    return Folded(inferred, layer.input[0], zero_point, _border_note(layer, levels, zero_point))


def take_bytes(model: onnx.ModelProto, folded: Folded) -> None:
    """Make a quantised ``folded.model`` take pixels: remove the node that quantises its input."""
    graph = model.graph
    quantize = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == folded.tensor]
    consumers = [node for node in graph.node if folded.tensor in node.input]
    if len(quantize) != 1 or consumers != quantize:
        raise _refusal("its first layer could not be quantised")
    graph.node.remove(quantize[0])
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == quantize[0].output[0]:
                node.input[i] = folded.tensor
    image_input(graph).type.tensor_type.elem_type = onnx.TensorProto.UINT8
    del graph.value_info[:]


def image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """The one input that is no weight (old models list those as inputs too)."""
    weights = {initializer.name for initializer in graph.initializer}
    found: onnx.ValueInfoProto = next(value for value in graph.input if value.name not in weights)
    return found


def _to_first_layer(graph: onnx.GraphProto, name: str) -> tuple[list[onnx.NodeProto], onnx.NodeProto]:
    """The nodes between the input ``name`` and the first layer, in order, and that layer."""
    constants = {initializer.name for initializer in graph.initializer}
    prefix: list[onnx.NodeProto] = []
    while True:
        consumers = [node for node in graph.node if name in node.input]
        if len(consumers) != 1 or name in {value.name for value in graph.output}:
            raise _refusal(f"its tensor {name} goes to {len(consumers)} places before the first layer")
        node = consumers[0]
        others = [other for other in node.input if other and other != name]
        if node.op_type in LAYERS and node.input[0] == name and constants.issuperset(others):
            return prefix, node
        if node.op_type not in MOVES | ARITHMETIC or not constants.issuperset(others):
            raise _refusal(
                f"its first layer is {node.op_type}; expected Conv, Gemm or MatMul with constant weights"
            )
        prefix.append(node)
        name = node.output[0]


def _run(
    model: onnx.ModelProto, prefix: list[onnx.NodeProto], tensor: str, value: Array
) -> NDArray[np.float64]:
    """The value of ``tensor``, the output of ``prefix``, for an input ``value``."""
    if not prefix:
        return value.astype(np.float64)
    needed = {name for node in prefix for name in node.input}
    part = helper.make_graph(
        prefix,
        "prefix",
        [image_input(model.graph)],
        [helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)],
        [initializer for initializer in model.graph.initializer if initializer.name in needed],
    )
    whole = helper.make_model(part, ir_version=model.ir_version, opset_imports=model.opset_import)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run([tensor], {image_input(model.graph).name: value})[0]
    return result.astype(np.float64)


def _fold_layer(
    graph: onnx.GraphProto, layer: onnx.NodeProto, factor: NDArray[np.float64], offset: NDArray[np.float64]
) -> None:
    """Give ``layer`` the weights and the bias that make it take p - z instead of factor (p - z) + offset.

    Args:
        factor, offset: (1, ...), one number per element of the layer's input.
    """
    constants = {
        initializer.name: numpy_helper.to_array(initializer).astype(np.float64)
        for initializer in graph.initializer
        if initializer.name in layer.input
    }
    weights = constants[layer.input[1]]
    bias = constants[layer.input[2]] if len(layer.input) > 2 and layer.input[2] else np.zeros(1)
    if layer.op_type == "Conv":
        per_input = (slice(None), slice(None), *[None] * (weights.ndim - 2))
        factors, offsets = (_by_group(layer, _per_channel(v, 1), weights.shape) for v in (factor, offset))
        added = (weights * offsets[per_input]).reshape(len(weights), -1).sum(axis=1)
        weights = weights * factors[per_input]
    else:
        transposed = bool(_attribute(layer, "transB", 0))
        if weights.ndim != 2 or _attribute(layer, "transA", 0) or not _attribute(layer, "beta", 1.0):
            raise _refusal(f"its first layer is a {layer.op_type} of a form that is not supported")
        by_row = weights.T if transposed else weights  # (inputs, outputs)
        factors, offsets = (_per_channel(v, v.ndim - 1) for v in (factor, offset))
        added = offsets @ by_row * (_attribute(layer, "alpha", 1.0) / _attribute(layer, "beta", 1.0))
        weights = (by_row * factors[:, None]).T if transposed else by_row * factors[:, None]
    _set_constant(graph, layer, 1, weights)
    if layer.op_type == "MatMul":
        _add_after(graph, layer, added)
    else:
        _set_constant(graph, layer, 2, bias + added)


def _per_channel(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """One number per index of ``axis``; refuses values that also differ along another axis."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if not np.allclose(rows, rows[:, :1], rtol=1e-4, atol=1e-6):
        raise _refusal("scaling differs from pixel to pixel within a channel")
    return np.asarray(rows[:, 0])


def _by_group(
    layer: onnx.NodeProto, channels: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """(channels,) -> (outputs, channels per group): which channels each output of a convolution reads."""
    groups = _attribute(layer, "group", 1)
    return np.repeat(channels.reshape(groups, shape[1]), shape[0] // groups, axis=0)


def _set_constant(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, values: Array) -> None:
    """Give one node a new constant; other nodes may share the old one."""
    name = f"{node.output[0]}_folded_{index}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    while len(node.input) <= index:
        node.input.append("")
    old, node.input[index] = node.input[index], name
    if old and not any(old in other.input for other in graph.node):
        graph.initializer.remove(next(i for i in graph.initializer if i.name == old))
        for declared in [value for value in graph.input if value.name == old]:
            graph.input.remove(declared)


def _add_after(graph: onnx.GraphProto, node: onnx.NodeProto, values: Array) -> None:
    """Add a constant to the output of a node."""
    name, result = f"{node.output[0]}_folded_2", node.output[0]
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    node.output[0] = f"{result}_unbiased"
    place = [*graph.node].index(node) + 1
    graph.node.insert(place, helper.make_node("Add", [node.output[0], name], [result], f"{result}_bias"))


def _bypass(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Remove a node: the readers of its output read its input instead."""
    constants = {initializer.name for initializer in graph.initializer}
    read = next(name for name in node.input if name not in constants)
    for other in graph.node:
        for i, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[i] = read
    graph.node.remove(node)


def _border_note(layer: onnx.NodeProto, levels: NDArray[np.float64], zero_point: int) -> str | None:
    padded = any(_attribute(layer, "pads", [])) or b"SAME" in _attribute(layer, "auto_pad", b"NOTSET")
    if layer.op_type != "Conv" or not padded or np.allclose(levels, zero_point, atol=0.05):
        return None
    before = ", ".join(f"{level:.1f}" for level in _per_channel(levels, 1))
    return (
        f"the border that the first convolution adds reads as pixel value {zero_point} in every channel; "
        f"before folding it read as {before}"
    )


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _refusal(why: str) -> ConfigError:
    return ConfigError(f"--fold-preprocess: the model cannot be folded: {why}")
