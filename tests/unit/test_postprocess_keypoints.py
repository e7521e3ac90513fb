"""Boxes with points: Ultralytics' pose layout, back in the picture's pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detection_support import fitted, picture_signature, predicted
from encode_support import pipeline

from worker.errors import ConfigError
from worker.postprocess import postprocess

RANDOM = np.random.default_rng(4)
POSE = {"task": "pose", "kpt_shape": "[3, 3]", "names": "{0: 'person'}"}


def head(count: int = 30, points: int = 3, numbers: int = 3, classes: int = 1) -> Any:
    """Far apart candidates, (4 + classes + points x numbers, count)."""
    found = RANDOM.random((4 + classes + points * numbers, count))
    found[0], found[1] = np.arange(count) * 20 + 10, 30
    found[2:4] = 8
    found[4 + classes :] *= 60
    if numbers == 3:
        found[4 + classes + 2 :: 3] /= 60
    return found.astype(np.float32)


def test_points_come_with_their_box() -> None:
    """Each box has the points of its own candidate: x, y and score, best box first."""
    item = head()
    found = predicted({"keypoints": {"score": 0.5}}, {"y": item}, (64, 640), metadata=POSE)["boxes"]
    columns = [i for i in np.argsort(-item[4]) if item[4, i] >= 0.5]
    assert len(found) == len(columns) > 5
    for box, i in zip(found, columns, strict=True):
        assert (box["label"], box["class_id"]) == ("person", 0)
        np.testing.assert_allclose(box["xyxy"], [20 * i + 6, 26, 20 * i + 14, 34])
        np.testing.assert_allclose(box["keypoints"], item[5:, i].reshape(3, 3), rtol=1e-6)


def test_points_are_in_pixels_of_the_picture() -> None:
    """Scale and offset are undone for x and y, never for the score; a point beside the picture is moved to its edge."""
    item = head(1)
    item[4, 0], item[5:, 0] = 0.9, [20, 40, 0.25, -5, 20, 0.5, 70, 64, 0.75]
    context = fitted(64, 128, (0.5, 0.5), (0, 16))
    [box] = predicted({"keypoints": {}}, {"y": item}, (64, 64), context, metadata=POSE)["boxes"]
    assert box["keypoints"] == [[40, 48, 0.25], [0, 8, 0.5], [128, 64, 0.75]]


def test_names_are_given_once() -> None:
    """The points' names stand beside the boxes, and say how many points there are."""
    item = head(2, points=2, classes=3)
    found = predicted({"keypoints": {"names": ["nose", "tail"], "score": 0}}, {"y": item})
    assert found["names"] == ["nose", "tail"]
    assert {len(box["keypoints"]) for box in found["boxes"]} == {2}
    assert {box["class_id"] for box in found["boxes"]} <= {0, 1, 2}


def test_points_without_scores_have_null() -> None:
    """A model whose metadata say two numbers per point gives no score, and none is made up."""
    metadata = {"kpt_shape": "[4, 2]"}
    item = head(1, points=4, numbers=2)
    item[4] = 0.9
    [box] = predicted({"keypoints": {}}, {"y": item}, metadata=metadata)["boxes"]
    np.testing.assert_allclose(
        [point[:2] for point in box["keypoints"]], item[5:, 0].reshape(4, 2), rtol=1e-6
    )
    assert [point[2] for point in box["keypoints"]] == [None] * 4


def test_without_metadata_there_is_one_class() -> None:
    """56 rows are one class and 17 points, as COCO's people have."""
    [box] = predicted({"keypoints": {"score": 0}}, {"y": head(1, points=17)})["boxes"]
    assert len(box["keypoints"]) == 17


def test_a_points_score_above_one_is_a_model_error() -> None:
    """The numbers are of another layout."""
    item = head(1)
    item[4], item[7] = 0.9, 4.0
    assert predicted({"keypoints": {}}, {"y": item}, metadata=POSE)[0] == "model_error"


@pytest.mark.parametrize(
    ("options", "rows", "shown", "said"),
    [
        ({}, 10, {}, r"shape \[10, 30\], not 4 \+ 1 class \+ 3 for each point"),
        ({}, 9, {"metadata": POSE}, r"not 4 \+ classes \+ 9 rows"),
        ({"names": ["a", "b"]}, 14, {"metadata": POSE}, "got 2 names, the model's metadata say 3 points"),
        ({}, 15, {"metadata": POSE}, "names 1 classes, but .* has 2 beside 3 points"),
        ({}, 14, {"metadata": {"task": "detect"}}, "task detect; expected pose"),
        ({}, None, {}, "names: required, because the model does not say how many points"),
        (
            {},
            14,
            {"answers": ({"y": np.full((1, 14, 30), 7.0, np.float32)},)},
            "not of layout yolov8 .* would be 7",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_start(options: Any, rows: int | None, shown: Any, said: str) -> None:
    """One sentence says what speaks against it."""
    with pytest.raises(ConfigError, match=rf"postprocess\.keypoints.*{said}"):
        postprocess(
            pipeline({"keypoints": options}).postprocess,
            picture_signature({"y": (rows, 30)}, (64, 64), **shown),
            None,
        )
