"""Postprocesses of pictures, called as the encoder calls them: one item at a time, with a picture behind it or none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from encode_support import pipeline, signature

from worker.errors import Rejection
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import Postprocess, postprocess


def picture_signature(
    outputs: Mapping[str, Sequence[Any]], size: Sequence[Any], batchable: bool = True, **shown: Any
) -> Signature:
    """A model of one picture (N, 3, height, width) with these floating outputs, by name and shape of one item."""
    shapes = {name: ("float", ["N", *shape] if batchable else [*shape]) for name, shape in outputs.items()}
    given = TensorSpec.of("x", "tensor(float)", ["N", 3, *size])
    return dataclasses.replace(signature(shapes, batchable, **shown), inputs=(given,))


def step(
    settings: Any, outputs: Mapping[str, Any], size: Sequence[Any], labels: Any = None, **shown: Any
) -> Postprocess:
    """The postprocess for a model with outputs of these arrays' shapes (of one item)."""
    shapes = {name: np.shape(array) for name, array in outputs.items()}
    return postprocess(pipeline(settings).postprocess, picture_signature(shapes, size, **shown), labels)


def predicted(
    settings: Any,
    outputs: Mapping[str, Any],
    size: Sequence[Any] = (64, 64),
    context: Any = None,
    labels: Any = None,
    **shown: Any,
) -> Any:
    """The prediction of one item; (reason, message) where it is refused."""
    one = step(settings, outputs, size, labels, **shown)
    arrays = {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()}
    arrays = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()
    }
    [found] = one.predictions(arrays, 1, [context], False)
    return (found.reason, found.message) if isinstance(found, Rejection) else json.loads(found)  # type: ignore[arg-type]


def fitted(
    height: int, width: int, scale: tuple[float, float] = (1.0, 1.0), offset: tuple[float, float] = (0.0, 0.0)
) -> Any:
    """The geometry of a picture of this size; scale and offset are those of x and y."""
    return SimpleNamespace(
        height=height,
        width=width,
        scale_x=scale[0],
        scale_y=scale[1],
        offset_x=offset[0],
        offset_y=offset[1],
    )


def mask_of(counts: Sequence[int], size: Sequence[int]) -> Any:
    """COCO's counts as a mask, as the documentation tells users to read them."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size, order="F")
