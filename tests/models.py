"""Tiny ONNX models, one per behaviour a test needs.

Every builder returns the serialised model; :func:`write` puts it into a file. IR version and opset are pinned
because the ``onnx`` package writes newer ones by default than ONNX Runtime loads. The one input is called ``x``
and the one output ``y`` unless a builder says otherwise; ``"N"`` is a free first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSET = 21
Shape = Sequence[int | str | None] | None


def write(folder: Path, model: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model)
    return path


# Plain models


def mlp(features: int = 20, classes: int = 10, hidden: int = 64) -> bytes:
    """float32 (N, features) -> float32 (N, classes): two layers of seeded random weights."""
    random = np.random.default_rng(0)
    first = random.normal(size=(features, hidden), scale=0.3).astype(np.float32)
    second = random.normal(size=(hidden, classes), scale=0.3).astype(np.float32)
    return build(
        [
            helper.make_node("MatMul", ["x", "first"], ["sums"]),
            helper.make_node("Relu", ["sums"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "second"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", features])],
        [tensor("y", np.float32, ["N", classes])],
        {"first": first, "second": second},
    )


def identity(dtype: Any = np.float32, shape: Shape = ("N", 4)) -> bytes:
    """y = x in any dtype (``str`` for string tensors) and shape."""
    return build(
        [helper.make_node("Identity", ["x"], ["y"])], [tensor("x", dtype, shape)], [tensor("y", dtype, shape)]
    )


def add(shape: Shape = ("N", 4)) -> bytes:
    """Two inputs: ``sum`` = ``a`` + ``b``, float32."""
    return build(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [tensor("a", np.float32, shape), tensor("b", np.float32, shape)],
        [tensor("sum", np.float32, shape)],
    )


def two_outputs(shape: Shape = ("N", 4)) -> bytes:
    """Two outputs in this order: ``double`` = 2 x, ``negative`` = -x."""
    return build(
        [helper.make_node("Add", ["x", "x"], ["double"]), helper.make_node("Neg", ["x"], ["negative"])],
        [tensor("x", np.float32, shape)],
        [tensor("double", np.float32, shape), tensor("negative", np.float32, shape)],
    )


def image(channels: int = 3, size: int | None = 28, dtype: Any = np.float32) -> bytes:
    """(N, channels, size, size) -> float32 (N, channels): the mean of each channel."""
    return build(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["y"], keepdims=0),
        ],
        [tensor("x", dtype, ["N", channels, size or "height", size or "width"])],
        [tensor("y", np.float32, ["N", channels])],
        {"axes": np.array([2, 3])},
    )


def rank_0() -> bytes:
    """A scalar in, its double out."""
    return build(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [tensor("x", np.float32, [])],
        [tensor("y", np.float32, [])],
    )


def fixed_batch(size: int, width: int = 4) -> bytes:
    """y = 2 x with the first dimension fixed to ``size``."""
    return build(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [tensor("x", np.float32, [size, width])],
        [tensor("y", np.float32, [size, width])],
    )


def slow(steps: int = 50, width: int = 512) -> bytes:
    """float32 (N, width) through a chain of ``steps`` matrix products; can be interrupted between any two."""
    weights = np.eye(width, dtype=np.float32)
    names = ["x", *(f"step{i}" for i in range(1, steps)), "y"]
    return build(
        [helper.make_node("MatMul", [names[i], "weights"], [names[i + 1]]) for i in range(steps)],
        [tensor("x", np.float32, ["N", width])],
        [tensor("y", np.float32, ["N", width])],
        {"weights": weights},
    )


# Models whose answer for an item depends on its neighbours: never to be run in batches


def centred(dtype: Any = np.float32) -> bytes:
    """y = x - the mean of x over the batch."""
    shape = ["N", 4]
    return build(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["floats", "mean"], ["y"]),
        ],
        [tensor("x", dtype, shape)],
        [tensor("y", np.float32, shape)],
        {"axes": np.array([0])},
    )


def cumulative(dtype: Any = np.float32) -> bytes:
    """y[i] = x[0] + ... + x[i] over the batch."""
    return build(
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        [tensor("x", dtype, ["N", 4])],
        [tensor("y", dtype, ["N", 4])],
        {"axis": np.array(0)},
    )


def softmax_over_batch() -> bytes:
    """y = softmax of x along the batch instead of the classes."""
    return build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
    )


def sorted_over_batch(dtype: Any = np.float32) -> bytes:
    """y = x sorted along the batch."""
    return build(
        [
            helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
            helper.make_node("TopK", ["x", "rows"], ["y", "order"], axis=0, largest=0),
        ],
        [tensor("x", dtype, ["N", 4])],
        [tensor("y", dtype, ["N", 4])],
    )


def total(keepdims: bool = True) -> bytes:
    """y = the sum over the batch: one row however many go in."""
    return build(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=int(keepdims))],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["M", 4] if keepdims else [4])],
        {"axes": np.array([0])},
    )


def dynamic() -> bytes:
    """Scores of 10 classes, behind an input that is quantised over the whole batch; float32 (N, 64, 64)."""
    weights = np.random.default_rng(0).integers(-127, 128, (64 * 64, 10)).astype(np.int8)
    return build(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("DynamicQuantizeLinear", ["flat"], ["bytes", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["bytes", "weights", "zero"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["y"], axis=1),
        ],
        [tensor("x", np.float32, ["N", 64, 64])],
        [tensor("y", np.float32, ["N", 10])],
        {"weights": weights},
    )


def scaled_by_the_batch(last: str = "Softmax") -> bytes:
    """y = softmax of 1,000 x divided by the largest x of the batch: nearly always 0 or 1."""
    return build(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=1),
            helper.make_node("Div", ["x", "most"], ["share"]),
            helper.make_node("Mul", ["share", "thousand"], ["logits"]),
            helper.make_node(last, ["logits"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"axes": np.array([0, 1]), "thousand": np.float32(1000 if last == "Softmax" else 3)},
    )


def normalised_in_training() -> bytes:
    """Batch normalisation with mean and variance of the batch, as a model exported in training mode has it."""
    return build(
        [
            helper.make_node(
                "BatchNormalization",
                ["x", "one", "zero", "zero", "one"],
                ["y", "mean", "variance"],
                training_mode=1,
            )
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)},
    )


def constant_answer() -> bytes:
    """y = 0 x: the same for every item."""
    return build(
        [helper.make_node("Mul", ["x", "zero"], ["y"])],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"zero": np.float32(0)},
    )


def two_counts() -> bytes:
    """Rows of two kinds: ids (batch, 3) and images (num_images, 2), each given back."""
    return build(
        [
            helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["images"], ["z"]),
        ],
        [tensor("ids", np.int64, ["batch", 3]), tensor("images", np.float32, ["num_images", 2])],
        [tensor("y", np.float32, ["batch", 3]), tensor("z", np.float32, ["num_images", 2])],
    )


def recurrent(batch: str = "batch") -> bytes:
    """float32 audio (batch, samples) and state (2, batch, 3): next = state + the sum of the audio."""
    return build(
        [
            helper.make_node("ReduceSum", ["audio", "axes"], ["sum"], keepdims=1),
            helper.make_node("Add", ["state", "sum"], ["next"]),
        ],
        [tensor("audio", np.float32, [batch, "samples"]), tensor("state", np.float32, [2, batch, 3])],
        [tensor("next", np.float32, [2, batch, 3])],
        {"axes": np.array([1])},
    )


def running_sum() -> bytes:
    """float32 x (N, 2) and before (N, 1): y = after = before + the sum of x."""
    return build(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
            helper.make_node("Add", ["before", "sum"], ["after"]),
            helper.make_node("Identity", ["after"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 2]), tensor("before", np.float32, ["N", 1])],
        [tensor("y", np.float32, ["N", 1]), tensor("after", np.float32, ["N", 1])],
        {"axes": np.array([1])},
    )


def linear_classifier(
    classes: Sequence[str] | Sequence[int] = ("a", "b", "c"), names_in_the_operator: bool = True
) -> bytes:
    """``label`` and ``scores`` of float32 (N, 3), as converters of scikit-learn write them; score i is x[i].

    Without names in the operator they are a constant that the best class is looked up in.
    """
    texts = isinstance(classes[0], str)
    outputs = [
        tensor("label", str if texts else np.int64, ["N"]),
        tensor("scores", np.float32, ["N", len(classes)]),
    ]
    if not names_in_the_operator:
        return build(
            [
                helper.make_node("Identity", ["x"], ["scores"]),
                helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
                helper.make_node("Gather", ["classes", "best"], ["label"]),
            ],
            [tensor("x", np.float32, ["N", 3])],
            outputs,
            {"classes": np.array(classes, object if texts else np.int64)},
        )
    named = {"classlabels_strings" if texts else "classlabels_ints": list(classes)}
    return build(
        [
            helper.make_node(
                "LinearClassifier",
                ["x"],
                ["label", "scores"],
                domain="ai.onnx.ml",
                coefficients=np.eye(3, dtype=np.float32).reshape(-1).tolist(),
                intercepts=[0.0, 0.0, 0.0],
                multi_class=1,
                post_transform="NONE",
                **named,
            )
        ],
        [tensor("x", np.float32, ["N", 3])],
        outputs,
    )


def probability() -> bytes:
    """y = one probability for each item: sigmoid of the sum of float32 (N, 2)."""
    return build(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
            helper.make_node("Sigmoid", ["sum"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 2])],
        [tensor("y", np.float32, ["N", "any"])],
        {"axes": np.array([1])},
    )


def detector(
    head: np.ndarray, metadata: dict[str, str] | None = None, masks: bool = False, little: float = 1e-4
) -> bytes:
    """uint8 pictures (N, 32, 32, 3) -> ``head`` + the picture's mean, of which 255 counts as ``little``."""
    size = list(head.shape)
    outputs = [tensor("boxes", np.float32, ["N", *size])]
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "little"], ["trace"]),
        helper.make_node("Reshape", ["trace", "column"], ["columns"]),
        helper.make_node("Add", ["columns", "head"], ["boxes"]),
    ]
    if masks:
        nodes.append(helper.make_node("Identity", ["floats"], ["masks"]))
        outputs.append(tensor("masks", np.float32, ["N", 32, 32, 3]))
    model = onnx.load_from_string(
        build(
            nodes,
            [tensor("x", np.uint8, ["N", 32, 32, 3])],
            outputs,
            {
                "axes": np.array([1, 2, 3]),
                "little": np.float32(little / 255),
                "column": np.array([-1, 1, 1]),
                "head": head[np.newaxis].astype(np.float32),
            },
        )
    )
    helper.set_model_props(model, metadata or {})
    return bytes(model.SerializeToString())


