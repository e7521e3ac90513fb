"""A network with ResNet-50's layers and random weights, in half precision, that takes a camera's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

IR_VERSION, OPSET = 10, 21
SIDE, CLASSES = 224, 1000
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width of the 3x3 convolutions, blocks, and stride of the first block."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def write(path: Path, side: int = SIDE) -> Path:
    """uint8 (N, side, side, 3) -> float16 (N, 1000); normalisation is part of the graph, as are batch norms' scales."""
    network = _Network()
    network.node("Cast", ["frames"], "pixels", to=TensorProto.FLOAT16)
    network.node("Sub", ["pixels", network.weight("mean", np.array(MEAN))], "centred")
    network.node("Mul", ["centred", network.weight("scale", 1 / np.array(STD))], "scaled")
    network.node("Transpose", ["scaled"], "nchw", perm=[0, 3, 1, 2])
    top, channels = network.convolution("nchw", 3, 64, 7, 2), 64
    top = network.node("MaxPool", [top], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for width, blocks, stride in STAGES:
        for index in range(blocks):
            top = network.block(top, channels, width, stride if index == 0 else 1)
            channels = 4 * width
    top = network.node("GlobalAveragePool", [top], "means")
    top = network.node("Flatten", [top], "features")
    weights = network.weight("classes", network.random((channels, CLASSES), channels))
    network.node("MatMul", [top, weights], "scores")
    graph = helper.make_graph(
        network.nodes,
        "resnet50",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT16, ["N", CLASSES])],
        network.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    save(model, path)
    return path


class _Network:
    def __init__(self) -> None:
        self.nodes: list[object] = []
        self.weights: list[object] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(np.float16), name))
        return name

    def random(self, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return self._random.normal(0, (2 / fan_in) ** 0.5, shape)

    def convolution(
        self, source: str, channels: int, width: int, kernel: int, stride: int, relu: bool = True
    ) -> str:
        name = f"conv{len(self.weights)}"
        weights = self.random((width, channels, kernel, kernel), channels * kernel * kernel)
        if not relu:
            weights *= 0.3  # sums of many blocks stay within half precision
        inputs = [
            source,
            self.weight(f"{name}.weights", weights),
            self.weight(f"{name}.bias", self._random.normal(0, 0.1, width)),
        ]
        pad = kernel // 2
        self.node("Conv", inputs, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        return self.node("Relu", [name], f"{name}.relu") if relu else name

    def block(self, source: str, channels: int, width: int, stride: int) -> str:
        top = self.convolution(source, channels, width, 1, 1)
        top = self.convolution(top, width, width, 3, stride)
        top = self.convolution(top, width, 4 * width, 1, 1, relu=False)
        if channels != 4 * width:
            source = self.convolution(source, channels, 4 * width, 1, stride, relu=False)
        self.node("Add", [top, source], f"{top}.sum")
        return self.node("Relu", [f"{top}.sum"], f"{top}.out")
