"""What a detection layout is: which outputs it reads, what speaks against them, and how boxes are read from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError, Reject
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.boxes import Boxes
from worker.postprocess.labels import own_names
from worker.postprocess.selection import numeric_output

HIGHEST_SCORE = 1.01
"""A score is a probability; half precision may round one a little above 1."""
CLASSES_MAX = 1 << 31
"""Largest class number accepted: a larger one in a floating output is an error, and may not be exact."""

Nms = Literal["class", "all", "none"]
Size = tuple[int, int]
"""Height and width of the model's input in pixels."""
Shape = tuple[int | None, ...]
"""Of one item; None = not known."""


class UnfitError(Exception):
    """The model cannot have this layout; the message is the clause that says why."""


class Names(NamedTuple):
    """The number of class names, and who gives them."""

    classes: int
    given_by: str

    @classmethod
    def of(cls, labels: Sequence[str] | None, signature: Signature) -> Names | None:
        if labels is not None:
            return cls(len(labels), "labels")
        found = own_names(signature)
        return cls(len(found), "the model file") if found is not None else None


class Layout(ABC):
    """One way in which a detector's outputs hold boxes.

    Args:
        signature: of the model.
        names: how many classes have names; None if that is not known.
        size: of the model's input; None if it is free.

    Raises:
        UnfitError: the outputs cannot be of this layout.
    """

    described: ClassVar[str]
    nms: ClassVar[Nms] = "class"
    """Which boxes suppress each other unless the settings say otherwise."""
    sized: ClassVar[bool] = False
    """Whether reading needs the size of the model's input."""
    outputs: tuple[str, ...]
    """The outputs that it reads."""

    @abstractmethod
    def __init__(self, signature: Signature, names: Names | None, size: Size | None) -> None: ...

    @abstractmethod
    def read(self, item: Mapping[str, Array], least: float, size: Size | None) -> Boxes:
        """Candidates of one item that score at least ``least``, in pixels of the model's input.

        Args:
            item: the outputs by name, without the batch dimension.

        Raises:
            Reject: the outputs turn out not to be of this layout.
        """

    @abstractmethod
    def against(self, item: Mapping[str, Array]) -> str | None:
        """What the answer to a made-up item has that no answer of this layout has; None if nothing."""

    def masks(self, item: Mapping[str, Array]) -> Array | None:
        """The prototypes that ``Boxes.extra`` combines to one mask for each box, (k, height, width); None without masks."""
        return None


def item_shape(signature: Signature, output: TensorSpec) -> Shape:
    """Shape of one item, from the file or from the answer to a made-up item, without leading dimensions of 1."""
    shape = list(output.shape[1:] if signature.batchable else output.shape)
    # A free dimension may depend on the picture's size: callers use only those of classes, or of numbers per box.
    for answer in signature.shown.answers[:1]:
        answered = answer[output.name].shape[len(output.shape) - len(shape) :]
        if len(answered) == len(shape):
            shape = [known or found for known, found in zip(shape, answered, strict=True)]
    if shape and shape[0] is not None and shape[0] == _fixed_batch(signature):
        shape[0] = 1
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def item_of(signature: Signature, answer: Array) -> Array:
    """The first item of an answer to a made-up item; the whole answer of a model whose output does not follow the batch."""
    counted = signature.batchable or (answer.ndim and len(answer) == _fixed_batch(signature))
    return answer[0] if counted else answer


def _fixed_batch(signature: Signature) -> int | None:
    """The first dimension above 1 that every input is fixed to, of which one item is a part; else None."""
    firsts = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if not signature.batchable and first is not None and first > 1 else None


def matrix_output(signature: Signature, field: str) -> tuple[TensorSpec, int | None, int | None]:
    """The first floating output, with the rows and columns of one item of it.

    Raises:
        ConfigError: an item of it is not a matrix.
    """
    output = numeric_output(signature, field)
    shape = list(output.shape)
    if len(shape) < 2 + signature.batchable:
        raise ConfigError(
            f"{field} needs a matrix per item, but the model's output {output.name!r} has shape {shape}"
        )
    rows, columns = item_shape(signature, output)[-2:]
    return output, rows, columns


def shown(*shape: int | None) -> str:
    return f"an item has shape {['any' if d is None else d for d in shape]}".replace("'", "")


def check_names(classes: int, names: Names | None) -> None:
    """Refuse an output with another number of classes than names."""
    if names is not None and classes != names.classes:
        raise UnfitError(f"{names.given_by} names {names.classes} classes, the output has {classes}")


def matrix(item: Array) -> Array:
    """One item as a matrix of float32 or float64, without leading dimensions of 1.

    Raises:
        Reject: it is not a matrix.
    """
    while item.ndim > 2 and len(item) == 1:
        item = item[0]
    if item.ndim != 2:
        raise Reject(
            f"expected a matrix of candidates, the model gave shape {list(item.shape)}", "model_error"
        )
    return as_floats(item)


def as_floats(values: Array) -> Array:
    """Numbers as float32 or float64: areas would overflow in half precision."""
    return values if values.dtype.kind == "f" and values.dtype.itemsize >= 4 else values.astype(np.float32)


def check_scores(scores: Array, layout: str) -> None:
    """Refuse scores that are no probabilities."""
    if scores.size and scores.max() > HIGHEST_SCORE:
        raise Reject(f"a score of {scores.max():.4g}: the output is not of layout {layout}", "model_error")


def as_classes(numbers: Array) -> Array:
    """Class numbers as integers.

    Raises:
        Reject: a number is beyond any number of classes.
    """
    classes = np.rint(numbers)
    if (np.abs(classes) > CLASSES_MAX).any():
        raise Reject("the model gave a class number beyond any number of classes", "model_error")
    return classes.astype(np.int64)


def odd_scores(scores: Array) -> str | None:
    """Why scores of an answer are no probabilities; None if they may be."""
    if scores.size and (scores.max() > HIGHEST_SCORE or scores.min() < -0.01):
        return (
            f"a score would be {scores.max() if scores.max() > 1 else scores.min():.4g}, not within 0 and 1"
        )
    return None


def odd_classes(numbers: Array, column: str) -> str | None:
    """Why numbers of an answer are no class numbers; None if they may be."""
    if numbers.size and (np.abs(numbers - np.rint(numbers)) > 1e-3).any():
        return f"{column} holds no class numbers"
    return None