def coupled_above(limit: float) -> bytes:
    """y = x / the batch's largest x, or / ``limit`` if that is larger: items mix only beyond the limit."""
    return build(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=1),
            helper.make_node("Max", ["most", "limit"], ["divisor"]),
            helper.make_node("Div", ["x", "divisor"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"axes": np.array([0, 1]), "limit": np.float32(limit)},
    )


# Models that keep items apart, although it does not look like it


def best_class() -> bytes:
    """Label and scores of 3 classes; the file declares the label as one row, and it has N."""
    return build(
        [
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
            helper.make_node("Softmax", ["x"], ["scores"]),
        ],
        [tensor("x", np.float32, ["N", 3])],
        [tensor("label", np.int64, [1]), tensor("scores", np.float32, ["N", 3])],
    )


def add_of_two_names() -> bytes:
    """``sum`` = ``a`` + ``b``; the one batch has a name of its own in each input."""
    return build(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [tensor("a", np.float32, ["unknown_1", 4]), tensor("b", np.float32, ["unknown_2", 4])],
        [tensor("sum", np.float32, ["unknown_3", 4])],
    )


def leaky() -> bytes:
    """y = x + a millionth of the batch's largest x: less than any tolerance."""
    return build(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=1),
            helper.make_node("Clip", ["most", "", "one"], ["limited"]),
            helper.make_node("Mul", ["limited", "little"], ["leak"]),
            helper.make_node("Add", ["x", "leak"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"axes": np.array([0, 1]), "little": np.float32(1e-6), "one": np.float32(1)},
    )


