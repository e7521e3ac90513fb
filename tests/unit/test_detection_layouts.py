"""Every layout of a detector's outputs, against the formulas and libraries that its users have."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from detection_support import fitted, mask_of, picture_signature, predicted
from encode_support import pipeline

from worker.errors import ConfigError
from worker.model.signature import Shown, Signature, TensorSpec
from worker.postprocess import postprocess

RANDOM = np.random.default_rng(5)


def boxes(found: Any) -> list[list[float]]:
    return [[*box["xyxy"], box["score"], box["class_id"]] for box in found["boxes"]]


def same(found: Any, expected: Any) -> None:
    """The boxes in this order: corners, score, class."""
    np.testing.assert_allclose(boxes(found), expected, rtol=1e-4, atol=1e-3)


def candidates(count: int, classes: int, span: float = 60) -> Any:
    """Random rows of layout yolov5: many of them overlap."""
    centres, sides = RANDOM.random((count, 2)) * span, RANDOM.random((count, 2)) * 20 + 2
    return np.hstack([centres, sides, RANDOM.random((count, 1 + classes))]).astype(np.float32)


def suppressed_by_opencv(rows: Any, least: float, iou: float, by_class: bool) -> list[Any]:
    """What cv2.dnn.NMSBoxes keeps of yolov5 rows: corners, score, class, best first; cut at the picture's edges before."""
    scores = (rows[:, 5:] * rows[:, 4:5]).max(axis=1)
    classes = rows[:, 5:].argmax(axis=1)
    corners = np.hstack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]])
    if by_class:
        kept = cv2.dnn.NMSBoxesBatched(corners.tolist(), scores.tolist(), classes.tolist(), least, iou)
    else:
        kept = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), least, iou)
    found = [
        [*corners[i, :2], *(corners[i, :2] + corners[i, 2:]), scores[i], classes[i]] for i in np.ravel(kept)
    ]
    return sorted(found, key=lambda box: -box[4])


@pytest.mark.parametrize("nms", ["class", "all"])
def test_yolov5_rows_are_what_opencv_keeps_of_them(nms: str) -> None:
    """A score is objectness times the best class; suppression within classes or across them is that of cv2.dnn."""
    rows = candidates(300, 3)
    found = predicted({"detection": {"layout": "yolov5", "nms": nms, "score": 0.3}}, {"y": rows})
    expected = suppressed_by_opencv(rows, 0.3, 0.45, nms == "class")
    assert len(expected) > 20
    same(found, expected)


def test_without_suppression_every_box_stays() -> None:
    """`nms: none` gives all boxes above the score, best first, at most `max`."""
    rows = candidates(300, 3)
    scores = np.sort((rows[:, 5:] * rows[:, 4:5]).max(axis=1))[::-1]
    found = predicted({"detection": {"layout": "yolov5", "nms": "none", "score": 0, "max": 250}}, {"y": rows})
    np.testing.assert_allclose([box["score"] for box in found["boxes"]], scores[:250], rtol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [((64, 96), 96 + 24 + 6), ((64, 128), 128 + 32 + 8 + 2)])
def test_yolox_cells_become_boxes(size: tuple[int, int], cells: int) -> None:
    """Centre = (cell + offset) * stride, size = e^value * stride; the grids of 8, 16, 32 (and 64) follow one another."""
    rows = np.hstack([RANDOM.normal(size=(cells, 4)) * 0.3, RANDOM.random((cells, 4))]).astype(np.float32)
    expected, index = [], 0
    for stride in (8, 16, 32, 64) if size[1] == 128 else (8, 16, 32):
        for y in range(size[0] // stride):
            for x in range(size[1] // stride):
                dx, dy, w, h, objectness, *classes = rows[index]
                cx, cy, w, h = (dx + x) * stride, (dy + y) * stride, np.exp(w) * stride, np.exp(h) * stride
                score, best = objectness * max(classes), int(np.argmax(classes))
                expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, best])
                index += 1
    assert index == cells
    found = predicted(
        {"detection": {"layout": "yolox", "nms": "none", "score": 0, "max": 999}}, {"y": rows}, size
    )
    same(found, sorted(expected, key=lambda box: -box[4]))


