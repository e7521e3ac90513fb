"""Dynamic INT8: weights of matrix products in INT8, the range of activations is found in each run."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from worker.optimize.graphs import layers
from worker.optimize.methods import DoesNotApply, Made, Work

QUANTIZED = ["MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"]
"""Convolutions are left out: dynamic INT8 makes them 6 to 10 times slower on a CPU."""


def make(work: Work) -> Iterator[Made]:
    """One model."""
    if not layers(work.base, {"MatMul", "Gemm", "Attention", "LSTM"}):
        raise DoesNotApply("the model has no matrix product with weights")
    path = work.folder / "dynamic.onnx"
    quantize_dynamic(
        work.base, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=QUANTIZED
    )
    yield Made("int8-dynamic", onnx.load(path))
