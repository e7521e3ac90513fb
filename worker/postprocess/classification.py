"""Scores per class -> ``{"label", "score", "top": [{"label", "score"}]}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import Field

from worker import native
from worker.batch import Array
from worker.errors import ConfigError, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.labels import Labels, LabelsFrom, check_label_output, check_order, default_names
from worker.postprocess.selection import output_named, vector_output, vectors
from worker.postprocess.thresholds import NumberByLabel, Thresholds
from worker.settings.kinds import Positive, Text
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.classification"
_ARGMAX_UP_TO = 16
"""Up to this ``top_k`` repeated argmax is cheaper than sorting every class (1.6 times at 1,000 classes, 16 wanted)."""

_COMPILED_UP_TO = 64
"""Largest ``top_k`` for the compiled path, which inserts into a sorted list: its cost grows with the square."""


_NOTHING = b'{"label":null,"score":null,"top":[]}'
_LABELLED = b'{"label":%b,"score":%b,"top":[{"label":%b,"score":%b}]}'


class ClassificationSettings(Section):
    """The best classes with their scores."""

    from_: Text | None = Field(default=None, alias="from")
    """The model's output with a score for each class, or the one with each item's label. Default: the first floating output, else the first."""
    labels: Labels | None = None
    """Text file with one label per line, relative to the configuration file; a list of labels; or `{from: <output>}`, an output of the model that holds the label. Default: the names in the model file, else class indices."""
    top_k: Positive = 1
    """How many classes to give."""
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    """Applied to the scores first."""
    threshold: NumberByLabel | None = None
    """A class that scores less is left out; default: none is. One number, or numbers by label with one for the others: `{default: 0.5, person: 0.75}`."""


class Classification:
    """The ``top_k`` best classes of the first floating output (else the first output), best first.

    Equal scores are ordered by class, lower first. A class below ``threshold`` is left out; when none is left,
    ``label`` and ``score`` are null. Integer scores stay integers.
    """

    settings: ClassVar[type[Section]] = ClassificationSettings
    members: ClassVar[Members] = {"label": "text", "score": "number", "top": "list"}

    def __init__(
        self, settings: ClassificationSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        said = settings.from_ if _names_labels(settings, signature) else None
        scores = scores_spec(signature, None if said is not None else settings.from_)
        self._output, classes = scores.name, scores.classes
        self._top_k = settings.top_k
        self._activation = settings.activation
        self._label_output = self._said_by(settings, signature, said)
        if labels is None and self._label_output is None:
            labels = scores.keys or default_names(signature, classes)
        elif labels is not None:
            if classes is not None and classes != len(labels):
                raise ConfigError(
                    f"{_FIELD}.labels names {len(labels)} classes, but the model's output {self._output!r} "
                    f"has {classes}"
                )
            check_order(labels, signature, self._output, f"{_FIELD}.labels")
        given = -math.inf if settings.threshold is None else settings.threshold
        self._thresholds = Thresholds(given, -math.inf, labels, classes, f"{_FIELD}.threshold")
        self._labelled = labels is not None
        self._labels = [orjson.dumps(label) for label in labels or ()]

    def _said_by(
        self, settings: ClassificationSettings, signature: Signature, said: str | None
    ) -> str | None:
        """The output that holds the label, if the settings name one.

        Args:
            said: the output that ``from`` names, if that is the one with the labels.
        """
        if isinstance(settings.labels, LabelsFrom):
            said = settings.labels.from_
            check_label_output(said, signature, f"{_FIELD}.labels")
        if said is None:
            return None
        if settings.top_k != 1:
            raise ConfigError(
                f"{_FIELD}.top_k: got {settings.top_k}, expected 1, because the output "
                f"{said!r} names the best class only"
            )
        if isinstance(settings.threshold, dict):
            raise ConfigError(f"{_FIELD}.threshold: expected one number, because labels come from an output")
        return said

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        scores = activate(vectors(outputs[self._output], count), self._activation)
        if self._label_output is not None:
            return self._as_said(scores, outputs[self._label_output])
        labels = self._labels_for(scores.shape[1])
        k = min(self._top_k, scores.shape[1])
        found: list[bytes | Rejection]
        compiled = 0 < k <= _COMPILED_UP_TO and scores.dtype.char in "fd" and self._thresholds.same_for_all
        if native.records is not None and compiled:
            found = native.records.top(np.ascontiguousarray(scores), labels, k, self._thresholds.least)
        else:
            found = self._best(scores, k, labels)
        for item in rendering.non_finite_items(scores):
            found[item] = rendering.non_finite(self._output, self)
        return found

    def _as_said(self, scores: Array, labels: Array) -> list[bytes | Rejection]:
        """One fragment per row, with the model's own label and the best score."""
        best = scores.max(axis=1)
        names = labels.reshape(len(scores), -1)
        if names.shape[1] != 1:
            raise ValueError(f"expected one label per item in {self._label_output}, got {names.shape[1]}")
        found: list[bytes | Rejection] = [
            _LABELLED % (name, score, name, score) if above else _NOTHING
            for name, score, above in zip(
                map(_label_text, names[:, 0].tolist()),
                rendering.scalars(best),
                (best >= self._thresholds.least).tolist(),
                strict=True,
            )
        ]
        for item in rendering.non_finite_items(scores):
            found[item] = rendering.non_finite(self._output, self)
        return found

    def _best(self, scores: Array, k: int, labels: list[bytes]) -> list[bytes | Rejection]:
        """One fragment per row. A row with a score that is not finite gets an arbitrary one; the caller replaces it."""
        count = len(scores)
        above, classes = self._above(scores, k)
        best = scores[np.arange(count)[:, np.newaxis], classes]
        if above.all():
            return [*_render(classes, best, labels)]
        found: list[bytes | Rejection] = [b""] * count
        kept = above.sum(axis=1)
        for length in set(kept.tolist()):
            rows = np.flatnonzero(kept == length)
            texts = _render(classes[rows, :length], best[rows, :length], labels)
            for row, text in zip(rows.tolist(), texts, strict=True):
                found[row] = text
        return found

    def _above(self, scores: Array, k: int) -> tuple[Array, Array]:
        """The ``k`` best classes of each row, those above their thresholds first, and which are above."""
        if self._thresholds.same_for_all:
            classes = best_classes(scores, k)
            best = scores[np.arange(len(scores))[:, np.newaxis], classes]
            return best >= self._thresholds.least, classes
        least = self._thresholds.of(np.arange(scores.shape[1]))
        passing = np.where(scores >= least, scores.astype(np.float64), -np.inf)
        classes = _in_order(passing)[:, :k]
        return passing[np.arange(len(scores))[:, np.newaxis], classes] > -np.inf, classes

    def _labels_for(self, classes: int) -> list[bytes]:
        """The JSON text of every class's label; the class index as a string without a labels file."""
        if len(self._labels) != classes:
            if self._labelled:
                raise ValueError(
                    f"the model gave {classes} classes, {_FIELD}.labels names {len(self._labels)}"
                )
            self._labels = [b'"%d"' % i for i in range(classes)]
        return self._labels