def test_finished_boxes_are_not_suppressed_again() -> None:
    """end2end and xyxy read the same rows; only xyxy leaves out what overlaps."""
    rows = np.array([[0, 0, 10, 10, 0.9, 1], [1, 0, 11, 10, 0.8, 1], [0, 0, 0, 0, 0, 0]])
    assert len(boxes(predicted({"detection": {"layout": "xyxy"}}, {"y": rows}))) == 1
    same(predicted({"detection": {"layout": "end2end"}}, {"y": rows}), rows[:2])


def alone(rows: Any, layout: str = "end2end") -> Any:
    """The prediction of a model that takes one picture at a time and gives a free number of rows."""
    from worker.errors import Rejection

    one = postprocess(
        pipeline({"detection": {"layout": layout}}).postprocess,
        picture_signature({"y": [None, rows.shape[1]]}, (64, 64), batchable=False),
        None,
    )
    [found] = one.predictions({"y": rows[np.newaxis].astype(np.float32)}, 1, [None], True)
    return found.message if isinstance(found, Rejection) else found


def test_rows_of_seven_begin_with_the_number_of_the_picture() -> None:
    """YOLOv7's export with suppression: picture, x1, y1, x2, y2, class, score; another picture's row is a model error."""
    import json

    rows = np.array([[0, 1, 2, 30, 40, 3, 0.5], [0, 1, 2, 9, 9, 0, 0.75]])
    same(json.loads(alone(rows)), [[1, 2, 9, 9, 0.75, 0], [1, 2, 30, 40, 0.5, 3]])
    rows[1, 0] = 1
    assert "the first of 7 columns is not 0" in alone(rows)
    with pytest.raises(ConfigError, match="7 columns, of which the first is the number of the picture"):
        predicted({"detection": {"layout": "end2end"}}, {"y": rows})


def test_detr_scores_leave_out_no_object() -> None:
    """Softmax over all logits, the best of all but the last; boxes are centre and size as shares of the input."""
    logits, shares = RANDOM.normal(size=(40, 6)) * 3, RANDOM.random((40, 4))
    powers = np.exp(logits)
    chances = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    scores, best = chances.max(axis=1), chances.argmax(axis=1)
    x, y, w, h = shares.T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1) * [96, 64, 96, 64]
    order = [i for i in np.argsort(-scores) if scores[i] >= 0.5]
    assert len(order) > 5
    found = predicted(
        {"detection": {"layout": "detr", "score": 0.5}}, {"logits": logits, "pred_boxes": shares}, (64, 96)
    )
    same(found, [[*corners[i], scores[i], best[i]] for i in order])


def test_detr_boxes_are_in_pixels_of_the_picture() -> None:
    """A share of the model's input goes through the letterbox back to the picture."""
    logits = np.array([[0.0, 9.0, 0.0]])
    geometry = fitted(200, 100, (0.32, 0.32), (16, 0))  # 100 x 200 pixels in the middle of 64 x 64
    found = predicted(
        {"detection": {"layout": "detr"}},
        {"logits": logits, "boxes": np.array([[0.5, 0.5, 0.25, 0.5]])},
        (64, 64),
        geometry,
    )
    np.testing.assert_allclose(found["boxes"][0]["xyxy"], [25, 50, 75, 150], rtol=1e-5)


TF = {
    "detection_boxes": np.array([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0.3, 0.3, 0.4, 0.4]]),
    "detection_classes": np.array([3.0, 1.0, 2.0]),
    "detection_scores": np.array([0.9, 0.8, 0.7]),
    "num_detections": np.array([2.0]),
}


@pytest.mark.parametrize("named", [True, False])
def test_tensorflow_gives_four_outputs(named: bool) -> None:
    """y1, x1, y2, x2 as shares, classes, scores and how many of them count; found by name, or by shape and place."""
    outputs = TF if named else {f"StatefulPartitionedCall:{i}": value for i, value in enumerate(TF.values())}
    found = predicted({"detection": {"layout": "tensorflow"}}, outputs, (100, 200))
    same(found, [[40, 10, 120, 50, 0.9, 3], [0, 0, 200, 100, 0.8, 1]])


