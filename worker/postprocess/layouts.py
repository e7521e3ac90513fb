"""The layouts of a detector's outputs by name, and which of them a model can have: by shapes, metadata and answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.errors import ConfigError, Reject
from worker.model.signature import Signature
from worker.postprocess.finished import Detr, End2End, Tensorflow, Xyxy
from worker.postprocess.layout import Layout, Names, Size, UnfitError, item_of, matrix_output
from worker.postprocess.yolo import YoloV5, YoloV8, YoloV8Seg, Yolox

_FIELD = "postprocess.detection"
LAYOUTS: dict[str, type[Layout]] = {
    "yolov8": YoloV8,
    "xyxy": Xyxy,
    "end2end": End2End,
    "yolov5": YoloV5,
    "yolox": Yolox,
    "yolov8-seg": YoloV8Seg,
    "detr": Detr,
    "tensorflow": Tensorflow,
}
_TASKS = {
    "segment": "layout yolov8-seg",
    "pose": "postprocess keypoints",
    "classify": "postprocess classification",
}
"""What reads the outputs of a model whose metadata name another task than detect."""
_OF_ONE_OUTPUT = ("yolov8", "xyxy", "end2end", "yolov5", "yolox")


def layout_of(signature: Signature, name: str, labels: Sequence[str] | None, size: Size | None) -> Layout:
    """The configured layout, for this model.

    Args:
        size: of the model's input; None if it is free.

    Raises:
        ConfigError: the outputs cannot have this layout; names the contradiction and the layouts that would fit.
    """
    _check_task(signature, name)
    names = Names.of(labels, signature)
    try:
        found = _fitting(signature, name, names, size)
        _check_end2end(signature, name)
        return found
    except UnfitError as contradiction:
        others = [other for other in LAYOUTS if other != name and _fits(signature, other, names, size)]
        fitting = " or ".join(f"{other} ({LAYOUTS[other].described})" for other in others)
        expected = (
            f"layout {fitting} would fit"
            if others and _is_known(signature)
            else f"expected an output of {' or '.join(f'{n} ({LAYOUTS[n].described})' for n in _OF_ONE_OUTPUT)}, "
            "or custom code"
        )
        raise ConfigError(
            f"{_FIELD}.layout {name} does not fit the model's {_outputs(signature)}: {contradiction}; {expected}"
        ) from None


def _fitting(signature: Signature, name: str, names: Names | None, size: Size | None) -> Layout:
    found = LAYOUTS[name](signature, names, size)
    for answer in signature.shown.answers[:1]:
        item = {output: item_of(signature, answer[output]) for output in found.outputs}
        if not all(np.isfinite(values).all() for values in item.values()):
            continue
        try:
            against = found.against(item)
        except Reject as error:
            against = str(error)
        if against is not None:
            raise UnfitError(against)
    return found


def _fits(signature: Signature, name: str, names: Names | None, size: Size | None) -> bool:
    try:
        _fitting(signature, name, names, size)
    except (UnfitError, ConfigError):
        return False
    return True


def _check_task(signature: Signature, name: str) -> None:
    wanted = "segment" if name == "yolov8-seg" else "detect"
    task = signature.shown.metadata.get("task", wanted)
    if task == wanted:
        return
    expected = f"or {_TASKS[task]}" if task in _TASKS else "or custom code"
    if task == "detect":
        expected = "or another layout"
    raise ConfigError(f"{_FIELD}: the model's metadata say task {task}; expected {wanted}, {expected}")


def _check_end2end(signature: Signature, name: str) -> None:
    if name == "yolov8" and signature.shown.metadata.get("end2end", "").lower() == "true":
        raise UnfitError("the model's metadata say end2end: it gives boxes with score and class")


def _is_known(signature: Signature) -> bool:
    """Whether the shape of an item is known, so that the layouts which fit are few."""
    try:
        _, rows, columns = matrix_output(signature, _FIELD)
    except ConfigError:
        return True
    return None not in (rows, columns)


def _outputs(signature: Signature) -> str:
    names = [repr(spec.name) for spec in signature.outputs]
    return f"output {names[0]}" if len(names) == 1 else f"outputs {', '.join(names)}"