def of_length(length: int) -> bytes:
    """float32 (N, any) -> (N, 2); only ``length`` numbers fit."""
    return build(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        [tensor("x", np.float32, ["N", "any"])],
        [tensor("y", np.float32, ["N", 2])],
        {"weights": np.arange(2 * length, dtype=np.float32).reshape(length, 2)},
    )


def parsed_text() -> bytes:
    """Strings (N, 2) -> the float32 numbers that they say."""
    return build(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [tensor("x", str, ["N", 2])],
        [tensor("y", np.float32, ["N", 2])],
    )


# Models that fail, or give what cannot be published


def refuses_small_ids() -> bytes:
    """int64 ids (N,) -> float32 (N, 2): only ids 5 to 14 exist, so made-up zeros and ones are refused."""
    return build(
        [
            helper.make_node("Sub", ["x", "first"], ["row"]),
            helper.make_node("Gather", ["table", "row"], ["y"]),
        ],
        [tensor("x", np.int64, ["N"])],
        [tensor("y", np.float32, ["N", 2])],
        {"first": np.array(10), "table": np.arange(10, dtype=np.float32).reshape(5, 2)},
    )


def raises_on(mark: float = 666.0) -> bytes:
    """y = 2 x, float32 (N, 4); the whole run fails when any element equals ``mark``."""
    return build(
        [
            helper.make_node("Equal", ["x", "mark"], ["marked"]),
            helper.make_node("Cast", ["marked"], ["ones"], to=TensorProto.INT64),
            helper.make_node("Mul", ["ones", "far"], ["row"]),
            helper.make_node("Gather", ["table", "row"], ["zeros"]),
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("Add", ["double", "zeros"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"mark": np.float32(mark), "far": np.array(100), "table": np.zeros(1, dtype=np.float32)},
    )


def raises_above(rows: int) -> bytes:
    """y = x, float32 (N, 4); a batch of more than ``rows`` rows fails."""
    return build(
        [
            helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
            helper.make_node("Sub", ["count", "one"], ["last"]),
            helper.make_node("Gather", ["table", "last"], ["zero"]),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
        {"one": np.array([1]), "table": np.zeros(rows, dtype=np.float32)},
    )


def logarithm() -> bytes:
    """y = log x, float32 (N, 4): NaN for negative numbers, -infinity for zero."""
    return build(
        [helper.make_node("Log", ["x"], ["y"])],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
    )


def noise() -> bytes:
    """y = x + random noise: never the same answer twice."""
    return build(
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        [tensor("x", np.float32, ["N", 4])],
        [tensor("y", np.float32, ["N", 4])],
    )


def zipmap() -> bytes:
    """What scikit-learn converters give by default: the output ``probabilities`` is a sequence of maps."""
    probabilities = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    return build(
        [
            helper.make_node(
                "ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
            )
        ],
        [tensor("x", np.float32, ["N", 2])],
        [helper.make_value_info("probabilities", probabilities)],
    )


def sequence() -> bytes:
    """An output that is a sequence of tensors, which the worker cannot read."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return build(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [tensor("x", np.float32, ["N", 2])],
        [helper.make_value_info("y", kind)],
    )


def external(folder: Path, name: str = "model.onnx") -> Path:
    """A linear layer, float32 (N, 4) -> (N, 3), whose ``weights`` lie in b.bin and ``bias`` in a.bin beside it."""
    model = onnx.load_from_string(
        build(
            [helper.make_node("Gemm", ["x", "weights", "bias"], ["y"])],
            [tensor("x", np.float32, ["N", 4])],
            [tensor("y", np.float32, ["N", 3])],
            {
                "weights": np.arange(12, dtype=np.float32).reshape(4, 3),
                "bias": np.arange(3, dtype=np.float32),
            },
        )
    )
    for initializer, location in zip(model.graph.initializer, ("b.bin", "a.bin"), strict=True):
        (folder / location).write_bytes(initializer.raw_data)
        onnx.external_data_helper.set_external_data(initializer, location)
        initializer.ClearField("raw_data")
    return write(folder, model.SerializeToString(), name)


# Parts


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, Any] | None = None,
    *,
    ir_version: int = IR_VERSION,
    opset: int = OPSET,
) -> bytes:
    """A serialised model of these nodes; ``constants`` become initializers."""
    initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, initializers),
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    return model.SerializeToString()


def tensor(name: str, dtype: Any, shape: Shape) -> onnx.ValueInfoProto:
    """Declares an input or output; a string in ``shape`` is a free dimension, a ``None`` shape an unknown rank."""
    kind = TensorProto.STRING if dtype is str else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