def test_a_tensorflow_model_may_have_more_outputs() -> None:
    """Those before suppression are passed over."""
    more = {"raw_detection_boxes": np.zeros((9, 4)), "raw_detection_scores": np.zeros((9, 3)), **TF}
    assert len(predicted({"detection": {"layout": "tensorflow"}}, more)["boxes"]) == 2


@pytest.mark.parametrize("count", [-1.0, 4.0])
def test_a_count_beyond_the_boxes_is_a_model_error(count: float) -> None:
    """It costs the record and reads nothing that is not there."""
    found = predicted({"detection": {"layout": "tensorflow"}}, TF | {"num_detections": np.array([count])})
    assert found[0] == "model_error"
    assert "expected a count and as many boxes" in found[1]


# -- masks


def seg(weights: Any, box: Any, prototypes: Any) -> dict[str, Any]:
    """A model's outputs with one candidate of one class."""
    column = np.concatenate([box, [0.9], weights])
    others = np.zeros((len(column), 9))
    return {"output0": np.hstack([column[:, None], others]), "output1": prototypes}


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "crop", None])
def test_a_mask_is_what_opencv_makes_of_the_prototypes(geometry: str | None) -> None:
    """Prototypes by weights, resized linearly to the picture, above 0 inside the box; outside of a crop nothing is."""
    prototypes = cv2.GaussianBlur(RANDOM.normal(size=(16, 16, 4)), (5, 5), 0).transpose(2, 0, 1)
    weights = RANDOM.normal(size=4)
    centred = np.array([30, 36, 44.6, 40.2])
    logits = np.tensordot(weights, prototypes, 1).astype(np.float32)
    if geometry == "stretch":
        context = fitted(150, 90, (64 / 90, 64 / 150))
        expected = cv2.resize(logits, (90, 150), interpolation=cv2.INTER_LINEAR) > 0
    elif geometry == "letterbox":  # 128 x 64 pixels as 64 x 32 in the middle
        context = fitted(64, 128, (0.5, 0.5), (0, 16))
        expected = cv2.resize(logits, (128, 128), interpolation=cv2.INTER_LINEAR)[32:96] > 0
    elif geometry == "crop":  # the middle of 128 x 64 pixels
        context = fitted(64, 128, (1, 1), (-32, 0))
        expected = np.zeros((64, 128), bool)
        expected[:, 32:96] = cv2.resize(logits, (64, 64), interpolation=cv2.INTER_LINEAR) > 0
    else:
        context = None
        expected = cv2.resize(logits, (64, 64), interpolation=cv2.INTER_LINEAR) > 0
    found = predicted(
        {"detection": {"layout": "yolov8-seg"}}, seg(weights, centred, prototypes), (64, 64), context
    )
    [box] = found["boxes"]
    x1, y1, x2, y2 = box["xyxy"]
    inside = np.zeros_like(expected)
    inside[int(np.ceil(y1)) : int(np.ceil(y2)), int(np.ceil(x1)) : int(np.ceil(x2))] = True
    mask = mask_of(box["rle"], found["size"])
    assert mask.shape == expected.shape
    assert mask.sum() > 100
    # pixels where the interpolated value is 0 but for rounding
    assert (mask != (expected & inside)).sum() <= 2


def test_masks_have_the_scores_and_boxes_of_the_same_candidates() -> None:
    """A box keeps its own mask through suppression and the order by score."""
    prototypes = np.stack([np.full((8, 8), 1.0), np.full((8, 8), -1.0)])
    columns = np.array([[16, 16, 8, 8, 0.5, 1, 0], [48, 48, 8, 8, 0.9, 0, 1], [48, 48, 8, 9, 0.8, 1, 0]]).T
    found = predicted({"detection": {"layout": "yolov8-seg"}}, {"a": columns, "b": prototypes})
    sums = [int(mask_of(box["rle"], found["size"]).sum()) for box in found["boxes"]]
    assert ([round(box["score"], 1) for box in found["boxes"]], sums) == ([0.9, 0.5], [0, 64])


