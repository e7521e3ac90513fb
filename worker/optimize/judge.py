"""How much a candidate's answers are worth beside the original's: one number for each item, and what it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from worker.batch import Array, Run
from worker.encode import Encoder
from worker.model.session import Model
from worker.optimize.items import Item, Tensors

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

RUN_ITEMS = 8
"""Items per run when answers are compared, where the worker may run items together."""
SAME_BOX = 0.5
"""Two boxes of one label are the same object from this intersection over union on."""

Compare = Callable[[Any, Any], float]
"""The original's answer to one item and a candidate's -> 0 (another answer) to 1 (the same)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one model's answers are worth; each figure from 0 to 1, None if there is no such figure."""

    accuracy: float | None
    """Share of items whose best class is the true one."""
    agreement: float
    """Mean over the items of what the judge says about the answer beside the original's."""
    similarity: float
    """Cosine between the first output and the original's, mean over the items."""


class Judge:
    """Compares models with the original; it keeps the original's answers.

    Args:
        original: what everything is compared with.
        settings: the pipeline whose postprocess says what an answer means; None: the outputs say it.
        encoder: makes predictions of outputs, for a pipeline with records; None: there is none.
    """

    def __init__(
        self, original: Model, settings: PipelineSettings | None = None, encoder: Encoder | None = None
    ) -> None:
        self._original, self._encoder = original, encoder
        self._known: dict[int, tuple[Sequence[Item], list[Tensors], list[Any]]] = {}
        self._output = _class_output(original, settings)
        name = settings.postprocess.name if settings is not None else ""
        self._numbers = name in NUMBERS
        self._read: Callable[[Item, Tensors], Any] = lambda item, outputs: outputs[self._output]
        if name in PREDICTIONS and encoder is not None and original.fixed_batch is None:
            self.kind, self._compare = PREDICTIONS[name]
            self._read = self._prediction
        else:
            self.kind, self._compare = "", cosine

    def score(self, model: Model, items: Sequence[Item]) -> Score:
        """The figures of ``model`` over ``items``.

        Raises:
            Exception: whatever the runtime raises.
        """
        reference, readings = self._reference(items)
        answers = reference if model is self._original else answer(model, items)
        agreements, similarities, right, labelled = [], [], 0, 0
        for item, theirs, reading, ours in zip(items, reference, readings, answers, strict=True):
            agreements.append(_each(self._compare, reading, self._read(item, ours)))
            similarities.append(cosine(theirs[self._output], ours[self._output]))
            if item.label is not None and is_scores(ours[self._output]):
                labelled += 1
                right += best_class(ours[self._output]) == item.label
        accuracy = right / labelled if labelled else None
        return Score(accuracy, float(np.mean(agreements)), float(np.mean(similarities)))

    def loss(self, score: Score, original: Score) -> float:
        """What a candidate loses: accuracy if the true classes are known, else agreement with the original."""
        if score.accuracy is not None and original.accuracy is not None:
            return original.accuracy - score.accuracy
        return 1.0 - score.agreement

    def original_score(self, items: Sequence[Item]) -> Score:
        return self.score(self._original, items)

    def _reference(self, items: Sequence[Item]) -> tuple[list[Tensors], list[Any]]:
        if id(items) not in self._known:
            answers = answer(self._original, items)
            if not self.kind:
                self._settle(answers)
            readings = [self._read(item, outputs) for item, outputs in zip(items, answers, strict=True)]
            self._known[id(items)] = items, answers, readings
        _, answers, readings = self._known[id(items)]
        return answers, readings

    def _settle(self, answers: Sequence[Tensors]) -> None:
        """What the outputs mean, where no postprocess says it: scores of classes, one number, or numbers of any kind."""
        outputs = [each[self._output] for each in answers]
        alike = len({output.shape for output in outputs}) == 1 and outputs[0].dtype.kind == "f"
        if alike and (self._numbers or outputs[0].size == 1):
            self.kind, self._compare = "R2", explained(outputs)
        elif all(map(is_scores, outputs)):
            self.kind, self._compare = "same best class", same_class
        else:
            self.kind, self._compare = "cosine", cosine

    def _prediction(self, item: Item, outputs: Tensors) -> Any:
        """The pipeline's own prediction; None where it has none."""
        assert self._encoder is not None
        assert item.batch is not None
        rows = len(next(iter(item.feeds.values())))
        alone = not self._original.signature.batchable
        run = Run(range(1), outputs, counts=None if alone or rows == 1 else [rows], alone=alone)
        fragment = self._encoder.predict(item.batch, run)[0]
        return orjson.loads(fragment) if isinstance(fragment, bytes) else None


def _each(compare: Compare, ours: Any, theirs: Any) -> float:
    """The mean over the windows of a record, where it has several."""
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return compare(ours, theirs)
    if len(ours) != len(theirs) or not ours:
        return float(ours == theirs)
    return float(np.mean([compare(a, b) for a, b in zip(ours, theirs, strict=True)]))


