"""Answers of vision models, as any bytes: what a postprocess of pictures makes of them can be read back, or was meant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from detection_support import fitted, picture_signature
from encode_support import pipeline

from worker.errors import Rejection
from worker.postprocess import Postprocess, postprocess

MEANT = "worker.errors.Reject"
SIZE = (64, 64)
CONTEXTS = [
    None,
    fitted(48, 96, (64 / 96, 64 / 48)),
    fitted(30, 60, (64 / 60, 64 / 60), (0, 16)),
    fitted(40, 90, (1.6, 1.6), (-40, 0)),
]
"""No picture; stretched; in a letterbox; cropped."""

Shapes = Mapping[str, Sequence[int]]


def _step(settings: Any, shapes: Shapes, labels: Any = None) -> tuple[Postprocess, Shapes]:
    return postprocess(pipeline(settings).postprocess, picture_signature(shapes, SIZE), labels), shapes


STEPS = [
    _step({"detection": {"layout": "yolov8", "nms": "all"}}, {"y": (7, 9)}),
    _step({"detection": {"layout": "yolov8-seg", "score": 0.1}}, {"y": (8, 9), "p": (3, 5, 6)}),
    _step({"detection": {"layout": "yolov5", "score": {"default": 0, "1": 0.5}}}, {"y": (9, 7)}),
    _step({"detection": {"layout": "yolox", "classes": ["0"]}}, {"y": (84, 7)}),
    _step({"detection": {"layout": "end2end"}}, {"y": (5, 6)}, ["a", "b"]),
    _step({"detection": {"layout": "detr", "score": 0.2}}, {"logits": (5, 3), "boxes": (5, 4)}),
    _step(
        {"detection": {"layout": "tensorflow"}},
        {"boxes": (5, 4), "classes": (5,), "scores": (5,), "count": (1,)},
    ),
    _step({"keypoints": {"names": ["a", "b"]}}, {"y": (11, 5)}),
    _step({"segmentation": {}}, {"y": (3, 5, 6)}),
    _step({"segmentation": {"threshold": 0.5}}, {"y": (1, 5, 6)}, ["no", "yes"]),
    _step({"regions": {"min_size": 0, "box_threshold": 0}}, {"y": (1, 16, 16)}),
    _step({"ctc": {"alphabet": ["a", "b"]}}, {"y": (9, 4)}),
    _step({"ctc": {"alphabet": ["a", "b"], "activation": "softmax"}}, {"y": (9, 4)}),
    _step({"anomaly": {"threshold": 0.5}}, {"y": (1,)}),
]


def check_vision(data: bytes) -> None:
    """The first byte says which picture is behind the answers, and how bytes become numbers."""
    first, rest = (data[0] if data else 0), data[1:] or b"\0"
    context = CONTEXTS[first % len(CONTEXTS)]
    for step, shapes in STEPS:
        outputs, start = {}, 0
        for name, shape in shapes.items():
            outputs[name] = _numbers(rest[start % len(rest) :], first // len(CONTEXTS), shape)
            start += 5
        twice = {name: np.stack([array, array[..., ::-1]]) for name, array in outputs.items()}
        found = step.predictions(twice, 2, [context, None], False)
        alone = step.predictions(
            {name: array[np.newaxis] for name, array in outputs.items()}, 1, [context], False
        )
        assert alone[0] == found[0], (alone[0], found[0])
        for prediction, picture in zip(found, (context, None), strict=True):
            if isinstance(prediction, Rejection):
                assert prediction.exception_class_name == MEANT, prediction
                assert prediction.reason in ("non_finite", "model_error", "too_large_output"), prediction
            else:
                assert isinstance(prediction, bytes)
                _check(orjson.loads(prediction), picture)


def _numbers(data: bytes, way: int, shape: Sequence[int]) -> Any:
    """An array made of these bytes, repeated: the very floats, or small numbers, or shares of 1."""
    count = math.prod(shape)
    if way % 3 == 0:
        wanted = 4 * count
        return np.frombuffer((data * (wanted // len(data) + 1))[:wanted], np.float32).reshape(shape).copy()
    small = np.frombuffer((data * (count // len(data) + 1))[:count], np.int8).astype(np.float32)
    return (small / 2 if way % 3 == 1 else (small + 128) / 255).reshape(shape)


def _check(found: Any, picture: Any) -> None:
    """What must hold of an answer that was given."""
    height, width = (picture.height, picture.width) if picture is not None else SIZE
    for box in found.get("boxes", ()):
        x1, y1, x2, y2 = box["xyxy"]
        assert None not in (box["score"], x1, y1, x2, y2)
        assert x1 < x2
        assert y1 < y2
        if picture is not None:
            assert 0 <= x1 <= x2 <= width
            assert 0 <= y1 <= y2 <= height
        if "rle" in box:
            assert found["size"] == [height, width]
            assert sum(box["rle"]) == height * width
            assert min([1, *box["rle"][1:]]) > 0
    if "shares" in found:
        assert found["size"] == [height, width]
        assert sum(found["rle"][1::2]) == height * width
        assert abs(sum(found["shares"].values()) - 1) < 1e-6
    for region in found.get("regions", ()):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in region["points"])
    assert "text" not in found or 0 <= found["score"] <= 1.01
