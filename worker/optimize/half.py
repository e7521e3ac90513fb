"""Weights and arithmetic in FP16; inputs and outputs stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from onnxruntime.transformers.float16 import convert_float_to_float16

from worker.optimize.graphs import float_weights
from worker.optimize.methods import DoesNotApply, Made, Work


def make(work: Work) -> Iterator[Made]:
    """One model."""
    if not float_weights(work.original):
        raise DoesNotApply("the model has no float32 weights")
    yield Made("fp16", convert_float_to_float16(copy.deepcopy(work.original), keep_io_types=True))
