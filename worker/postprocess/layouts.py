"""Checks whether a model's output can have a detection layout, by shapes, metadata and answers to made-up items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worker.errors import ConfigError
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.labels import own_names

_FIELD = "postprocess.detection"
_DESCRIBED = {"yolov8": "[4 + classes, boxes]", "xyxy": "[boxes, 6]"}
_BOX, _XYXY_COLUMNS = 4, 6
HIGHEST_SCORE = 1.01
"""A score is a probability; half precision may round one a little above 1."""

Shape = tuple[int | None, int | None]
"""Rows and columns of one item; None = not known."""


def check_layout(signature: Signature, output: TensorSpec, layout: str, labels: Sequence[str] | None) -> None:
    """Refuse at start an output that cannot have the configured layout.

    Raises:
        ConfigError: names the contradiction and the layout that would fit.
    """
    metadata = signature.shown.metadata
    task = metadata.get("task", "detect")
    if task != "detect":
        raise ConfigError(f"{_FIELD}: the model's metadata say task {task}; expected detect, or custom code")
    known = _known_shape(signature, output)
    against = _against(layout, known, names := _Names.of(labels, signature)) or _by_answer(
        signature, output, layout
    )
    if layout == "yolov8" and metadata.get("end2end", "").lower() == "true":
        against = against or "the model's metadata say end2end: it gives boxes with score and class"
    if layout == "yolov8" and any(len(spec.shape) == 4 for spec in signature.outputs):
        against = against or "another output has 4 dimensions, as masks do: a segmentation model"
    if against is None:
        return
    others = [name for name in _DESCRIBED if name != layout and _against(name, known, names) is None]
    others = [name for name in others if _by_answer(signature, output, name) is None]
    expected = (
        f"layout {others[0]} ({_DESCRIBED[others[0]]}) would fit"
        if others and None not in known
        else f"expected an output of {' or '.join(f'{name} ({shape})' for name, shape in _DESCRIBED.items())}, "
        "or custom code"
    )
    raise ConfigError(
        f"{_FIELD}.layout {layout} does not fit the model's output {output.name!r}: {against}; {expected}"
    )


class _Names(NamedTuple):
    """The number of class names, and who gives them."""

    classes: int
    given_by: str

    @classmethod
    def of(cls, labels: Sequence[str] | None, signature: Signature) -> _Names | None:
        if labels is not None:
            return cls(len(labels), "labels")
        found = own_names(signature)
        return cls(len(found), "the model file") if found is not None else None


def _known_shape(signature: Signature, output: TensorSpec) -> Shape:
    """Rows and columns of one item, from the file or from an answer.

    Raises:
        ConfigError: an item is not a matrix.
    """
    shape = list(output.shape)
    if len(shape) < 2 + signature.batchable:
        raise ConfigError(
            f"{_FIELD} needs a matrix per item, but the model's output {output.name!r} has shape {shape}"
        )
    rows, columns = shape[-2:]
    # A free dimension may depend on the picture's size: callers use only the one of classes, or of numbers per box.
    for answer in signature.shown.answers[:1]:
        answered = answer[output.name].shape[-2:]
        if len(answered) == 2:
            rows, columns = rows or answered[0], columns or answered[1]
    return rows, columns


def _against(layout: str, shape: Shape, names: _Names | None) -> str | None:
    """The contradiction between a shape and a layout; None if there is none."""
    rows, columns = shape
    shown = f"an item has shape {['any' if d is None else d for d in shape]}".replace("'", "")
    if layout == "xyxy":
        return None if columns in (None, _XYXY_COLUMNS) else f"{shown}, not 6 columns"
    if rows is None:
        return None
    if rows <= _BOX:
        return f"{shown}, not 4 + classes rows"
    if names is not None:
        if rows - _BOX == names.classes:
            return None
        return f"{names.given_by} names {names.classes} classes, the output has {rows - _BOX}"
    if columns is not None and rows > columns:
        return f"{shown}, more rows than boxes"
    return None


def _by_answer(signature: Signature, output: TensorSpec, layout: str) -> str | None:
    """The contradiction between the answer to a made-up item and a layout; None if there is none."""
    for answer in signature.shown.answers[:1]:
        values = answer[output.name]
        item = values.reshape(-1, *values.shape[-2:])[0] if values.ndim >= 2 else values
        if item.ndim != 2 or not item.size or not np.isfinite(item).all():
            continue
        if layout == "yolov8":
            scores = item[_BOX:]
        elif item.shape[1] == _XYXY_COLUMNS:
            scores = item[:, 4]
            classes = item[:, 5]
            if (np.abs(classes - np.rint(classes)) > 1e-3).any():
                return "the sixth column holds no class numbers"
        else:
            continue
        if scores.size and (scores.max() > HIGHEST_SCORE or scores.min() < -0.01):
            return f"a score would be {scores.max() if scores.max() > 1 else scores.min():.4g}, not within 0 and 1"
    return None
