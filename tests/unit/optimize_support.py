"""Small networks for the tests of `optimize`, and what ONNX Runtime itself answers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from worker.batch import Array
from worker.optimize.items import Item
from worker.optimize.methods import Work

RANDOM = np.random.default_rng(5)


def answers(model: onnx.ModelProto | Path, x: Array, name: str = "x") -> Array:
    """The first output, as ONNX Runtime gives it."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: x})[0])


def work_of(
    model: bytes, folder: Path, x: Array, max_loss: float = 0.01, loss: Any = None, seed: int = 0
) -> Work:
    """What a method gets: the rows of ``x`` calibrate; the loss is the mean squared error relative to the answers."""
    path = models.write(folder, model)
    wanted = answers(path, x)

    def squared(candidate: onnx.ModelProto) -> float:
        return float(((answers(candidate, x) - wanted) ** 2).sum() / (wanted**2).sum())

    items = [Item(str(i), {"x": x[i : i + 1]}) for i in range(len(x))]
    return Work(path, items, {}, loss or squared, max_loss, seed, folder)


def weights(*shape: int, scale: float = 1.0) -> Array:
    fan_in = int(np.prod(shape[1:])) or 1
    return (RANDOM.normal(size=shape) * scale / fan_in**0.5).astype(np.float32)


def repeated(*shape: int, distinct: int) -> Array:
    """Weights of a layer with ``shape[0]`` channels of which only ``distinct`` differ."""
    return np.ascontiguousarray(weights(*shape)[np.arange(shape[0]) % distinct])


def branching() -> bytes:
    """A network of 16, 16 and 24 channels, of which 4 each differ: batch norm, depthwise, Concat, Flatten, Gemm."""
    norm = {
        "scale": np.full(16, 0.8, np.float32),
        "shift": np.full(16, 0.1, np.float32),
        "mean": np.zeros(16, np.float32),
        "var": np.ones(16, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, name="first"),
        helper.make_node("BatchNormalization", ["a", *norm], ["b"], name="norm"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Conv", ["c", "dw", "db"], ["d"], group=16, pads=[1] * 4, name="depthwise"),
        helper.make_node("Conv", ["d", "w1", "b1"], ["e"], name="left"),
        helper.make_node("Conv", ["d", "w2"], ["f"], pads=[1] * 4, strides=[1, 1], name="right"),
        helper.make_node("Concat", ["e", "f"], ["g"], axis=1, name="both"),
        helper.make_node("Relu", ["g"], ["h"], name="relu2"),
        helper.make_node("MaxPool", ["h"], ["i"], kernel_shape=[3, 3], strides=[3, 3], name="pool"),
        helper.make_node("Flatten", ["i"], ["j"], name="flat"),
        helper.make_node("Gemm", ["j", "w3", "b3"], ["y"], transB=1, name="last"),
    ]
    initializers = {
        "w0": repeated(16, 2, 3, 3, distinct=4),
        **norm,
        "dw": np.ascontiguousarray(np.broadcast_to(weights(1, 1, 3, 3), (16, 1, 3, 3))),
        "db": np.full(16, 0.05, np.float32),
        "w1": repeated(16, 16, 1, 1, distinct=4),
        "b1": np.full(16, 0.2, np.float32),
        "w2": repeated(24, 16, 3, 3, distinct=4),
        "w3": weights(5, 40 * 4),
        "b3": weights(5),
    }
    inputs = [models.tensor("x", np.float32, ["N", 2, 6, 6])]
    return models.build(nodes, inputs, [models.tensor("y", np.float32, ["N", 5])], initializers)


def residual() -> bytes:
    """Two convolutions of 16 channels inside a residual sum: those in the sum cannot be cut, the one inside can."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="stem"),
        helper.make_node("Conv", ["a", "w1"], ["b"], name="inside"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="closing"),
        helper.make_node("Add", ["a", "d"], ["e"], name="sum"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], name="pool"),
        helper.make_node("Flatten", ["f"], ["g"], name="flat"),
        helper.make_node("MatMul", ["g", "w3"], ["y"], name="last"),
    ]
    initializers = {
        "w0": weights(16, 3, 1, 1),
        "w1": repeated(16, 16, 1, 1, distinct=3),
        "w2": weights(16, 16, 1, 1),
        "w3": weights(16, 4),
    }
    inputs = [models.tensor("x", np.float32, ["N", 3, 4, 4])]
    return models.build(nodes, inputs, [models.tensor("y", np.float32, ["N", 4])], initializers)


def with_an_outlier() -> bytes:
    """Three matrix products; the middle one has inputs of which one is 3,000 times as large and weighs nothing."""
    first = weights(16, 16)
    first[:, 0] *= 3000
    second = weights(16, 16)
    second[0] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "second"], ["b"], name="two"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "third"], ["y"], name="three"),
    ]
    initializers = {"first": first, "second": second, "third": weights(16, 6)}
    inputs = [models.tensor("x", np.float32, ["N", 16])]
    return models.build(nodes, inputs, [models.tensor("y", np.float32, ["N", 6])], initializers)


def products(size: int = 300, gemm: bool = False) -> bytes:
    """A matrix product of ``size`` x ``size``, and a small one behind it."""
    first = (
        helper.make_node("Gemm", ["x", "large", "bias"], ["a"], alpha=0.5, transB=1, name="one")
        if gemm
        else helper.make_node("MatMul", ["x", "large"], ["a"], name="one")
    )
    nodes = [first, helper.make_node("Relu", ["a"], ["b"]), helper.make_node("MatMul", ["b", "small"], ["y"])]
    initializers = {"large": weights(size, size), "small": weights(size, 6)}
    if gemm:
        initializers["bias"] = weights(size)
    inputs = [models.tensor("x", np.float32, ["N", size])]
    return models.build(nodes, inputs, [models.tensor("y", np.float32, ["N", 6])], initializers)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def shape_of(model: onnx.ModelProto, node: str) -> list[int]:
    """The shape of a layer's weights."""
    found = next(each for each in model.graph.node if each.name == node)
    return next([*tensor.dims] for tensor in model.graph.initializer if tensor.name == found.input[1])


FLOAT = TensorProto.FLOAT