def test_masks_too_ragged_are_refused() -> None:
    """A picture whose masks have over 262,144 runs is refused before they are kept, however large it is."""
    noise = RANDOM.normal(size=(2, 700, 700))
    columns = np.array([[32, 32, 64, 64, 0.9, 1, 0]]).T.repeat(2, axis=1)
    found = predicted(
        {"detection": {"layout": "yolov8-seg", "nms": "none"}},
        {"a": columns, "b": noise},
        (64, 64),
        fitted(700, 700, (64 / 700, 64 / 700)),
    )
    assert found[0] == "too_large_output"


def test_masks_of_too_many_pixels_are_refused() -> None:
    """Two boxes over a picture of 16,000 x 16,000 pixels would take seconds to answer: refused by their size."""
    columns = np.array([[32, 32, 64, 64, 0.9, 1, 0]]).T.repeat(2, axis=1)
    found = predicted(
        {"detection": {"layout": "yolov8-seg", "nms": "none"}},
        {"a": columns, "b": np.ones((2, 8, 8))},
        (64, 64),
        fitted(16_000, 16_000, (64 / 16_000, 64 / 16_000)),
    )
    assert found[0] == "too_large_output"
    assert "512000000 pixels" in found[1]


# -- what is asked for


def test_only_the_classes_asked_for_are_given() -> None:
    """By label, before suppression: a box of another class takes no place."""
    rows = np.array([[0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 0], [20, 0, 30, 10, 0.7, 2]])
    options = {"layout": "xyxy", "nms": "all", "max": 1}
    found = predicted(
        {"detection": options | {"classes": ["ape", "cat"]}}, {"y": rows}, labels=["ape", "bear", "cat"]
    )
    assert [box["label"] for box in found["boxes"]] == ["ape"]
    assert [
        box["label"] for box in predicted({"detection": options | {"classes": [2]}}, {"y": rows})["boxes"]
    ] == ["2"]


@pytest.mark.parametrize("name", ["score", "threshold"])
def test_a_class_has_a_score_of_its_own(name: str) -> None:
    """`score` by label, with `default` for the others; `threshold` is another name for it."""
    rows = np.array([[20 * i, 0, 20 * i + 9, 9, 0.6, i] for i in range(3)])
    options = {"layout": "xyxy", name: {"default": 0.5, "bear": 0.75, "cat": 0.1}}
    found = predicted({"detection": options}, {"y": rows}, labels=["ape", "bear", "cat"])
    assert [box["label"] for box in found["boxes"]] == ["ape", "cat"]
    found = predicted({"detection": {"layout": "xyxy", name: {"1": 0.75}}}, {"y": rows})
    assert [box["class_id"] for box in found["boxes"]] == [0, 2]


# -- refused at start

LABELS = ["ape", "bear"]


