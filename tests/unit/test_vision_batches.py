"""Pictures of unlike size in one batch: each answer is in its own picture's pixels, and that of the picture alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import pytest
from onnx import helper
from test_decode_image import encode
from test_image_runs import answer, rollout, sizes

RANDOM = np.random.default_rng(12)


def same(height: int | str, width: int | str) -> bytes:
    """Pictures (N, 3, height, width) -> the same: three scores for each pixel."""
    shape = ["N", 3, height, width]
    return models.build(
        [helper.make_node("Identity", ["x"], ["y"])],
        [models.tensor("x", np.float32, shape)],
        [models.tensor("y", np.float32, shape)],
    )


def pictures(*sizes: tuple[int, int]) -> list[Any]:
    """Areas of colours, (height, width, 3) RGB."""
    found = []
    for height, width in sizes:
        noise = RANDOM.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
        found.append(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    return found


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_each_picture_of_a_batch_has_its_own_pixels(tmp_path: Path, resize: str) -> None:
    """The size of each answer is its picture's; the class of most pixels is the strongest colour of the picture there."""
    path = tmp_path / "model.onnx"
    path.write_bytes(same(48, 48))
    one = rollout(path, {"resize": resize}, postprocess={"segmentation": {"labels": ["r", "g", "b"]}})
    given = pictures((48, 48), (60, 90), (96, 40), (30, 33))
    files = [encode(".png", picture) for picture in given]
    together = answer(one, *files).outcomes
    assert together is not None
    for file, picture, body in zip(files, given, together.bodies, strict=True):
        found = json.loads(body or b"")["prediction"]
        alone = answer(one, file).outcomes
        assert alone is not None
        assert found == json.loads(alone.bodies[0] or b"")["prediction"]
        assert found["size"] == list(picture.shape[:2])
        classes = np.repeat(found["rle"][::2], found["rle"][1::2]).reshape(found["size"], order="F")
        seen = classes >= 0
        assert (classes == picture.argmax(axis=2))[seen].mean() > 0.85
        assert seen.all() == (resize != "crop" or picture.shape[0] == picture.shape[1])


def test_padded_pictures_are_answered_in_their_own_pixels(tmp_path: Path) -> None:
    """Pictures of unlike width that share a run give what each gives alone: nothing of the padding is in an answer."""
    path = tmp_path / "model.onnx"
    path.write_bytes(same(16, "W"))
    one = rollout(path, {"size": [16, None]}, postprocess={"segmentation": {}}, batching={"max_size": 4})
    given = pictures((16, 40), (16, 44), (32, 84), (16, 41))
    files = [encode(".png", picture) for picture in given]
    batch = answer(one, *files)
    assert sizes(batch) == [4]
    assert batch.outcomes is not None
    for file, picture, body in zip(files, given, batch.outcomes.bodies, strict=True):
        found = json.loads(body or b"")["prediction"]
        alone = answer(one, file).outcomes
        assert alone is not None
        assert found == json.loads(alone.bodies[0] or b"")["prediction"]
        classes = np.repeat(found["rle"][::2], found["rle"][1::2]).reshape(found["size"], order="F")
        assert (classes == picture.argmax(axis=2)).mean() > 0.85


def test_answers_are_in_the_upright_pictures_pixels(tmp_path: Path) -> None:
    """A picture that its camera calls turned is answered as people see it: size, classes and boxes."""
    picture = np.zeros((24, 48, 3), np.uint8)
    picture[:, :16, 0] = 255  # a red left third, which turned clockwise is the upper third
    picture[:, 16:, 2] = 255
    jpeg = encode(".jpg", picture)
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    file = jpeg[:2] + b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned + jpeg[2:]
    path = tmp_path / "model.onnx"
    path.write_bytes(same(48, 48))
    one = rollout(path, {"resize": "stretch"}, postprocess={"segmentation": {"labels": ["r", "g", "b"]}})
    outcomes = answer(one, file).outcomes
    assert outcomes is not None
    found = json.loads(outcomes.bodies[0] or b"")["prediction"]
    assert found["size"] == [48, 24]
    classes = np.repeat(found["rle"][::2], found["rle"][1::2]).reshape(found["size"], order="F")
    assert (classes[:14] == 0).all()
    assert (classes[18:] == 2).all()
