"""Settings of answers are held against the model at start: its file, its metadata and its answers to made-up items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import structlog
import yaml

from worker import settings
from worker.cli.sample import answer
from worker.errors import ConfigError, Reject
from worker.serving.load import load
from worker.serving.rollout import Rollout

RANDOM = np.random.default_rng(3)


def loaded(folder: Path, model: bytes, postprocess: Any, **input_settings: Any) -> Rollout:
    """A pipeline with this model and postprocess, as a worker makes it."""
    models.write(folder, model)
    config = folder / "worker.yaml"
    document = {
        "input": {"topics": ["in"], "format": "json", **input_settings},
        "model": {"path": "model.onnx"},
        "postprocess": postprocess,
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
    }
    config.write_text(yaml.safe_dump(document))
    with structlog.testing.capture_logs():
        return load(settings.load(config))["model"]


def predicted(rollout: Rollout, *features: float) -> Any:
    return answer(rollout, json.dumps({"features": features}).encode())["prediction"]


# Classes


@pytest.mark.parametrize("in_operator", [True, False], ids=["named in the file", "seen in answers"])
@pytest.mark.parametrize("way", ["list", "file"])
def test_labels_in_another_order_than_the_models_are_refused(
    tmp_path: Path, in_operator: bool, way: str
) -> None:
    """The model's own class names in another order would give every answer a wrong name."""
    model = models.linear_classifier(["a", "b", "c"], in_operator)
    (tmp_path / "labels.txt").write_text("c\na\nb\n")
    labels = {"list": ["c", "a", "b"], "file": "labels.txt"}[way]
    with pytest.raises(ConfigError, match=r"postprocess\.classification\.labels: (the order|class \d) is"):
        loaded(tmp_path, model, {"classification": {"labels": labels}})


@pytest.mark.parametrize("in_operator", [True, False])
@pytest.mark.parametrize("labels", [["a", "b", "c"], ["ape", "bear", "cat"]])
def test_labels_in_the_models_order_or_translated_are_taken(
    tmp_path: Path, in_operator: bool, labels: list[str]
) -> None:
    """The model's own names in its order are right; names that are not the model's are a translation."""
    model = models.linear_classifier(["a", "b", "c"], in_operator)
    found = predicted(loaded(tmp_path, model, {"classification": {"labels": labels}}), 0, 2, 1)
    assert (found["label"], found["score"]) == (labels[1], 2.0)


def test_integer_classes_are_compared_as_text(tmp_path: Path) -> None:
    """A label file that lists the model's numbers in another order is refused as well."""
    with pytest.raises(ConfigError, match="the model's own order is 3, 5, 7"):
        loaded(tmp_path, models.linear_classifier([3, 5, 7]), {"classification": {"labels": ["5", "3", "7"]}})


@pytest.mark.parametrize("classes", [["a", "b", "c"], [3, 5, 7]])
def test_labels_are_the_models_own_names_by_default(tmp_path: Path, classes: list[Any]) -> None:
    """Without labels in the settings, the names in the model file are taken."""
    rollout = loaded(tmp_path, models.linear_classifier(classes), {"classification": {"top_k": 3}})
    assert [entry["label"] for entry in predicted(rollout, 0, 2, 1)["top"]] == [
        str(classes[1]),
        str(classes[2]),
        str(classes[0]),
    ]


@pytest.mark.parametrize("classes", [["a", "b", "c"], [3, 5, 7]])
def test_labels_can_come_from_an_output(tmp_path: Path, classes: list[Any]) -> None:
    """The label is what the model's own output says, the score the best one; below the threshold there is neither."""
    model = models.linear_classifier(classes, names_in_the_operator=False)
    rollout = loaded(tmp_path, model, {"classification": {"labels": {"from": "label"}, "threshold": 1.5}})
    assert predicted(rollout, 0, 1, 2) == {
        "label": str(classes[2]),
        "score": 2.0,
        "top": [{"label": str(classes[2]), "score": 2.0}],
    }
    assert predicted(rollout, 0, 1, 0) == {"label": None, "score": None, "top": []}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": {"from": "nothing"}}, "no output 'nothing'; expected one of label, scores"),
        ({"labels": {"from": "scores"}}, "'scores' is FP32; expected strings or integers"),
        ({"labels": {"from": "label"}, "top_k": 2}, "top_k: got 2, expected 1"),
    ],
)
def test_an_output_that_cannot_be_a_label_is_refused(tmp_path: Path, options: Any, said: str) -> None:
    """The sentence names the output, or the setting that does not go with it."""
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, models.linear_classifier(), {"classification": options})


