"""A class for each pixel, against OpenCV's resize of the scores."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from detection_support import fitted, picture_signature, predicted, step
from encode_support import pipeline

from worker.errors import ConfigError
from worker.postprocess import postprocess

RANDOM = np.random.default_rng(6)


def smooth(classes: int, height: int, width: int) -> Any:
    """Scores with areas of each class."""
    noise = RANDOM.normal(size=(height, width, classes)).astype(np.float32)
    return np.moveaxis(cv2.GaussianBlur(noise, (0, 0), 2.5), -1, 0)


def classes_of(found: Any) -> Any:
    """The map of classes, read as the documentation says."""
    return np.repeat(found["rle"][::2], found["rle"][1::2]).reshape(found["size"], order="F")


def resized(scores: Any, width: int, height: int) -> Any:
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in scores])


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop", "none", "smaller"])
def test_classes_are_those_of_the_resized_scores(fit: str) -> None:
    """Scores at a quarter of the input, resized linearly to the picture, then the best class of each pixel."""
    scores = smooth(5, 24, 32)  # of an input of 96 x 128
    if fit == "stretch":
        context, expected = fitted(150, 90, (128 / 90, 96 / 150)), resized(scores, 90, 150)
    elif fit == "letterbox":  # 60 x 160 pixels as 48 x 128 in the middle
        context, expected = fitted(60, 160, (0.8, 0.8), (0, 24)), resized(scores, 160, 120)[:, 30:90]
    elif fit == "crop":  # the middle 96 columns of 96 x 256 pixels, twice as wide
        context, expected = fitted(96, 256, (1, 1), (-64, 0)), resized(scores, 128, 96)
    elif fit == "smaller":
        context, expected = fitted(12, 16, (8, 8)), resized(scores, 16, 12)
    else:
        context, expected = None, resized(scores, 128, 96)
    found = predicted({"segmentation": {}}, {"y": scores}, (96, 128), context)
    classes = classes_of(found)
    if fit == "crop":
        assert (classes[:, :64] == -1).all()
        assert (classes[:, 192:] == -1).all()
        classes = classes[:, 64:192]
    best = expected.argmax(axis=0)
    assert classes.shape == best.shape
    ordered = np.sort(expected, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(classes[clear], best[clear])
    shares = {str(number): (classes == number).mean() for number in np.unique(classes)}
    assert found["shares"] == pytest.approx(shares)
    assert list(found["shares"].values()) == sorted(shares.values(), reverse=True)


def test_classes_that_the_model_chose_are_the_nearest() -> None:
    """[h, w] of integers: each pixel has the class of the cell it lies in."""
    cells = np.array([[0, 1], [2, 2]], np.int64)
    found = predicted_integers(cells, fitted(4, 6, (2 / 6, 2 / 4)), labels=["sky", "car", "road"])
    assert classes_of(found).tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2] * 6] * 2
    assert found["shares"] == {"road": 0.5, "sky": 0.25, "car": 0.25}


def predicted_integers(cells: Any, context: Any = None, labels: Any = None) -> Any:
    import dataclasses
    import json

    from worker.errors import Rejection
    from worker.model.signature import TensorSpec

    given = picture_signature({}, (2, 2))
    spec = TensorSpec.of("y", "tensor(int64)", ["N", *cells.shape])
    one = postprocess(
        pipeline({"segmentation": {}}).postprocess, dataclasses.replace(given, outputs=(spec,)), labels
    )
    [found] = one.predictions({"y": cells[np.newaxis]}, 1, [context], False)
    return (found.reason, found.message) if isinstance(found, Rejection) else json.loads(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_a_class_without_a_label_is_a_model_error(wrong: int) -> None:
    """Never a wrong label."""
    cells = np.array([[0, 1], [wrong, 2]], np.int64)
    assert predicted_integers(cells, labels=["a", "b", "c"])[0] == "model_error"


def test_one_channel_has_a_threshold() -> None:
    """Class 1 is where the interpolated channel is at least the threshold."""
    channel = RANDOM.random((1, 12, 12)).astype(np.float32)
    found = predicted(
        {"segmentation": {"threshold": 0.5}}, {"y": channel}, (48, 48), labels=["road", "crack"]
    )
    expected = cv2.resize(channel[0], (48, 48), interpolation=cv2.INTER_LINEAR)
    clear = np.abs(expected - 0.5) > 1e-4
    assert np.array_equal(classes_of(found)[clear], (expected >= 0.5)[clear])
    even = predicted({"segmentation": {"threshold": 0.5}}, {"y": np.full((1, 4, 4), 0.5)}, (8, 8))
    assert even["rle"] == [1, 64]


def test_noise_is_refused_before_it_is_kept() -> None:
    """Over 262,144 runs would be more than a topic takes: the record is refused, whatever the picture's size."""
    noise = RANDOM.normal(size=(3, 600, 900))
    assert predicted({"segmentation": {}}, {"y": noise}, (600, 900))[0] == "too_large_output"


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_a_large_picture_takes_a_few_megabytes(kind: str) -> None:
    """5 million pixels of answer are worked on in bands of columns: all of it stays below what a thread may take unasked."""
    height, width, large = 2000, 2500, fitted(2000, 2500, (128 / 2500, 128 / 2000))
    if kind == "classes":
        settings, outputs = {"segmentation": {}}, {"y": smooth(4, 32, 32)}
    else:
        head = np.zeros((6, 4))
        head[:, 0] = [64, 64, 128, 128, 0.9, 1]
        settings = {"detection": {"layout": "yolov8-seg"}}
        outputs = {"y": np.vstack([head, head[5:]]), "p": smooth(2, 32, 32)}
    one = step(settings, outputs, (128, 128))
    arrays = {name: array[np.newaxis].astype(np.float32) for name, array in outputs.items()}
    tracemalloc.start()
    [found] = one.predictions(arrays, 1, [large], False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, bytes)
    assert f'"size":[{height},{width}]'.encode() in found
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("options", "shape", "labels", "said"),
    [
        ({}, (3, 8, 8), ["a", "b"], "labels names 2 classes, but .* has 3"),
        ({}, (21,), None, r"needs \[classes, height, width\]"),
        ({}, (1, 8, 8), None, "threshold: required, because .* has one channel"),
        ({}, (8, 8, 3), None, r"shape \[8, 8, 3\], which as \[classes, height, width\] does not fit"),
        ({"threshold": 0.5}, (3, 8, 8), None, "threshold: got 0.5, expected none"),
    ],
)
def test_what_cannot_be_is_refused_at_start(options: Any, shape: Any, labels: Any, said: str) -> None:
    """One sentence names the setting, what the model has and what was expected."""
    with pytest.raises(ConfigError, match=rf"postprocess\.segmentation.*{said}"):
        postprocess(
            pipeline({"segmentation": options}).postprocess, picture_signature({"y": shape}, (8, 8)), labels
        )
