"""Mixed precision: static INT8 in which the layers that lose most stay in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worker.optimize.graphs import outputs_of
from worker.optimize.methods import DoesNotApply, Made, Work
from worker.optimize.static import calibrated

ITEMS = 32
"""Calibration items that each layer's loss is measured on."""
MARGIN = 0.7
"""Share of ``--max-loss`` that may be lost on the calibration part: the held-out part may lose more."""


def make(work: Work) -> Iterator[Made]:
    """One model: as few layers in float as keep the loss on the calibration part.

    Each layer is quantised alone, and the error of the outputs is measured; the layers with the largest errors stay in
    float: one, two, four and so on, then the fewest between the last two.
    """
    found = calibrated(work)
    allowed = work.max_loss * MARGIN
    if work.loss(found.quantized()) <= allowed:
        raise DoesNotApply(
            "INT8 in every layer keeps the loss on the calibration part: no layer has to stay in float"
        )
    errors = layer_errors(work)
    worst_first = sorted(errors, key=lambda name: -errors[name])
    made = {}

    def keeps(count: int) -> bool:
        made[count] = found.quantized(worst_first[:count])
        return work.loss(made[count]) <= allowed

    low, count = 0, 1
    while count < len(worst_first) and not keeps(count):
        low, count = count, 2 * count
    if count >= len(worst_first):
        raise DoesNotApply(f"it loses too much even with {low} of {len(worst_first)} layers in float")
    while count - low > 1:
        middle = (low + count) // 2
        low, count = (low, middle) if keeps(middle) else (middle, count)
    operators = {node.name: node.op_type for node in found.model.graph.node}
    shown = ", ".join(f"{operators[name]} {name}" for name in worst_first[: min(count, 3)])
    more = f" and {count - 3} more" if count > 3 else ""
    yield Made("int8-mixed", made[count], f"{count} of {len(worst_first)} layers in float: {shown}{more}")


def layer_errors(work: Work) -> dict[str, float]:
    """For each layer, the squared error of the outputs relative to their squares when it alone is in INT8."""
    found = calibrated(work)
    feeds = [*work.feeds(ITEMS)]
    original = outputs_of(found.model, feeds)
    errors = {}
    for layer in found.layers:
        made = outputs_of(found.quantized([name for name in found.layers if name != layer]), feeds)
        pairs = [
            (a.astype(np.float64), b) for a, b in zip(original, made, strict=True) if a.dtype.kind == "f"
        ]
        scale = sum(float((a * a).sum()) for a, _ in pairs)
        errors[layer] = sum(float(((a - b) ** 2).sum()) for a, b in pairs) / max(scale, 1e-30)
    return errors
