"""Chooses the output that a postprocess reads, and gives it its shape."""

from __future__ import annotations

from math import prod

from worker.batch import Array
from worker.errors import ConfigError
from worker.model.signature import Signature, TensorSpec


def output_named(signature: Signature, name: str, key: str) -> TensorSpec:
    """The output of this name.

    Raises:
        ConfigError: the model has none; ``key`` is the setting that names it.
    """
    found = next((spec for spec in signature.outputs if spec.name == name), None)
    if found is None:
        outputs = ", ".join(spec.name for spec in signature.outputs)
        raise ConfigError(f"{key}: the model has no output {name!r}; expected one of {outputs}")
    return found


def numeric_output(signature: Signature, field: str, name: str | None = None) -> TensorSpec:
    """The output of this name; without one the first floating output, else the first one.

    Raises:
        ConfigError: there is no such output, or it holds strings; ``field`` names the postprocess that cannot read it.
    """
    chosen = next((spec for spec in signature.outputs if spec.dtype.kind == "f"), signature.outputs[0])
    if name is not None:
        chosen = output_named(signature, name, f"{field}.from")
    if chosen.dtype == object:
        raise ConfigError(
            f"{field} needs a numeric output, but the model's output {chosen.name!r} holds strings"
        )
    return chosen


def vector_output(signature: Signature, field: str, name: str | None = None) -> tuple[str, int | None]:
    """Name of the numeric output and how many numbers one item of it has; None if the model leaves that free.

    Args:
        name: which output; None = the one that :func:`numeric_output` chooses.

    Raises:
        ConfigError: the output holds strings, or its items are known to have more than one dimension.
    """
    spec = numeric_output(signature, field, name)
    # The only dimension of an unbatched vector is its length.
    item = spec.shape if len(spec.shape) == 1 and not signature.batchable else spec.item_shape
    if sum(d is not None and d > 1 for d in item) > 1:
        raise ConfigError(
            f"{field} needs one vector per item, but the model's output {spec.name!r} has shape {list(spec.shape)}"
        )
    known = [d for d in item if d is not None]
    return spec.name, prod(known) if len(known) == len(item) else None


def vectors(output: Array, count: int) -> Array:
    """One flat vector per item: (count, size). Dimensions of 1 are ignored.

    Raises:
        ValueError: an item has more than one dimension above 1.
    """
    if sum(d > 1 for d in output.shape[1:]) > 1:
        raise ValueError(
            f"expected one vector per item, the model gave items of shape {list(output.shape[1:])}"
        )
    return output.reshape(count, -1)
