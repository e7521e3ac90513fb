"""A model's outputs as its answers have shown them."""

from __future__ import annotations

from dataclasses import replace

from worker.model.probe import Probe
from worker.model.signature import TensorSpec


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