def answer(model: Model, items: Sequence[Item]) -> list[Tensors]:
    """The outputs for each item, each with a batch dimension of 1, or of what the model fixes it to."""
    answers: list[Tensors] = []
    together = RUN_ITEMS if model.signature.batchable else 1
    start = 0
    while start < len(items):
        stop = start + 1
        while stop < min(start + together, len(items)) and items[stop].shapes == items[start].shapes:
            stop += 1
        part = items[start:stop]
        outputs = model.run(joined(part))
        if model.fixed_batch:
            outputs = {name: output[:1] for name, output in outputs.items()}
        rows = np.cumsum([0, *(len(next(iter(item.feeds.values()))) for item in part)])
        for first, last in pairwise(rows):
            one = outputs if len(part) == 1 else {k: v[first:last].copy() for k, v in outputs.items()}
            answers.append(one)
        start = stop
    return answers


def joined(items: Sequence[Item]) -> Tensors:
    """Items of one shape as the feeds of one run."""
    if len(items) == 1:
        return items[0].feeds
    return {name: np.concatenate([item.feeds[name] for item in items]) for name in items[0].feeds}


def is_scores(output: Array) -> bool:
    """Whether an answer is one number for each of several classes."""
    return output.dtype.kind in "fiu" and max(output.shape[1:], default=0) == output.size > 1


def best_class(output: Array) -> int:
    return int(np.argmax(np.nan_to_num(output.astype(np.float64).reshape(-1), nan=-np.inf)))


def same_class(ours: Array, theirs: Array) -> float:
    """1 if both have the same best class, and the second is finite where the first is; else 0."""
    return float(
        bool((np.isfinite(ours) == np.isfinite(theirs)).all()) and best_class(ours) == best_class(theirs)
    )


def cosine(ours: Any, theirs: Any) -> float:
    """Cosine between two answers as vectors; 1 if they are equal, 0 if one is not finite or they differ in shape."""
    if ours is None or theirs is None:
        return float(ours is theirs)
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return float(np.array_equal(a, b))
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    if a.shape != b.shape or not (np.isfinite(b).all() and np.isfinite(a).all()):
        return float(np.array_equal(a, b, equal_nan=True))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.array_equal(a, b)) if lengths == 0 else float(a @ b) / lengths


def explained(outputs: Sequence[Array]) -> Compare:
    """How much of the variance of ``outputs`` an answer explains: the mean over all of them is R2, which may be negative."""
    values = np.stack(outputs).astype(np.float64).reshape(len(outputs), -1)
    variance = float(np.nanmean(np.nanvar(values, axis=0)))

    def compare(ours: Array, theirs: Array) -> float:
        if np.array_equal(ours, theirs, equal_nan=True):
            return 1.0
        if not np.isfinite(theirs).all() or variance == 0:
            return 0.0
        return 1 - float(np.mean((ours.astype(np.float64) - theirs) ** 2)) / variance

    return compare


def boxes(ours: Any, theirs: Any) -> float:
    """F1 of two lists of boxes: matched one to one by label and intersection over union, the best scores first."""
    a, b = ((each or {}).get("boxes", []) for each in (ours, theirs))
    if not a and not b:
        return float((ours is None) == (theirs is None))
    left = list(a)
    matched = 0
    for box in b:
        found = max(left, key=lambda other: _iou(box, other), default=None)
        if found is not None and _iou(box, found) >= SAME_BOX:
            left.remove(found)
            matched += 1
    return 2 * matched / (len(a) + len(b))


def _iou(one: Any, other: Any) -> float:
    if one.get("label") != other.get("label"):
        return 0.0
    a, b = one["xyxy"], other["xyxy"]
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return float(width * height / max(areas - width * height, 1e-12))


def _same_label(ours: Any, theirs: Any) -> float:
    return float(ours is not None and theirs is not None and ours.get("label") == theirs.get("label"))


def _embedding(ours: Any, theirs: Any) -> float:
    return cosine((ours or {}).get("embedding"), (theirs or {}).get("embedding"))


def _equal(ours: Any, theirs: Any) -> float:
    """Equal but for scores: an answer in words is another answer when one word is another one."""
    return float(_without_scores(ours) == _without_scores(theirs))


def _without_scores(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_scores(each) for key, each in value.items() if key != "score"}
    return [_without_scores(each) for each in value] if isinstance(value, list) else value


PREDICTIONS: dict[str, tuple[str, Compare]] = {
    "classification": ("same label", _same_label),
    "embedding": ("cosine", _embedding),
    "detection": ("F1 of boxes", boxes),
    "keypoints": ("F1 of boxes", boxes),
    "ctc": ("same text", _equal),
    "tokens": ("same entities", _equal),
}
"""Postprocess -> what its predictions agree in, and how that is compared. All others: cosine of the first output."""
NUMBERS = frozenset({"regression", "anomaly"})
"""Postprocesses whose answers are numbers that stand for themselves."""


def _class_output(model: Model, settings: PipelineSettings | None) -> str:
    """The output that is compared: the one that a classification names, else the first of floats, else the first."""
    options = settings.postprocess.options if settings is not None else None
    named = getattr(options, "from_", None)
    outputs = model.signature.outputs
    if isinstance(named, str) and any(spec.name == named for spec in outputs):
        return named
    return next((spec.name for spec in outputs if spec.dtype.kind == "f"), outputs[0].name)
