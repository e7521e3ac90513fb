"""Class scores along a line of text or a piece of speech -> ``{"text", "score"}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import orjson
from pydantic import Field

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.filesystem import LIST_MAX, read_text
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.labels import own_names
from worker.postprocess.layout import HIGHEST_SCORE, item_shape
from worker.postprocess.selection import numeric_output
from worker.settings.kinds import File, Text
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.ctc"


class CtcSettings(Section):
    """The text that a sequence of class scores spells."""

    alphabet: File | Annotated[list[Text], Field(min_length=1)] | None = None
    """Text file with one character (or piece of text) per line, relative to the configuration file; or a list. Default: `character` in the model file's metadata."""
    blank: Annotated[int, Field(ge=-1)] = 0
    """The class that stands for nothing; -1 = the last one."""
    space: bool | Text | None = None
    """Whether a class for the space follows the alphabet; or the entry of the alphabet that stands for a space, such as "|". Default: as the number of classes says."""
    activation: Literal["none", "softmax"] = "none"
    """softmax for a model that gives logits."""


class Ctc:
    """The text of the best class at each step, repeats and blanks left out; the score is the mean of those that are left.

    Reads the first floating output, (steps, classes) per item.
    """

    settings: ClassVar[type[Section]] = CtcSettings
    members: ClassVar[Members] = {"text": "text", "score": "number"}

    def __init__(self, settings: CtcSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        output = numeric_output(signature, _FIELD)
        shape = item_shape(signature, output)
        if len(shape) == 3:  # a model that runs records alone may have its batch in the middle
            shape = tuple(length for length in shape if length != 1)
        if len(shape) != 2:
            raise ConfigError(
                f"{_FIELD} needs [steps, classes] per item, but the model's output {output.name!r} has shape "
                f"{list(output.shape)}"
            )
        self._output, self._softmax = output.name, settings.activation == "softmax"
        alphabet = _alphabet(settings.alphabet, signature)
        classes = shape[1] if shape[1] is not None else len(alphabet) + 1 + (settings.space is True)
        self._texts, self._blank = _texts(alphabet, classes, settings, output.name)
        for answer in signature.shown.answers[:1]:
            self._check_range(answer[output.name])

    def _check_range(self, answer: Array) -> None:
        if self._softmax or not answer.size or not np.isfinite(answer).all():
            return
        if answer.max() > HIGHEST_SCORE or answer.min() < -0.01:
            odd = answer.max() if answer.max() > HIGHEST_SCORE else answer.min()
            raise ConfigError(
                f"{_FIELD}.activation: the model's output {self._output!r} gave {odd:.4g}, not within 0 and 1; expected "
                "softmax"
            )

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        steps = outputs[self._output]
        steps = steps.reshape(count, -1, steps.shape[-1])
        if steps.shape[2] != len(self._texts):
            raise ValueError(
                f"the model gave {steps.shape[2]} classes, {_FIELD} expects {len(self._texts)} with the blank"
            )
        best = steps.argmax(axis=2)
        with np.errstate(invalid="ignore"):  # NaN of items that are refused below
            scores = np.take_along_axis(steps, best[:, :, np.newaxis], 2)[:, :, 0].astype(np.float64)
        if self._softmax:
            for item, row in enumerate(scores):  # one by one: a copy of all scores is not in the byte budget
                row[:] = _softmax_of_best(steps[item], row)
        kept = best != self._blank
        kept[:, 1:] &= best[:, 1:] != best[:, :-1]
        rows, _ = np.nonzero(kept)
        lengths = kept.sum(axis=1)
        with np.errstate(invalid="ignore"):
            means = np.bincount(rows, scores[kept], count) / np.maximum(lengths, 1)
        found = self._render(self._texts[best[kept]].tolist(), lengths.tolist(), means)
        odd = (scores > HIGHEST_SCORE) | (scores < 0)
        for item in np.flatnonzero(odd.any(axis=1)).tolist():
            score = scores[item][odd[item]][0]
            message = f"a score of {score:.4g} is no probability; expected {_FIELD}.activation: softmax"
            found[item] = Rejection.of(Reject(message, "model_error"), "postprocess", self)
        for item in rendering.non_finite_items(steps):
            found[item] = rendering.non_finite(self._output, self)
        return found

    def _render(self, texts: list[str], lengths: list[int], means: Array) -> list[bytes | Rejection]:
        found: list[bytes | Rejection] = []
        start = 0
        for length, mean in zip(lengths, rendering.scalars(means), strict=True):
            text = orjson.dumps("".join(texts[start : start + length]))
            found.append(b'{"text":%b,"score":%b}' % (text, mean))
            start += length
        return found


def _softmax_of_best(steps: Array, best: Array) -> Array:
    """The probability of the best class of each step, whose score is ``best``: e^0 over the sum."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = 1 / np.exp(steps - best[:, np.newaxis].astype(steps.dtype)).sum(
            axis=1, dtype=np.float64
        )
    return found


def _alphabet(given: Path | Sequence[str] | None, signature: Signature) -> list[str]:
    """The characters in their order.

    Raises:
        ConfigError: the file cannot be read, or neither settings nor model say what the classes are.
    """
    if given is None:
        names = own_names(signature)
        if names is None:
            raise ConfigError(
                f"{_FIELD}.alphabet: required, because the model file does not name its characters; expected a text file "
                "with one character per line, or a list"
            )
        return names
    if not isinstance(given, Path):
        return [*given]
    try:
        lines = read_text(given, LIST_MAX, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{_FIELD}.alphabet: {given} cannot be read ({error}); expected a text file with one character per line"
        ) from None
    # a line may be a space: only line ends are no part of a character
    lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ConfigError(f"{_FIELD}.alphabet: {given} is empty; expected one character per line")
    return lines


def _texts(alphabet: list[str], classes: int, settings: CtcSettings, output: str) -> tuple[Array, int]:
    """The text of each class, an array of str, and the class of the blank.

    Raises:
        ConfigError: the alphabet does not make so many classes.
    """
    space, expected = settings.space, "the alphabet and the blank"
    more: tuple[int, ...] = (0, 1, 2)
    if isinstance(space, str):
        if space not in "".join(alphabet):
            raise ConfigError(
                f"{_FIELD}.space: got '{space}', expected a part of the alphabet, or true or false"
            )
        alphabet, more = [entry.replace(space, " ") for entry in alphabet], (0, 1)
    elif space is not None:
        more, expected = ((2,), f"{expected} and the space") if space else ((0, 1), expected)
    added = classes - len(alphabet)
    if added not in more:
        raise ConfigError(
            f"{_FIELD}.alphabet has {len(alphabet)} characters, but the model's output {output!r} has {classes} classes; "
            f"expected {expected}"
        )
    if settings.blank >= classes:
        raise ConfigError(
            f"{_FIELD}.blank: got {settings.blank}, but the model's output {output!r} has {classes} classes"
        )
    blank = classes - 1 if settings.blank == -1 else settings.blank
    texts = [*alphabet, " "] if added == 2 else alphabet
    if added:
        texts = [*texts[:blank], "", *texts[blank:]]
    found = np.empty(classes, object)
    found[:] = texts
    return found, blank
