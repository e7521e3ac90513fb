"""Train the demo's digit model, set aside the digits it is shown, and train a small model for the example of steps.

    .venv/bin/python scripts/train_digits.py

Reads scikit-learn's 1,797 scanned digits (8x8, grey values 0..16), trains on two thirds of them and writes to
``worker/demo_data/``: ``digits.onnx``, ``digits.txt`` (labels) and ``digits.npz`` (the last third, never trained
on, as 8-bit frames with their true labels). ``examples/digits-small.onnx`` is a linear classifier of the 8 x 8 pixels,
for `examples/escalation.yaml`. The files are committed; the same versions on the same machine give
the same bytes. Hidden size and weight decay were chosen by cross-validation inside the training part.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "worker" / "demo_data"
SMALL = ROOT / "examples" / "digits-small.onnx"
TRAINED_ON = 1198
SIZE = 28
SCALE = np.float32(0.00392157)


def main() -> None:
    digits = load_digits()
    frames = (digits.images * 255 / 16).astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    order = np.random.default_rng(seed=0).permutation(len(frames))
    train, held_out = order[:TRAINED_ON], order[TRAINED_ON:]

    with threadpool_limits(1):  # the sum of a product depends on how many threads share it
        model = MLPClassifier((64,), alpha=0.1, max_iter=400, tol=1e-5, random_state=0)
        model.fit(as_seen(frames[train]).reshape(TRAINED_ON, -1), labels[train])
    accuracy = model.score(as_seen(frames[held_out]).reshape(len(held_out), -1), labels[held_out])

    OUT.mkdir(exist_ok=True)
    layers = [*zip(model.coefs_, model.intercepts_, strict=True)]
    onnx.save(as_onnx(layers, SIZE), OUT / "digits.onnx")
    (OUT / "digits.txt").write_text("".join(f"{digit}\n" for digit in model.classes_))
    np.savez_compressed(OUT / "digits.npz", frames=frames[held_out], labels=labels[held_out])
    print(f"{TRAINED_ON} trained on, {len(held_out)} held out, accuracy on those {accuracy:.2%}")
    train_small(frames, labels, train, held_out)


def train_small(
    frames: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
) -> None:
    """Write the small model: one matrix over the pixels as they are."""
    pixels = frames.reshape(len(frames), -1).astype(np.float32) * SCALE
    with threadpool_limits(1):
        model = LogisticRegression(max_iter=2000).fit(pixels[train], labels[train])
    accuracy = model.score(pixels[held_out], labels[held_out])
    onnx.save(as_onnx([(model.coef_.T, model.intercept_)], 8), SMALL)
    print(f"the small one's accuracy on those {accuracy:.2%}")


def as_seen(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the worker's image preprocessing gives the model: (n, 8, 8) pixels -> (n, 28, 28) in 0..1."""
    resized = [cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for frame in frames]
    return np.stack(resized).astype(np.float32) * SCALE


def as_onnx(layers: list[tuple[NDArray[np.float64], NDArray[np.float64]]], size: int) -> onnx.ModelProto:
    """The network as a graph: ``image`` (n, 1, size, size) float32 -> ``probabilities`` (n, 10) float32."""
    weights = {
        f"{kind}{layer}": np.ascontiguousarray(values, np.float32)
        for layer, pair in enumerate(layers)
        for kind, values in zip(("w", "b"), pair, strict=True)
    }
    nodes = [helper.make_node("Flatten", ["image"], ["pixels"])]
    last = "pixels"
    for layer in range(len(layers) - 1):
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], ["h0"]))
        nodes.append(helper.make_node("Relu", ["h0"], ["h1"]))
        last = "h1"
    end = len(layers) - 1
    nodes.append(helper.make_node("Gemm", [last, f"w{end}", f"b{end}"], ["scores"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, size, size])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    # Both versions are pinned: the onnx package writes newer ones than older runtimes load.
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="streaminfer"
    )
    onnx.checker.check_model(made)
    return made


if __name__ == "__main__":
    main()
