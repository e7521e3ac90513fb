"""What made-up items have shown of a model: its outputs, and what users should know."""

from __future__ import annotations

from dataclasses import replace

import structlog

from worker.model.opening import one_line
from worker.model.probe import Probe
from worker.model.signature import TensorSpec

log = structlog.get_logger()


def as_observed(outputs: tuple[TensorSpec, ...], found: Probe) -> tuple[TensorSpec, ...]:
    """The outputs with what an answer has shown: a declared shape may be wrong, and the runtime reports an unknown rank
    as rank 0."""
    if found.outputs is None:
        return outputs
    return tuple(_observed(spec, found.outputs[spec.name].shape, found.batchable) for spec in outputs)


def _observed(spec: TensorSpec, answered: tuple[int, ...], batchable: bool) -> TensorSpec:
    if len(spec.shape) != len(answered):
        return replace(spec, shape=(None,) * len(answered), names=())
    shape = [
        declared if declared == length else None
        for declared, length in zip(spec.shape, answered, strict=True)
    ]
    if batchable and shape:
        shape[0] = None
    return replace(spec, shape=tuple(shape))


def warn(name: str, found: Probe) -> None:
    """Say in the log what the made-up items showed that users should know."""
    if found.item is None:
        log.warning(
            "the model refuses the made-up warm-up items: records run one at a time",
            model=name,
            reason=one_line(found.refusal),
        )
    elif not found.repeatable:
        log.warning(
            "the model answers the same item differently each time: records run one at a time, its health is not checked",
            model=name,
        )
