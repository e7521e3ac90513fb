"""What the answers of vision models cost to make of their outputs, against the usual way with OpenCV; no broker, no model.

Both ways end in JSON text with boxes, masks or classes in a picture of 1280 x 720 pixels. CPU time of this process, in
interleaved rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson

UNIT = Path(__file__).resolve().parent.parent / "unit"
sys.path[:0] = [str(UNIT), str(UNIT.parent)]

from detection_support import fitted, step  # noqa: E402

HEIGHT, WIDTH, SIDE = 720, 1280, 640
LETTERBOX = fitted(HEIGHT, WIDTH, (0.5, 0.5), (0, 140))
STRETCH = fitted(HEIGHT, WIDTH, (512 / WIDTH, 512 / HEIGHT))
OBJECTS, CLASSES, CANDIDATES = 20, 80, 8400
ITEMS = 5
"""Items in one round of one way."""

Way = Callable[[], Any]


def ways() -> Iterator[tuple[str, Way, Way]]:
    """Name, ours and the usual way."""
    random = np.random.default_rng(0)
    yield "boxes", *_boxes(random)
    yield "masks", *_masks(random)
    yield "segmentation", *_segmentation(random)


def us_per_item(way: Way) -> float:
    """CPU microseconds, over one round."""
    began = time.process_time()
    for _ in range(ITEMS):
        way()
    return (time.process_time() - began) * 1e6 / ITEMS


def _ours(settings: Any, outputs: dict[str, Any], size: tuple[int, int], geometry: Any) -> Way:
    one = step(settings, outputs, size)
    arrays = {name: array[np.newaxis] for name, array in outputs.items()}
    return lambda: one.predictions(arrays, 1, [geometry], False)


def _head(random: Any, masks: int) -> Any:
    """Candidates around some objects, each seen by eight of them, among many that see nothing."""
    head = np.zeros((4 + CLASSES + masks, CANDIDATES), np.float32)
    head[:2] = random.random((2, CANDIDATES)) * SIDE
    head[2:4] = random.random((2, CANDIDATES)) * 80 + 20
    head[4 : 4 + CLASSES] = random.random((CLASSES, CANDIDATES)) * 0.05
    head[4 + CLASSES :] = random.normal(size=(masks, CANDIDATES))
    for number in range(OBJECTS):
        seen = slice(number * 8, number * 8 + 8)
        head[:4, seen] = head[:4, seen.start : seen.start + 1] + random.random((4, 8)) * 3
        head[4 + number, seen] = random.random(8) * 0.5 + 0.4
    return head


def _by_opencv(head: Any) -> tuple[Any, Any, Any, Any]:
    """Corners in the picture, scores, classes and columns of the boxes that cv2.dnn keeps."""
    scores = head[4 : 4 + CLASSES].max(axis=0)
    columns = np.flatnonzero(scores >= 0.25)
    classes = head[4 : 4 + CLASSES, columns].argmax(axis=0)
    x, y, w, h = head[:4, columns]
    corners = np.stack([x - w / 2, y - h / 2, w, h], axis=1)
    kept = np.ravel(
        cv2.dnn.NMSBoxesBatched(corners.tolist(), scores[columns].tolist(), classes.tolist(), 0.25, 0.45)
    )
    corners[:, 2:] += corners[:, :2]
    corners = np.clip((corners[kept] - [0, 140, 0, 140]) * 2, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    return corners.astype(np.float32), scores[columns][kept], classes[kept], columns[kept]


def _json(corners: Any, scores: Any, classes: Any, **more: list[Any]) -> bytes:
    boxes = [
        {
            "label": str(c),
            "class_id": c,
            "score": s,
            "xyxy": xyxy,
            **{name: values[i] for name, values in more.items()},
        }
        for i, (xyxy, s, c) in enumerate(
            zip(corners.tolist(), scores.tolist(), classes.tolist(), strict=True)
        )
    ]
    return orjson.dumps({"boxes": boxes})


def _boxes(random: Any) -> tuple[Way, Way]:
    head = _head(random, 0)
    ours = _ours({"detection": {}}, {"y": head}, (SIDE, SIDE), LETTERBOX)
    return ours, lambda: _json(*_by_opencv(head)[:3])


def _masks(random: Any) -> tuple[Way, Way]:
    head = _head(random, 32)
    prototypes = np.stack([_smooth(random, 160, 160, 8) for _ in range(32)])

    def usual() -> bytes:
        corners, scores, classes, columns = _by_opencv(head)
        logits = (head[4 + CLASSES :, columns].T @ prototypes.reshape(32, -1)).reshape(-1, 160, 160)
        rles = []
        for plane, (x1, y1, x2, y2) in zip(logits, np.ceil(corners).astype(int).tolist(), strict=True):
            whole = cv2.resize(plane[35:125], (WIDTH, HEIGHT)) > 0
            inside = np.zeros_like(whole)
            inside[y1:y2, x1:x2] = whole[y1:y2, x1:x2]
            rles.append(_runs(inside.T.ravel()))
        return _json(corners, scores, classes, rle=rles)

    ours = _ours(
        {"detection": {"layout": "yolov8-seg"}}, {"y": head, "p": prototypes}, (SIDE, SIDE), LETTERBOX
    )
    return ours, usual


def _segmentation(random: Any) -> tuple[Way, Way]:
    scores = np.stack([_smooth(random, 128, 128, 8) for _ in range(21)])

    def usual() -> bytes:
        best = np.stack([cv2.resize(plane, (WIDTH, HEIGHT)) for plane in scores]).argmax(axis=0)
        flat = best.T.ravel()
        return orjson.dumps({"rle": _runs(flat), "shares": np.bincount(flat, minlength=21).tolist()})

    return _ours({"segmentation": {}}, {"y": scores}, (512, 512), STRETCH), usual


def _smooth(random: Any, height: int, width: int, sigma: float) -> Any:
    return cv2.GaussianBlur(random.normal(size=(height, width)).astype(np.float32), (0, 0), sigma)


def _runs(flat: Any) -> list[int]:
    return np.diff(np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat)]).tolist()
