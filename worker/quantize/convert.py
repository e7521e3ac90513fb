"""From a float model to a smaller one: static INT8, dynamic INT8 or FP16."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from worker.batch import Array
from worker.quantize.fold import LAYERS, Folded, fold, image_input, take_bytes

LAYERS_WITH_WEIGHTS = LAYERS | {"ConvTranspose"}
QUANTIZED = [
    *sorted(LAYERS_WITH_WEIGHTS),
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Slice", "Split", "Pad"),
]
"""Operators that run on integers. Operators after the last layer with weights stay in floating point even so."""
IR_VERSION = 10
"""The newest IR version that older runtimes load. A model with a newer version keeps it."""

DYNAMIC_NOTE = (
    "dynamic INT8 takes its range from all pictures of a run, so the worker has to run each record alone, "
    "and it makes convolutions several times slower than float on a CPU; --kind static does neither"
)
FP16_NOTE = "FP16 gains nothing on a CPU, which computes in float32 all the same; it is for providers: [cuda] and [tensorrt]"


def static_int8(model: Path, out: Path, batches: Callable[[], Iterator[Array]]) -> None:
    """QDQ with unsigned activations and signed weights per output channel, calibrated on ``batches``.

    Args:
        batches: the model's inputs to calibrate on, each (n, *item).
    """
    with tempfile.TemporaryDirectory() as folder:
        save(_quantized(simplified(model, Path(folder)), batches, {}), out, model)


def static_int8_from_bytes(
    model: Path,
    out: Path,
    batches: Callable[[], Iterator[NDArray[np.uint8]]],
    prepared: Callable[[int], Array],
) -> str | None:
    """As :func:`static_int8`, with scaling folded into the first layer: the result takes uint8 pixels.

    Args:
        batches: fitted pixels to calibrate on, each (n, *item).
        prepared: pixel value -> a picture of only that value, as the model's input, (1, *item).

    Returns:
        A sentence about the difference that folding makes; None if it is exact.

    Raises:
        ConfigError: the model cannot be folded; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        folded = fold(simplified(model, Path(folder)), prepared)

        def shifted() -> Iterator[Array]:
            return (batch.astype(np.float32) - np.float32(folded.zero_point) for batch in batches())

        made = _quantized(folded.model, shifted, _bytes_as_they_are(folded))
        take_bytes(made, folded)
        save(made, out, model)
        return folded.note


def dynamic_int8(model: Path, out: Path) -> str:
    """Weights in INT8, activations quantised at each run; returns a sentence about the cost of that."""
    with tempfile.TemporaryDirectory() as folder:
        float_model, made = simplified(model, Path(folder)), Path(folder) / "made.onnx"
        quantize_dynamic(float_model, made, weight_type=QuantType.QInt8, per_channel=True)
        save(onnx.load(made), out, model)
    return DYNAMIC_NOTE


def fp16(model: Path, out: Path) -> str:
    """Weights and arithmetic in FP16, inputs and outputs unchanged; returns a sentence about its use."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    save(convert_float_to_float16(onnx.load(model), keep_io_types=True), out, model)
    return FP16_NOTE


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # the runtime has no type hints
    """Calibration inputs in the form that ONNX Runtime reads."""

    def __init__(self, name: str, batches: Iterator[Array]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def simplified(model: Path, folder: Path) -> onnx.ModelProto:
    """Constants folded, batch normalisation fused into convolutions, shapes inferred."""
    path = folder / "simplified.onnx"
    quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    return onnx.load(path)


def _quantized(
    model: onnx.ModelProto, batches: Callable[[], Iterator[Array]], overrides: dict[str, Any]
) -> onnx.ModelProto:
    name_nodes(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            path,
            _Batches(image_input(model.graph).name, batches()),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=tail(model.graph),
            extra_options={
                # The sums of a product have 32 bits. Left unquantised, the model's scores keep their precision.
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": overrides,
            },
        )
        return onnx.load(path)


def _bytes_as_they_are(folded: Folded) -> dict[str, Any]:
    scale, zero_point = np.array(1, np.float32), np.array(folded.zero_point, np.uint8)
    return {folded.tensor: [{"quant_type": QuantType.QUInt8, "scale": scale, "zero_point": zero_point}]}


def tail(graph: onnx.GraphProto) -> list[str]:
    """Nodes that no layer with weights follows: eight bits there would only make the answer less exact."""
    feeds_a_layer: set[str] = set()
    behind = []
    for node in reversed(graph.node):  # a graph is in the order of execution
        if node.op_type in LAYERS_WITH_WEIGHTS or feeds_a_layer.intersection(node.output):
            feeds_a_layer.update(node.input)
        else:
            behind.append(node.name)
    return behind


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a unique name, because nodes are excluded from quantisation by name."""
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"


def save(made: onnx.ModelProto, out: Path, original: Path) -> None:
    """Write to ``out`` atomically, in the oldest format that suffices, without unused operator sets."""
    first = onnx.load(original, load_external_data=False)
    made.ir_version = min(made.ir_version, max(first.ir_version, IR_VERSION))
    used = {node.domain for node in made.graph.node}
    for opset in [opset for opset in made.opset_import if opset.domain not in used | {""}]:
        made.opset_import.remove(opset)
    partial = out.with_name(out.name + ".partial")
    try:
        onnx.save(made, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
