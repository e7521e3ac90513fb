"""Boxes: the layouts, suppression, and the way back to the picture's pixels."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encode_support import pipeline, signature

from worker.errors import ConfigError, Rejection
from worker.postprocess import postprocess
from worker.postprocess.boxes import BLOCK

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def detect(item: Any, labels: Any = None, context: Any = None, alone: bool = False, **options: Any) -> Any:
    """The boxes of one item, or the rejection's reason."""
    item = np.asarray(item, np.float32)
    settings = pipeline({"detection": options}).postprocess
    step = postprocess(settings, signature({"y": ("float", ["N", None, None])}, not alone), labels)
    [found] = step.predictions({"y": item[np.newaxis]}, 1, [context], alone)
    return found.reason if isinstance(found, Rejection) else json.loads(found)["boxes"]


def rows(*boxes: list[float]) -> Any:
    return np.array(boxes, np.float32).reshape(-1, 6)


def test_xyxy_rows_become_boxes_best_first() -> None:
    """x1, y1, x2, y2, score, class; what scores under `score` is left out."""
    found = detect(
        rows([0, 0, 4, 4, 0.5, 1], [9, 9, 12, 12, 0.75, 0], [20, 20, 22, 22, 0.125, 0]), layout="xyxy"
    )
    assert found == [
        {"label": "0", "class_id": 0, "score": 0.75, "xyxy": [9.0, 9.0, 12.0, 12.0]},
        {"label": "1", "class_id": 1, "score": 0.5, "xyxy": [0.0, 0.0, 4.0, 4.0]},
    ]


def test_yolov8_columns_become_boxes() -> None:
    """Centre and size turn into corners; the best class of a column gives label and score."""
    item = np.array([[10, 50], [20, 50], [4, 2], [6, 2], [0.1, 0.2], [0.8, 0.1]])
    assert detect(item, labels=["cat", "dog"]) == [
        {"label": "dog", "class_id": 1, "score": pytest.approx(0.8), "xyxy": [8.0, 17.0, 12.0, 23.0]}
    ]


def test_a_box_goes_only_for_a_better_one_of_its_class() -> None:
    """Suppression is by class, by overlap above `iou`, and by the boxes that stay."""
    best, near, other_class, far = (
        [0, 0, 10, 10, 0.9, 0],
        [1, 0, 11, 10, 0.8, 0],  # overlaps the best by 90 / 110
        [1, 0, 11, 10, 0.7, 1],
        [9, 0, 19, 10, 0.6, 0],  # overlaps `near` more than the best, but `near` is gone
    )
    found = detect(rows(far, near, other_class, best), layout="xyxy", iou=0.2)
    assert [(box["class_id"], round(box["score"], 1)) for box in found] == [(0, 0.9), (1, 0.7), (0, 0.6)]
    assert len(detect(rows(best, near), layout="xyxy", iou=0.9)) == 2


@pytest.mark.parametrize(("count", "span"), [(60, 40), (3 * BLOCK + 7, 40), (3 * BLOCK + 7, 300)])
def test_suppression_matches_a_plain_loop(count: int, span: int) -> None:
    """Over random boxes, crowded or not, the result is that of the textbook algorithm."""
    random = np.random.default_rng(3)
    corners = random.integers(0, span, (count, 2))
    boxes = np.hstack(
        [corners, corners + random.integers(1, 20, (count, 2)), random.integers(1, 9, (count, 1)) / 10]
    )
    boxes = np.hstack([boxes, random.integers(0, 2, (count, 1))]).astype(np.float32)

    def iou(a: Any, b: Any) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    kept: list[Any] = []
    for box in sorted(boxes, key=lambda box: -box[4]):
        if box[4] >= 0.25 and all(box[5] != k[5] or iou(box, k) <= 0.45 for k in kept):
            kept.append(box)
    found = detect(boxes, layout="xyxy")
    assert [[*box["xyxy"], box["class_id"]] for box in found] == [[*k[:4], k[5]] for k in kept[:300]]