def test_one_number_per_item_is_no_classification(tmp_path: Path) -> None:
    """One probability would be class 0 for every record: refused at start, also if only the answer shows the width."""
    with pytest.raises(ConfigError, match="one number per item; expected regression"):
        loaded(tmp_path, models.probability(), {"classification": {}})


def test_raw_scores_below_zero_are_answers(tmp_path: Path) -> None:
    """Without a threshold the best class is given, however low it scores."""
    found = predicted(loaded(tmp_path, models.linear_classifier(), {"classification": {}}), -3, -2, -4)
    assert (found["label"], found["score"]) == ("b", -2.0)


# Detection


def yolov8(classes: int, boxes: int = 40) -> np.ndarray:
    head = RANDOM.random((4 + classes, boxes))
    head[:4] *= 20
    return head


def rows(boxes: int, columns: int = 6) -> np.ndarray:
    head = np.zeros((boxes, columns))
    head[0, :6] = [2, 2, 12, 12, 0.9, 1]
    return head


NAMES = {"names": "{0: 'ape', 1: 'bear'}"}
SCORES_ABOVE_1 = yolov8(2)
SCORES_ABOVE_1[5, 3] = 2.28


@pytest.mark.parametrize(
    ("head", "metadata", "layout", "said"),
    [
        (rows(300), {}, "yolov8", r"\[300, 6\], more rows than boxes; layout xyxy .* would fit"),
        (rows(84, 7), {}, "yolov8", r"\[84, 7\], more rows than boxes; layout yolov5 .* would fit"),
        (SCORES_ABOVE_1, {}, "yolov8", "a score would be 2.28"),
        (yolov8(80), NAMES, "yolov8", "the model file names 2 classes, the output has 80"),
        (rows(300), {"end2end": "True"}, "yolov8", "layout xyxy"),
        (yolov8(2), {"task": "pose"}, "yolov8", "task pose; expected detect"),
        (rows(300) + 0.3, {}, "xyxy", "sixth column holds no class numbers"),
        (yolov8(2), {}, "xyxy", "not 6 columns; layout yolov8 .* would fit"),
    ],
)  # fmt: skip
def test_a_head_of_another_layout_is_refused(
    tmp_path: Path, head: np.ndarray, metadata: dict[str, str], layout: str, said: str
) -> None:
    """One sentence says what speaks against the layout, and names the one that would fit."""
    with pytest.raises(ConfigError, match=rf"postprocess\.detection.*{said}"):
        loaded(tmp_path, models.detector(head, metadata), {"detection": {"layout": layout}}, format="image")


def test_a_segmentation_model_is_refused(tmp_path: Path) -> None:
    """Mask coefficients are not read as classes."""
    with pytest.raises(ConfigError, match="4 dimensions, as masks do"):
        loaded(tmp_path, models.detector(yolov8(34), masks=True), {"detection": {}}, format="image")


@pytest.mark.parametrize(
    ("head", "metadata", "options"),
    [
        (yolov8(2), NAMES, {}),
        (yolov8(80, 21), {}, {"labels": [f"class {i}" for i in range(80)]}),
        (rows(300), NAMES | {"end2end": "True", "task": "detect"}, {"layout": "xyxy"}),
    ],
    ids=["names", "few boxes", "end to end"],
)
def test_a_head_of_the_layout_is_taken(
    tmp_path: Path, head: np.ndarray, metadata: dict[str, str], options: Any
) -> None:
    """Labels that count as many classes as the output show that few boxes are no sign of another layout."""
    loaded(tmp_path, models.detector(head, metadata), {"detection": options}, format="image")


def test_names_of_the_model_file_are_the_labels(tmp_path: Path) -> None:
    """Ultralytics writes the class names into the file: without labels in the settings these are taken."""
    rollout = loaded(
        tmp_path, models.detector(rows(9), NAMES), {"detection": {"layout": "xyxy"}}, format="tensor"
    )
    (box,) = answer(rollout, bytes(32 * 32 * 3))["prediction"]["boxes"]
    assert (box["label"], box["class_id"]) == ("bear", 1)


def test_a_score_above_one_is_no_box(tmp_path: Path) -> None:
    """Scores that only a real record drives above 1 are a model error, never a box with such a score."""
    model = models.detector(np.full((6, 40), 0.5), little=1.0)  # a made-up picture of zeros adds nothing
    rollout = loaded(tmp_path, model, {"detection": {}}, format="tensor")
    assert len(answer(rollout, bytes(32 * 32 * 3))["prediction"]["boxes"]) > 0
    with pytest.raises(Reject, match="not of layout yolov8"):
        answer(rollout, b"\xff" * (32 * 32 * 3))
