"""Static INT8: weights and activations in INT8, with ranges found on the calibration part."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from worker.optimize.graphs import layers
from worker.optimize.items import Tensors
from worker.optimize.methods import DoesNotApply, Made, Work
from worker.quantize.convert import LAYERS_WITH_WEIGHTS, QUANTIZED, tail

OPSET = 13
"""The oldest operator set with weights quantised for each channel."""


def make(work: Work) -> Iterator[Made]:
    """One model, with every layer in INT8."""
    yield Made("int8-static", calibrated(work).quantized())


def calibrated(work: Work) -> Calibrated:
    """The base model with its ranges, found once.

    Raises:
        DoesNotApply: the model has no layer that runs on integers.
    """
    known: Calibrated | None = work.__dict__.get("calibrated")
    if known is None:
        known = work.__dict__["calibrated"] = calibrate(work.base, work.feeds(), work.folder)
    return known


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A float model with the range of each of its tensors."""

    model: onnx.ModelProto
    ranges: Any
    layers: list[str]
    """Names of its layers with weights, in the order of execution."""
    operators: list[str]
    """What runs on integers."""
    never: list[str]
    """Nodes of these operators that stay in float all the same."""

    def quantized(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """The model in INT8 as quantise and dequantise nodes, weights for each channel; the layers ``in_float`` stay."""
        try:
            return self._made(in_float, {})
        except (
            ValueError
        ):  # onnxruntime 1.32: a bias behind weights of which each channel has its scale, in some Gemm
            return self._made(in_float, {"QDQDisableWeightAdjustForInt32Bias": True})

    def _made(self, in_float: Collection[str], more: dict[str, Any]) -> onnx.ModelProto:
        quantizer = QDQQuantizer(
            copy.deepcopy(self.model),
            True,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            self.ranges,
            [],
            [*self.never, *in_float],
            self.operators,
            # The sums of a product have 32 bits. Left unquantised, the model's scores keep their precision.
            {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"], **more},
        )
        quantizer.quantize_model()
        made: onnx.ModelProto = quantizer.model.model
        return made


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # the runtime has no type hints
    def __init__(self, feeds: Iterable[Tensors]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Tensors | None:
        return next(self._feeds, None)


def calibrate(model: onnx.ModelProto, feeds: Iterable[Tensors], folder: Path) -> Calibrated:
    """Find the smallest and the largest value of each tensor over ``feeds``.

    Args:
        model: with a name for each node.

    Raises:
        DoesNotApply: the model has no layer that runs on integers.
    """
    names = [node.name for node in layers(model, LAYERS_WITH_WEIGHTS)]
    if not names:
        raise DoesNotApply("the model has no convolution and no matrix product with weights")
    if any(opset.domain in ("", "ai.onnx") and opset.version < OPSET for opset in model.opset_import):
        model = onnx.version_converter.convert_version(model, OPSET)
    operators, never = QUANTIZED, tail(model.graph)
    if mixing := _products_of_answers(model, names):
        operators, never = [*sorted(LAYERS_WITH_WEIGHTS), "Gather"], [*never, *mixing]
    path = folder / "to-calibrate.onnx"
    onnx.save(model, path)
    calibrator = create_calibrator(
        path, operators, augmented_model_path=str(folder / "calibrating.onnx"), extra_options={}
    )
    calibrator.collect_data(_Feeds(feeds))
    return Calibrated(model, calibrator.compute_data(), names, operators, never)


def _products_of_answers(model: onnx.ModelProto, with_weights: Collection[str]) -> list[str]:
    """Matrix products without weights, as attention has them. Where there are such, only layers with weights run on integers:
    sums and norms between them lose more than their time is worth (all-MiniLM-L6-v2: cosine 0.76 with them)."""
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in with_weights]