def test_at_most_max_boxes_are_given() -> None:
    """The best ones."""
    item = rows(*[[20 * i, 0, 20 * i + 9, 9, (i + 1) / 10, 0] for i in range(9)])
    assert [round(box["score"], 1) for box in detect(item, layout="xyxy", max=2)] == [0.9, 0.8]


def test_boxes_are_in_pixels_of_the_original_picture() -> None:
    """Scale and offset of the preprocessing are undone, and boxes end at the picture's edges."""
    letterbox = SimpleNamespace(height=100, width=200, scale_x=0.5, scale_y=0.5, offset_x=0.0, offset_y=25.0)
    [box] = detect(rows([-5, 30, 50, 90, 0.9, 0]), layout="xyxy", context=letterbox)
    assert box["xyxy"] == [0.0, 10.0, 100.0, 100.0]


def test_no_box_is_an_empty_list() -> None:
    """A picture without anything in it is an answer, and so is an output without candidates."""
    assert detect(rows([0, 0, 1, 1, 0.1, 0]), layout="xyxy") == []
    assert detect(np.empty((0, 6)), layout="xyxy") == []
    assert detect(np.empty((6, 0))) == []


def test_an_unbatchable_models_leading_dimensions_are_dropped() -> None:
    """(1, 1, n, 6) is read as (n, 6)."""
    assert len(detect(rows([0, 0, 1, 1, 0.9, 0])[np.newaxis], layout="xyxy", alone=True)) == 1


def test_nan_is_non_finite() -> None:
    """One spoilt number spoils the picture's boxes, not the batch."""
    assert detect(rows([np.nan, 0, 1, 1, 0.9, 0]), layout="xyxy") == "non_finite"


@pytest.mark.parametrize("item", [np.zeros((3, 7)), np.zeros((2, 3, 6))])
def test_another_shape_at_run_time_is_a_model_error(item: Any) -> None:
    """A free shape that turns out wrong costs the record."""
    assert detect(item, layout="xyxy") == "model_error"


def test_a_class_without_a_label_is_a_model_error() -> None:
    """Never a wrong label."""
    assert detect(rows([0, 0, 1, 1, 0.9, 5]), labels=["a"], layout="xyxy") == "model_error"


@pytest.mark.parametrize(
    ("layout", "shape", "said"),
    [
        ("xyxy", ["N", 100, 7], "6 columns"),
        ("yolov8", ["N", 4, 8400], r"4 \+ classes"),
        ("yolov8", ["N", 84, 8400], "names 2 classes, .* has 80"),
        ("yolov8", ["N"], "matrix per item"),
    ],
)
def test_shapes_known_to_be_wrong_are_refused_at_start(layout: str, shape: Any, said: str) -> None:
    """The sentence names the key, the output and its shape or count."""
    settings = pipeline({"detection": {"layout": layout}}).postprocess
    with pytest.raises(ConfigError, match=said):
        postprocess(settings, signature({"y": ("float", shape)}), ["a", "b"])


def test_a_box_of_no_area_is_left_out_and_takes_no_place() -> None:
    """A flat box, one turned inside out and one beside the picture are no answer, and none of them counts for `max`."""
    flat, inverted, beside = [0, 0, 5, 0, 0.9, 0], [9, 9, 5, 5, 0.8, 0], [300, 0, 340, 9, 0.7, 0]
    good = [20, 20, 29, 29, 0.6, 0]
    whole = SimpleNamespace(height=100, width=200, scale_x=1.0, scale_y=1.0, offset_x=0.0, offset_y=0.0)
    found = detect(rows(flat, inverted, beside, good), layout="xyxy", context=whole, max=1)
    assert [box["xyxy"] for box in found] == [[20.0, 20.0, 29.0, 29.0]]
    assert detect(rows(flat, inverted), layout="xyxy") == []
