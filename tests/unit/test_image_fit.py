"""Pictures for models that take any height or width: how large the item is, and where the picture stands in it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from decode_support import Decoding
from hypothesis import given, settings
from hypothesis import strategies as st
from ocr_models import detector_input, recognizer_input
from test_decode_image import NOISE, encode, turned_jpeg

from worker.errors import ConfigError, Reject
from worker.settings import PipelineSettings

FREE = ("N", 3, "H", "W")
OCR = {"scale": 1 / 255, "mean": 0.5, "std": 0.5, "color": "bgr"}


def decoding(
    shape: Any = FREE, kind: str = "uint8", limits: dict[str, int] | None = None, **image: Any
) -> Decoding:
    return Decoding("image", {"x": (kind, shape)}, preprocess={"image": image}, limits=limits)


def fitted(height: int, width: int, shape: Any = FREE, **image: Any) -> tuple[Any, Any]:
    """The item (height, width, 3) of a white picture, and its geometry."""
    one = decoding(shape, **{"pad_value": 0, **image})
    feed = one.decode(encode(".png", np.full((height, width, 3), 255, np.uint8)))
    assert not feed.rejected, feed.rejected
    array = feed.arrays["x"][0] if feed.arrays is not None else feed.items[0].arrays["x"][0]  # type: ignore[union-attr]
    return array.transpose(1, 2, 0), feed.contexts[0]


def place(item: Any) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is white."""
    rows, columns = np.flatnonzero(item.any(axis=(1, 2))), np.flatnonzero(item.any(axis=(0, 2)))
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


@pytest.mark.parametrize(
    ("picture", "image", "item", "white"),
    [
        ((24, 60), {"size": [48, None]}, (48, 120), (0, 0, 48, 120)),
        ((24, 60), {"size": [None, 30]}, (12, 30), (0, 0, 12, 30)),
        ((30, 70), {"size": [48, None]}, (48, 112), (0, 0, 48, 112)),
        ((30, 71), {"size": [48, None]}, (48, 114), (0, 0, 48, 114)),
        ((30, 71), {"size": [48, None], "multiple": 32}, (48, 128), (0, 7, 48, 114)),
        ((30, 71), {"size": [48, None], "multiple": 32, "pad": "top_left"}, (48, 128), (0, 0, 48, 114)),
        ((30, 71), {"size": [48, None], "pad": "top_left", "pad_to": [48, 320]}, (48, 320), (0, 0, 48, 114)),
        ((30, 71), {"size": [48, None], "multiple": 32, "pad": "none"}, (48, 128), (0, 0, 48, 128)),
        ((100, 150), {"resize": "fit"}, (100, 150), (0, 0, 100, 150)),
        ((100, 150), {"resize": "fit", "multiple": 32}, (128, 160), (14, 5, 100, 150)),
        ((100, 150), {"resize": "fit", "multiple": 32, "pad": "none"}, (96, 160), (0, 0, 96, 160)),
        ((100, 150), {"resize": "fit", "min_side": 200}, (200, 300), (0, 0, 200, 300)),
        ((100, 150), {"resize": "fit", "min_side": 50}, (100, 150), (0, 0, 100, 150)),
        ((100, 150), {"resize": "fit", "max_side": 75}, (50, 75), (0, 0, 50, 75)),
        ((100, 150), {"resize": "fit", "min_side": 200, "max_side": 120}, (80, 120), (0, 0, 80, 120)),
        ((100, 200), {"resize": "fit", "size": [64, 96], "multiple": 32}, (64, 96), (8, 0, 48, 96)),
        ((50, 200), {"resize": "fit", "size": [64, 96], "multiple": 32}, (32, 96), (4, 0, 24, 96)),
        ((7, 5), {"resize": "fit", "multiple": 32, "pad": "none"}, (32, 32), (0, 0, 32, 32)),
    ],
)
def test_the_item_follows_the_picture(picture: Any, image: Any, item: Any, white: Any) -> None:
    """A free side follows the picture's shape, grows to the multiple, and the picture stands where pad says."""
    found, geometry = fitted(*picture, **image)
    assert found.shape[:2] == item
    assert place(found) == white
    top, left, height, width = white
    assert (geometry.offset_y, geometry.offset_x) == (top, left)
    assert (geometry.scale_y, geometry.scale_x) == (height / picture[0], width / picture[1])
    assert (geometry.height, geometry.width) == picture
    assert (geometry.item_height, geometry.item_width) == item