@pytest.mark.parametrize(
    ("options", "outputs", "size", "said"),
    [
        ({"layout": "yolov5"}, {"y": (100, 8)}, (64, 64), "labels names 2 classes, the output has 3"),
        ({"layout": "yolov5"}, {"y": (100, 5)}, (64, 64), r"not 5 \+ classes columns"),
        ({"layout": "yolox"}, {"y": (252, 7)}, (64, 64), "input of 64 x 64 pixels have 84 or 85 cells.*yolov5"),
        ({"layout": "end2end"}, {"y": (100, 8)}, (64, 64), "neither 6 nor 7 columns"),
        ({"layout": "detr"}, {"y": (100, 6)}, (64, 64), "expected two outputs, logits and boxes"),
        ({"layout": "detr"}, {"logits": (9, 5), "boxes": (9, 4)}, (64, 64), "names 2 classes, the output has 4"),
        ({"layout": "detr"}, {"logits": (9, 3), "boxes": (8, 4)}, (64, 64), "9 rows of logits, 8 boxes"),
        ({"layout": "tensorflow"}, {"boxes": (9, 4), "scores": (9,)}, (64, 64), "expected four outputs"),
        ({"layout": "yolov8-seg"}, {"y": (38, 90)}, (64, 64), "expected two outputs, candidates and"),
        ({"layout": "yolov8-seg"}, {"y": (40, 90), "z": (32, 9, 9)}, (64, 64), "names 2 classes, the output has 4"),
        ({"layout": "yolov8"}, {"y": (38, 90), "z": (32, 9, 9)}, (64, 64), "segmentation model; layout yolov8-seg"),
        ({"classes": ["cow"]}, {"y": (6, 90)}, (64, 64), r"\.classes: got 'cow', expected one of ape, bear"),
        ({"score": {"cow": 0.5}}, {"y": (6, 90)}, (64, 64), r"\.score: got 'cow', expected one of ape"),
        ({"score": 0.5, "threshold": 0.5}, {"y": (6, 90)}, (64, 64), "expected only one of score and threshold"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_start(options: Any, outputs: Any, size: Any, said: str) -> None:
    """One sentence names the setting, what speaks against it, and a layout that would fit where there is one."""
    with pytest.raises(ConfigError, match=rf"postprocess\.detection.*{said}"):
        postprocess(pipeline({"detection": options}).postprocess, picture_signature(outputs, size), LABELS)


@pytest.mark.parametrize(
    ("layout", "answer", "said"),
    [
        ("yolov5", {"y": np.full((84, 7), -0.5)}, "a width or height below 0; layout yolox"),
        ("yolox", {"y": np.tile([30, 30, 20, 20, 0.5, 0.5, 0.5], (84, 1))}, "in pixels already.*layout yolov5"),
        ("detr", {"logits": np.zeros((9, 3)), "boxes": np.full((9, 4), 30)}, "coordinate of 30, not a share"),
        ("tensorflow", TF | {"detection_scores": np.array([9.0, 1, 1])}, "a score would be 9, not within 0 and 1"),
        ("end2end", {"y": np.full((9, 6), 0.5)}, "the column of classes holds no class numbers"),
    ],
)  # fmt: skip
def test_answers_to_made_up_items_speak_against_a_layout(layout: str, answer: Any, said: str) -> None:
    """What the model answers to a made-up picture shows a layout that its shapes alone do not rule out."""
    if layout == "yolov5":
        answer["y"][:, 4:] = 0.5
    shapes = {name: value.shape for name, value in answer.items()}
    answers = ({name: value[np.newaxis].astype(np.float32) for name, value in answer.items()},)
    with pytest.raises(ConfigError, match=f"layout {layout} does not fit .*{said}"):
        postprocess(
            pipeline({"detection": {"layout": layout}}).postprocess,
            picture_signature(shapes, (64, 64), answers=answers),
            None,
        )


@pytest.mark.parametrize(
    ("layout", "task", "said"),
    [
        ("yolov8", "pose", "task pose; expected detect, or postprocess keypoints"),
        ("yolov8", "segment", "task segment; expected detect, or layout yolov8-seg"),
        ("yolov8-seg", "detect", "task detect; expected segment, or another layout"),
    ],
)
def test_a_model_for_another_task_is_refused(layout: str, task: str, said: str) -> None:
    """Ultralytics writes the task into the file; the sentence says what reads such a model."""
    signature = picture_signature({"y": (38, 90), "z": (32, 9, 9)}, (64, 64), metadata={"task": task})
    with pytest.raises(ConfigError, match=said):
        postprocess(pipeline({"detection": {"layout": layout}}).postprocess, signature, None)


def test_a_model_of_a_fixed_batch_gives_items() -> None:
    """A first dimension that the file fixes above 1 counts items, for layouts of one output and of several."""
    outputs = {"y": (4, 40, 90), "z": (4, 32, 9, 9)}
    given = TensorSpec.of("x", "tensor(float)", [4, 3, 64, 64])
    specs = tuple(TensorSpec.of(name, "tensor(float)", shape) for name, shape in outputs.items())
    answers = ({name: np.zeros(shape, np.float32) for name, shape in outputs.items()},)
    model = Signature((given,), specs, False, Shown(answers))
    one = postprocess(pipeline({"detection": {"layout": "yolov8-seg"}}).postprocess, model, None)
    arrays = {name: answers[0][name][:1][np.newaxis] for name in outputs}
    assert one.predictions(arrays, 1, [None], True) == [b'{"size":[64,64],"boxes":[]}']