class ScoresSpec(NamedTuple):
    """The output with the scores."""

    name: str
    classes: int | None
    """None if neither file nor answer shows it."""
    keys: tuple[str, ...]
    """What the output itself calls the classes; empty if it does not."""


def _names_labels(settings: ClassificationSettings, signature: Signature) -> bool:
    """Whether ``from`` names the output with the labels, and another one holds scores."""
    if settings.from_ is None or len(signature.outputs) < 2:
        return False
    spec = output_named(signature, settings.from_, f"{_FIELD}.from")
    scores = any(one.dtype.kind == "f" for one in signature.outputs)
    one_each = all(answer[spec.name].size == 1 for answer in signature.shown.answers)
    return scores and one_each and spec.dtype.kind in "Oiu"


def scores_output(signature: Signature) -> tuple[str, int | None]:
    """Name of the output with the scores, and its number of classes; see :func:`scores_spec`."""
    return scores_spec(signature)[:2]


def scores_spec(signature: Signature, name: str | None = None) -> ScoresSpec:
    """The output with the scores.

    Args:
        name: as configured; None = the first floating output, else the first.

    Raises:
        ConfigError: there is no such output, it holds strings, or an item of it is not a vector, or is a single number.
    """
    output, classes = vector_output(signature, _FIELD, name)
    counts = {vectors(answer[output], 1).shape[1] for answer in signature.shown.answers[:1]}
    classes = classes if classes is not None else next(iter(counts), None)
    if classes == 1:
        raise ConfigError(
            f"{_FIELD} needs a score for each class, but the model's output {output!r} is one number per item; "
            "expected regression, or custom code that makes classes of it"
        )
    keys = next(spec.keys for spec in signature.outputs if spec.name == output)
    return ScoresSpec(output, classes, keys)


def _label_text(label: object) -> bytes:
    return orjson.dumps(label if isinstance(label, str) else str(label))


def activate(scores: Array, activation: str) -> Array:
    """Scores (count, classes) after ``none``, ``softmax`` or ``sigmoid``; float32 or float64 unless ``none``.

    Never raises or warns: infinities that leave no answer become NaN.
    """
    if scores.dtype == bool:
        scores = scores.astype(np.uint8)
    if activation == "none":
        return scores
    # half precision would round small probabilities to 0
    dtype = np.promote_types(scores.dtype, np.float32) if scores.dtype.kind == "f" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scores.astype(dtype, copy=False)
        if activation == "softmax":
            powers = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
            probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
            return probabilities
        # exp of a negative number only: never overflows
        powers = np.exp(-np.abs(scores))
        sigmoid: Array = np.where(np.signbit(scores), powers, 1) / (1 + powers)
        return sigmoid.astype(scores.dtype, copy=False)


def best_classes(scores: Array, k: int) -> Array:
    """Class numbers (count, k) by score descending, the lower class first on a tie."""
    if k == 1:
        best: Array = scores.argmax(axis=1)[:, np.newaxis]
        return best
    if scores.dtype.kind == "f" and k <= _ARGMAX_UP_TO:
        remaining, rows = scores.copy(), np.arange(len(scores))
        best = np.empty((len(scores), k), np.intp)
        for place in range(k):
            best[:, place] = remaining.argmax(axis=1)
            remaining[rows, best[:, place]] = -np.inf
        return best
    return _in_order(scores)[:, :k]


def _in_order(scores: Array) -> Array:
    """All class numbers (count, classes) by score descending, the lower class first on a tie."""
    # A stable ascending sort of the reversed classes, read backwards, has the lower class first on a tie;
    # negating the scores instead would wrap unsigned integers.
    ascending = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    descending: Array = scores.shape[1] - 1 - ascending[:, ::-1]
    return descending


def _render(classes: Array, scores: Array, labels: list[bytes]) -> list[bytes]:
    """One fragment per row of (rows, k) class numbers and scores."""
    rows, k = classes.shape
    if k == 0:
        return [_NOTHING] * rows
    names = np.array(labels, object)[classes.T].tolist()
    texts = rendering.scalars(scores.T)
    top = b",".join([b'{"label":%b,"score":%b}'] * k)
    template = b'{"label":%b,"score":%b,"top":[' + top + b"]}"
    columns = [
        column for place in range(k) for column in (names[place], texts[place * rows : (place + 1) * rows])
    ]
    return list(map(template.__mod__, zip(columns[0], columns[1], *columns, strict=True)))
