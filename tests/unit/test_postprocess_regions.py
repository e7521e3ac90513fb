"""Rotated boxes from a score map, against RapidOCR's post-processing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from detection_support import fitted, picture_signature, predicted
from encode_support import pipeline

from worker.errors import ConfigError
from worker.postprocess import postprocess

# What DBPostProcess of rapidocr-onnxruntime 1.4.4 (threshold 0.3, box threshold 0.5, unclip 1.6) makes of `made()`:
# in a picture of twice the height and three times the width with dilation; and in the map's own pixels without.
DILATED = [
    ([[36, 272], [87, 272], [87, 288], [36, 288]], 0.6147321137998785),
    ([[473, 215], [547, 197], [604, 303], [530, 320]], 0.5597714444817002),
    ([[20, 207], [362, 146], [397, 231], [55, 292]], 0.7776288562943948),
    ([[363, 54], [578, 127], [534, 184], [319, 111]], 0.6617647138103342),
    ([[45, 46], [318, 46], [318, 116], [45, 116]], 0.8152831771811987),
]
PLAIN = [
    ([[12, 136], [28, 136], [28, 143], [12, 143]], 0.7572115017817571),
    ([[159, 107], [181, 99], [199, 151], [177, 159]], 0.6061462541864373),
    ([[7, 103], [120, 74], [131, 115], [18, 144]], 0.860020033141962),
    ([[121, 28], [190, 63], [177, 90], [108, 55]], 0.7321167966201357),
    ([[16, 24], [104, 24], [104, 56], [16, 56]], 0.8638732118785661),
]


def made() -> Any:
    """A score map of turned bars; two of them score too little or are too small."""
    found = np.zeros((160, 224), np.float32)
    for x, y, width, height, angle, score in [
        (60, 40, 70, 14, 0, 0.9),
        (150, 60, 60, 12, 25, 0.8),
        (70, 110, 90, 16, -15, 0.95),
        (180, 130, 40, 10, 70, 0.7),
        (20, 140, 12, 3, 0, 0.9),
        (110, 20, 30, 8, 0, 0.45),
        (200, 20, 2, 2, 0, 0.9),
    ]:
        corners = cv2.boxPoints(((x, y), (width, height), angle)).astype(np.int32)
        cv2.fillPoly(found, [corners], score)
    return cv2.GaussianBlur(found, (3, 3), 0)


@pytest.mark.parametrize("dilate", [True, False])
def test_boxes_are_those_of_rapidocr(dilate: bool) -> None:
    """Scores agree to 1e-6, corners to 1.5 cells: RapidOCR cuts them to whole cells before a box grows, and rounds then."""
    context = fitted(320, 672, (1 / 3, 1 / 2)) if dilate else None
    found = predicted({"regions": {"dilate": dilate}}, {"y": made()[np.newaxis]}, (160, 224), context)[
        "regions"
    ]
    expected = sorted(DILATED if dilate else PLAIN, key=lambda box: (box[0][0][1], box[0][0][0]))
    assert len(found) == len(expected)
    cell = (3, 2) if dilate else (1, 1)
    for region, (points, score) in zip(found, expected, strict=True):
        assert region["score"] == pytest.approx(score, abs=1e-6)
        assert (np.abs(np.array(region["points"]) - points) <= np.multiply(cell, 1.5)).all()


def test_a_map_may_be_smaller_than_the_input() -> None:
    """A map of half the size, and a letterbox, are undone."""
    scores = np.zeros((1, 32, 32))
    scores[0, 12:20, 8:24] = 0.9
    context = fitted(64, 128, (0.5, 0.5), (0, 16))
    [region] = predicted(
        {"regions": {"unclip": 0, "dilate": False, "min_size": 0}}, {"y": scores}, (64, 64), context
    )["regions"]
    np.testing.assert_allclose(region["points"], [[32, 16], [92, 16], [92, 44], [32, 44]], atol=1e-3)


def test_nothing_found_is_an_empty_list() -> None:
    """And so is a map in which no region is large enough."""
    assert predicted({"regions": {}}, {"y": np.zeros((1, 8, 8))}, (8, 8)) == {"regions": []}


def test_at_most_max_outlines_are_looked_at() -> None:
    """Noise costs no more than that."""
    noise = (np.indices((200, 200)).sum(axis=0) % 2) * 0.9
    found = predicted({"regions": {"max": 7, "min_size": 0, "dilate": False}}, {"y": noise}, (200, 200))
    assert len(found["regions"]) <= 7


def test_a_score_above_one_is_a_model_error() -> None:
    """Logits are no scores."""
    assert predicted({"regions": {}}, {"y": np.full((8, 8), 3.0)}, (8, 8))[0] == "model_error"


@pytest.mark.parametrize(
    ("shape", "answer", "said"),
    [
        ((2, 8, 8), None, r"needs a map of scores .* shape \[None, 2, 8, 8\]"),
        ((100,), None, "needs a map of scores"),
        ((1, 8, 8), -3.5, "no map of scores: a score would be -3.5"),
    ],
)
def test_what_is_no_map_is_refused_at_start(shape: Any, answer: float | None, said: str) -> None:
    """By its shape, or by what it answers to a made-up picture."""
    answers = () if answer is None else ({"y": np.full((1, *shape), answer, np.float32)},)
    with pytest.raises(ConfigError, match=rf"postprocess\.regions.*{said}"):
        postprocess(
            pipeline({"regions": {}}).postprocess,
            picture_signature({"y": shape}, (8, 8), answers=answers),
            None,
        )