def test_a_letterbox_may_stand_at_the_top_left() -> None:
    """pad: top_left puts the border of a letterbox below and to the right."""
    item, _ = fitted(50, 100, ("N", 3, 64, 64), resize="letterbox", pad="top_left")
    assert place(item) == (0, 0, 32, 64)


def test_a_side_that_the_model_fixes_is_kept() -> None:
    """fit needs no size where the model says it: with one fixed side the other follows, with two it is a letterbox."""
    assert fitted(24, 60, ("N", 3, 48, "W"), resize="fit")[0].shape == (48, 120, 3)
    assert place(fitted(50, 100, ("N", 3, 64, 64), resize="fit")[0]) == (16, 0, 32, 64)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    image=st.sampled_from(
        [
            {"size": [48, None], "multiple": 8, "pad": "top_left", "pad_to": [None, 64]},
            {"size": [None, 40]},
            {"resize": "fit", "multiple": 16, "min_side": 20, "max_side": 100},
            {"resize": "fit", "size": [64, 96], "multiple": 32},
            {"resize": "fit", "multiple": 16, "pad": "none"},
        ]
    ),
    layout=st.sampled_from(["nchw", "nhwc"]),
)
def test_boxes_find_back(height: int, width: int, image: Any, layout: str) -> None:
    """Whatever the picture's size, the corners of the picture in the item are its corners by the geometry."""
    shape = FREE if layout == "nchw" else ("N", "H", "W", 3)
    one = decoding(shape, layout=layout, pad_value=0, **image)
    feed = one.decode(encode(".png", np.full((height, width, 3), 255, np.uint8)))
    item = feed.items[0].arrays["x"][0]  # type: ignore[union-attr]
    top, left, down, across = place(item.transpose(1, 2, 0) if layout == "nchw" else item)
    geometry = feed.contexts[0]
    assert (left - geometry.offset_x) / geometry.scale_x == 0
    assert (top - geometry.offset_y) / geometry.scale_y == 0
    assert (left + across - geometry.offset_x) / geometry.scale_x == pytest.approx(width)
    assert (top + down - geometry.offset_y) / geometry.scale_y == pytest.approx(height)


def test_what_is_padded_has_the_value_of_a_pixel() -> None:
    """The border is (pad_value * scale - mean) / std, also for a pad_value between two pixel values."""
    value = encode(".png", np.full((10, 10, 3), 255, np.uint8))
    one = decoding(
        kind="float", resize="fit", multiple=16, pad_value=127.5, scale=1 / 255, mean=0.5, std=[0.5, 0.25, 1]
    )
    item = one.item(value)[0]
    assert np.allclose(item[:, 0, 0], 0, atol=1e-7)
    assert np.allclose(item[:, 8, 8], [1, 2, 0.5])


def test_the_orientation_is_that_of_the_picture_as_seen() -> None:
    """A camera's picture on its side gives the item of the upright picture, and is charged for that."""
    long = encode(".jpg", np.zeros((20, 400, 3), np.uint8))
    one = decoding(size=[48, None])
    assert one.item(long)[0].shape == (3, 48, 960)
    assert one.item(turned_jpeg(long))[0].shape == (3, 48, 3)
    assert one.decoder.cost(long) > 100 * one.decoder.cost(turned_jpeg(long))
    ignoring = decoding(size=[48, None], orientation="ignore")
    assert ignoring.decoder.cost(turned_jpeg(long)) == ignoring.decoder.cost(long)


def test_an_item_is_charged_by_its_own_size() -> None:
    """The byte budget counts the item as it will be, twice, and the picture after resizing."""
    cost = decoding(kind="float", size=[48, None]).decoder.cost(encode(".png", NOISE))
    item = 3 * 48 * 64
    assert cost == 2 * 4 * item
    double = decoding(kind="float", size=[96, None]).decoder.cost(encode(".png", NOISE))
    assert double == 4 * cost + 4 * item


