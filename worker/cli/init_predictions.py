"""What a model's outputs look like, for ``init``: classes, boxes, numbers, vectors. Pure but for label files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.cli.init_guess import Guess
from worker.errors import ConfigError, Reject
from worker.filesystem import is_file
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.labels import own_names
from worker.postprocess.layouts import LAYOUTS, layout_of

EMBEDDING_SIZES = (128, 256, 384, 512, 640, 768, 1024, 1152, 1280, 1536, 2048)
"""Lengths that vectors usually have and numbers of classes seldom."""
RAW = "the outputs as they are"


def postprocess(
    signature: Signature, labels: Path | None, found: Guess, outputs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """What the outputs look like; None for ``raw``.

    Args:
        labels: a file with one label for each class.
        outputs: of the sample, by name; None where there is none, or the model refused it.
    """
    given: dict[str, Any] = {"labels": labels} if labels is not None else {}
    if found.format in ("oip", "npy", "tensor"):
        found.why["postprocess"] = RAW
        return None
    boxes = _boxes(signature, found)
    if boxes is not None:
        return {boxes[0]: {**given, **boxes[1]}}
    spec = next((each for each in signature.outputs if each.dtype.kind == "f"), signature.outputs[0])
    answer = _answer(signature, spec, outputs)
    shape = spec.item_shape
    named = spec.name.lower()
    if spec.keys or any(each.keys for each in signature.outputs):
        return _of_maps(signature, given, found)
    if len(shape) == 2 and found.format == "text" and shape[1] is not None:
        found.why["postprocess"] = "a vector for each token"
        if signature.shown.class_names:
            return {"tokens": given}
        return {"embedding": {"pooling": signature.shown.pooling or "mean", "normalize": True}}
    if len(shape) == 3 and found.format in ("image", "video"):
        found.why["postprocess"] = "a score for each class and pixel"
        return {"segmentation": given}
    if shape in ((), (1,)) and spec.dtype.kind in "fiu":
        found.why["postprocess"] = "one number"
        return {"regression": {}}
    if len(shape) != 1 or spec.dtype.kind != "f":
        found.why["postprocess"] = RAW
        found.edit.append("postprocess: the outputs are of no known kind; see the guide on predictions")
        return None
    classes = shape[0]
    is_vector = (
        "embed" in named
        or "pool" in named
        or (classes in EMBEDDING_SIZES and not given and not own_names(signature))
    )
    if is_vector and not _sums_to_one(answer):
        found.why["postprocess"] = f"a vector of {classes} numbers"
        return {"embedding": {"normalize": True}}
    return {"classification": {**given, **_scores(answer, found)}}


def _scores(answer: Any, found: Guess) -> dict[str, Any]:
    """Options of a classification, by the scores of an item."""
    top = {"top_k": 3} if answer is None or answer.size > 2 else {}
    if answer is None:
        found.why["postprocess"] = "no scores are known: activation softmax if they are no probabilities"
        found.edit.append("postprocess.classification.activation: init --sample FILE looks at the scores")
        return top
    if _sums_to_one(answer):
        found.why["postprocess"] = "the scores sum to 1"
        return top
    if np.all((answer >= 0) & (answer <= 1)):
        found.why["postprocess"] = (
            "the scores lie between 0 and 1 and do not sum to 1: several classes may be true at once"
        )
        return top
    found.why["postprocess"] = "the scores are no probabilities, so softmax makes them some"
    found.edit.append(
        "postprocess.classification.activation: softmax for one class, sigmoid if several may be true at once"
    )
    return {**top, "activation": "softmax"}


def _of_maps(signature: Signature, given: dict[str, Any], found: Guess) -> dict[str, Any]:
    name = next(each.name for each in signature.outputs if each.keys)
    found.why["postprocess"] = "probabilities as scikit-learn exports them"
    return {"classification": {"from": name, **given}}


def _sums_to_one(answer: Any) -> bool:
    return answer is not None and bool(np.all(answer >= -1e-6)) and abs(float(answer.sum()) - 1) < 1e-3


def _answer(signature: Signature, spec: TensorSpec, outputs: dict[str, Any] | None) -> Any:
    """The output for the sample, else for the first made-up item, flat; None where neither is known."""
    for answer in ([outputs] if outputs is not None else []) + [*signature.shown.answers[:1]]:
        if spec.name in answer and spec.dtype.kind in "fiu":
            try:
                values = np.asarray(answer[spec.name], dtype=np.float64).reshape(-1)
            except (TypeError, ValueError):  # maps, as scikit-learn exports them
                return None
            return values if np.isfinite(values).all() else None
    return None


def _boxes(signature: Signature, found: Guess) -> tuple[str, dict[str, Any]] | None:
    """Boxes, boxes with masks or with points, if the outputs of a picture's model are of such a layout."""
    if found.format not in ("image", "video"):
        return None
    task = signature.shown.metadata.get("task")
    if task == "pose":
        found.why["postprocess"] = "the file says that it finds points"
        return "keypoints", {}
    ranks = [len(spec.item_shape) for spec in signature.outputs]
    if task not in ("detect", "segment") and (2 not in ranks or (len(ranks) == 1 and _is_small(signature))):
        return None
    image = found.preprocess.get("image", {})
    size = tuple(image["size"]) if "size" in image else None
    for name in LAYOUTS:
        try:
            layout_of(signature, name, None, size)
        except (ConfigError, Reject):
            continue
        found.why["postprocess"] = f"the outputs have the layout {name}"
        if "image" in found.preprocess:
            image["resize"] = "letterbox"
        return "detection", {"layout": name, "score": 0.25}
    return None


def _is_small(signature: Signature) -> bool:
    """Whether the only output has too few values for boxes."""
    shape = signature.outputs[0].item_shape
    return all(side is not None and side < 5 for side in shape)


def label_file(folder: Path, stem: str, classes: int | None) -> Path | None:
    """A text file beside the model with one label for each class."""
    if classes is None or classes < 2:
        return None
    likely = [f"{stem}.txt", f"{stem}.labels", "labels.txt", "classes.txt", "names.txt", f"{stem}_labels.txt"]
    places = [folder / name for name in likely]
    places += sorted(
        each for pattern in ("*.txt", "*.names") for each in folder.glob(pattern) if each not in places
    )
    for place in places:
        try:
            if is_file(place) and place.stat().st_size < 1 << 20:
                lines = place.read_text(encoding="utf-8").rstrip("\n").split("\n")
                if len(lines) == classes and all(line.strip() for line in lines):
                    return place
        except (OSError, UnicodeDecodeError):
            continue
    return None