@pytest.mark.parametrize("shape", [(10, 20_000), (20_000, 10)])
def test_a_very_long_picture_is_refused_by_its_header(shape: tuple[int, int]) -> None:
    """10 x 20,000 pixels would be 48 x 96,000: more than the budget holds is refused before the decode; upright it is 1 wide."""
    value = encode(".png", np.zeros((*shape, 3), np.uint8))
    one = decoding(kind="float", size=[48, None], limits={"in_flight_bytes": 64 << 20})
    if shape[0] > shape[1]:
        assert one.item(value)[0].shape == (3, 48, 1)
        return
    with pytest.raises(Reject, match="48 x 96000") as caught:
        one.decoder.cost(value[:40])
    assert caught.value.reason == "too_many_pixels"
    assert one.refusal(value)[0] == "too_many_pixels"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"multiple": 32}, "multiple goes with resize: fit"),
        ({"resize": "letterbox", "min_side": 32}, "min_side goes with resize: fit"),
        ({"size": [48, 48], "pad_to": [48, 48]}, "pad_to goes with resize: fit"),
        ({"size": [48, None], "min_side": 32}, "either size, or min_side"),
        ({"resize": "fit", "size": [640, 630], "multiple": 32}, "expected multiples of multiple"),
        ({"resize": "fit", "pad": "none", "pad_to": [48, 320]}, "nothing to pad"),
        ({"size": [48, 0]}, "expected \\[height, width\\]"),
        ({"size": 48}, "expected \\[height, width\\]"),
        ({"size": [48, None, 3]}, "expected \\[height, width\\]"),
    ],
)
def test_settings_that_say_nothing_together_are_refused(image: Any, said: str) -> None:
    """What has no meaning without a free side is refused instead of being passed over."""
    pipeline = {
        "input": {"topics": ["in"], "format": "image"},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out"},
    }
    with pytest.raises(ValueError, match=said):
        PipelineSettings.model_validate(pipeline | {"preprocess": {"image": image}})


@pytest.mark.parametrize(
    ("shape", "image", "said"),
    [
        (FREE, {}, r"size: required.*resize: fit or none"),
        (FREE, {"size": [48, None], "resize": "letterbox"}, "expected two numbers, or resize: fit"),
        (("N", 3, 48, 320), {"size": [48, None]}, r"\[48, null\].*expected \[48, 320\]"),
        (("N", 3, 48, "W"), {"resize": "fit", "min_side": 30}, "need free sides"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(shape: Any, image: Any, said: str) -> None:
    """A side that is open for the picture and fixed by the model, or the other way round."""
    with pytest.raises(ConfigError, match=said):
        decoding(shape, **image)


def test_an_integer_model_has_whole_borders() -> None:
    """127.5 is no pixel of a uint8 model."""
    with pytest.raises(ConfigError, match="expected an integer"):
        decoding(resize="fit", pad_value=127.5)


def line(height: int, width: int) -> Any:
    """Something like a line of text, BGR."""
    page = np.full((height, width, 3), 240, np.uint8)
    cv2.putText(
        page,
        "Invoice 2024-117 total",
        (5, height * 3 // 4),
        cv2.FONT_HERSHEY_SIMPLEX,
        height / 40,
        (30, 20, 10),
        2,
    )
    return page


@pytest.mark.parametrize("size", [(60, 374), (48, 320), (31, 77), (20, 500), (37, 911)])
def test_a_line_is_prepared_as_rapidocr_does(size: tuple[int, int]) -> None:
    """[48, null] with top_left, padded to 320, is RapidOCR's input of its recogniser, to 1e-6."""
    picture = line(*size)
    one = decoding(
        ("N", 3, "H", "W"), "float", size=[48, None], pad="top_left", pad_to=[48, 320], pad_value=127.5, **OCR
    )
    ours = one.item(encode(".png", picture[..., ::-1]))[0]
    theirs = recognizer_input(picture)
    assert ours.shape[:2] == theirs.shape[:2]
    # beyond 320 the package cuts the width off where we round it up: one column more
    assert 0 <= ours.shape[2] - theirs.shape[2] <= 1
    if ours.shape == theirs.shape:
        assert np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize("size", [(600, 800), (736, 736), (1000, 750), (333, 1999), (90, 40)])
def test_a_page_is_prepared_as_rapidocr_does(size: tuple[int, int]) -> None:
    """fit with min_side 736, multiple 32 and pad none is RapidOCR's input of its detector, to 1e-6."""
    picture = line(*size)
    one = decoding(("N", 3, "H", "W"), "float", resize="fit", min_side=736, multiple=32, pad="none", **OCR)
    ours = one.item(encode(".png", picture[..., ::-1]))[0]
    theirs = detector_input(picture)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6
