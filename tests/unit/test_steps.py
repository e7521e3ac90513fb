"""Several models for one record: what each step is given, what the result holds, and what a fault in a step costs."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import ocr_models
import pytest
import structlog

from worker import settings
from worker.assembly import bytes_for_records
from worker.batch import Batch, Columns, Partition
from worker.cli.demo import Digits
from worker.cli.sample import answer
from worker.errors import ConfigError, Reject
from worker.features.crops import cut, size_of
from worker.serving.cascade import Cascade
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.serving.versions import resolved

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
BOXES = """
import numpy as np

def find(outputs, item):
    "Boxes of a picture: as many as its brightest channel says, each 8 pixels further down."
    count = int(round(max(float(v) for v in outputs["y"])))
    return {"boxes": [{"xyxy": [2.2, 8.0 * i + 0.7, 20.0, 8.0 * i + 8.0], "score": 0.1 * i} for i in range(count)]}

def nothing(outputs, item):
    return {"boxes": [{"score": 1.0}]}

def no_number(outputs, item):
    return {"boxes": [{"xyxy": [0, "a", 2, 3]}]}

def far(outputs, item):
    return {"boxes": [{"points": [[0, 0], [1e9, 0], [1e9, 5], [0, 5]]}]}

def many(outputs, item):
    return {"boxes": [{"xyxy": [0, 0, 4, 4]}] * 1001}

def centre(outputs, item):
    return {"boxes": [{"xyxy": [4, 4, 20, 12]}]}

def asks(outputs, item):
    import pathlib
    import worker
    if not (pathlib.Path(__file__).parent / "service").exists():
        raise worker.Retry("the service is away")
    return {"asked": True}

def word(outputs, item):
    return {"text": "on" if float(outputs["y"][0]) > 1 else "off", "pair": ["3", "4"]}
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_boxes.py").write_text(BOXES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "found_boxes", raising=False)


def made(tmp_path: Path, steps: Sequence[dict[str, Any]] | None, **rest: Any) -> Rollout:
    """The only pipeline of a configuration with these steps, loaded."""
    document = {
        "name": "two",
        "input": {"topics": ["in"], "format": "json"},
        "steps": steps,
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    with structlog.testing.capture_logs():
        [rollout] = load(settings.validate(document | rest, tmp_path)).values()
    return rollout


def run(rollout: Rollout, values: Sequence[bytes], engine: Engine | None = None) -> Batch:
    """These records as one batch through the engine."""
    count, now_ms = len(values), time.time() * 1000
    columns = Columns(
        [*values], [None] * count, [None] * count, [0] * count, [*range(count)], [Partition("in", 0)] * count
    )
    batch = Batch(None, range(count), columns, rollout.route, rollout.choose(), time.monotonic_ns(), now_ms)
    through(engine or Engine(), batch)
    return batch


def through(engine: Engine, batch: Batch) -> None:
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)


def results(batch: Batch) -> list[Any]:
    assert batch.outcomes is not None
    return [None if body is None else json.loads(body) for body in batch.outcomes.bodies]


def refusals(batch: Batch) -> dict[int, tuple[str, str, str]]:
    assert batch.outcomes is not None
    return {row: (r.reason, r.stage, r.message) for row, r in batch.outcomes.rejected.items()}


def features(*numbers: float) -> bytes:
    return json.dumps({"features": numbers}).encode()


def png(picture: Any) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1])


# -- escalation --------------------------------------------------------------------------------------------


def escalation(tmp_path: Path, large: bytes | None = None, **step: Any) -> list[dict[str, Any]]:
    """A small classifier whose scores are the record's numbers, and a large one where the best is below 0.8."""
    models.write(tmp_path, models.identity(), "small.onnx")
    models.write(tmp_path, large or models.two_outputs(), "large.onnx")
    return [
        {"name": "small", "model": {"path": "small.onnx"}, "postprocess": "classification"},
        {
            "name": "large",
            "when": {"small.score": {"below": 0.8}},
            "model": {"path": "large.onnx"},
            "postprocess": {"fields": {"double": "double"}} if large is None else "raw",
            **step,
        },
    ]


def test_only_unsure_records_reach_the_large_model(tmp_path: Path) -> None:
    """The second step answers where the first one's score is below the bound, and is absent elsewhere; its run holds only those."""
    batch = run(
        made(tmp_path, escalation(tmp_path)),
        [
            features(0, 0.9, 0, 0),
            features(0.5, 0.3, 0.1, 0.1),
            features(0.8, 0, 0, 0.1),
            features(0, 0, 0, 0.7),
        ],
    )
    said = [result["prediction"] for result in results(batch)]
    assert [each["small"]["label"] for each in said] == ["1", "0", "0", "3"]
    assert [each.get("large", {}).get("double") for each in said] == [
        None, pytest.approx([1, 0.6, 0.2, 0.2]), None, pytest.approx([0, 0, 0, 1.4]),
    ]  # fmt: skip
    [answers] = batch.runs
    assert answers.steps is not None
    assert [(part.items, part.runs) for part in answers.steps.values()] == [(4, 1), (2, 1)]


def test_each_step_answers_as_its_model_alone(tmp_path: Path) -> None:
    """Predictions are those of pipelines that have one of the models each, to the last digit."""
    record = features(0.5000001, 0.3, 1e-7, 0.1)
    steps = escalation(tmp_path)
    result = answer(made(tmp_path, steps), record)
    for step in steps:
        alone = {key: step[key] for key in ("model", "postprocess")}
        single = answer(made(tmp_path, None, **alone), record)
        assert result["prediction"][step["name"]] == single["prediction"]


def test_the_parts_of_infer_sum_to_it(tmp_path: Path) -> None:
    """`steps_ms` stands beside `latency_ms`: its parts sum to `infer`, and the stages to `total`; the model names every step's."""
    result = answer(made(tmp_path, escalation(tmp_path)), features(0.5, 0.3, 0.1, 0.1))
    stages = result["latency_ms"]
    assert set(result["steps_ms"]) == {"small", "large"}
    assert sum(round(ms * 1000) for ms in result["steps_ms"].values()) == round(stages["infer"] * 1000)
    total = sum(round(ms * 1000) for name, ms in stages.items() if name != "total")
    assert total == round(stages["total"] * 1000)
    assert result["model"]["name"] == "two"
    assert {name: text.partition("@")[0] for name, text in result["model"]["steps"].items()} == {
        "small": "small", "large": "large",
    }  # fmt: skip


def test_answers_from_memory_are_those_of_all_steps(tmp_path: Path) -> None:
    """With `cache` an equal payload is answered without a run of any step, and says so; `check --sample` can be asked, too."""
    rollout = made(tmp_path, escalation(tmp_path), cache={"bytes": 100_000})
    record = features(0.5, 0.3, 0.1, 0.1)
    first = answer(rollout, record)
    again = answer(rollout, record)
    assert (first["prediction"], "cached" in first) == (again["prediction"], False)
    assert again["cached"] is True
    assert "steps_ms" not in again
    assert set(again["prediction"]) == {"small", "large"}


def test_a_model_of_a_step_may_come_from_a_repository(tmp_path: Path) -> None:
    """The version is chosen at start, with the labels beside it, and named in the results."""
    for version in ("1", "2"):
        folder = tmp_path / "models" / "small" / version
        folder.mkdir(parents=True)
        models.write(folder, models.identity())
        (folder / "labels.txt").write_text("".join(f"{name}{version}\n" for name in "abcd"))
        os.utime(folder / "model.onnx", (0, 0))
        os.utime(folder / "labels.txt", (0, 0))
        os.utime(folder, (0, 0))
    steps = escalation(tmp_path)
    steps[0]["model"] = {"repository": "models", "name": "small"}
    steps[0]["postprocess"] = {"classification": {"labels": "labels.txt"}}
    document = {
        "input": {"topics": ["in"], "format": "json"},
        "steps": steps,
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    found, watched = resolved(settings.validate(document, tmp_path))
    with structlog.testing.capture_logs():
        [rollout] = load(found).values()
    result = answer(rollout, features(0.1, 0.9, 0, 0))
    assert result["prediction"]["small"]["label"] == "b2"
    assert result["model"]["steps"]["small"] == "small@2"
    assert watched == {}


def test_a_poisonous_record_in_the_second_step_costs_itself_alone(tmp_path: Path) -> None:
    """A record that the second model fails on is one dead letter that names the step and its stage; the others are answered."""
    steps = escalation(tmp_path, models.raises_on(0.25))
    values = [features(0.1 * n, 0.1, 0, 0) for n in range(5)] + [
        features(0.25, 0, 0, 0),
        features(0.9, 0, 0, 0),
    ]
    batch = run(made(tmp_path, steps), values)
    [(row, (reason, stage, message))] = refusals(batch).items()
    assert (row, reason, stage) == (5, "model_error", "infer")
    assert message.startswith("step large: ")
    assert [result is not None for result in results(batch)] == [True] * 5 + [False, True]


def test_what_a_first_step_refuses_is_named_too(tmp_path: Path) -> None:
    """A record that the first model fails on names that step, and no later step works for it."""
    models.write(tmp_path, models.raises_on(0.25), "small.onnx")
    steps = escalation(tmp_path)
    models.write(tmp_path, models.raises_on(0.25), "small.onnx")
    steps[0]["postprocess"] = {"classification": {"threshold": 0.0}}
    batch = run(made(tmp_path, steps), [features(0.25, 0, 0, 0), features(0.1, 0, 0, 0), b"no json"])
    assert refusals(batch)[0][2].startswith("step small: ")
    assert refusals(batch)[2][:2] == ("undecodable", "decode")
    assert set(refusals(batch)) == {0, 2}


def test_a_sick_model_of_a_step_is_named(tmp_path: Path) -> None:
    """When the model of a step no longer gives its known output, the batch is sick, says which step, and blames no record."""
    rollout = made(tmp_path, escalation(tmp_path, models.raises_on(0.25)))
    cascade = rollout.choose()
    assert isinstance(cascade, Cascade)
    model = cascade.steps[1].servable.model
    model.sickness = lambda: "output y is not finite"  # type: ignore[method-assign]
    batch = run(rollout, [features(0.25, 0, 0, 0)])
    assert batch.sick is not None
    assert batch.sick.startswith("step large: ")
    assert batch.outcomes is not None
    assert batch.outcomes.rejected == {}


@pytest.mark.parametrize(
    ("condition", "large"),
    [
        ({"small.score": {"above": 0.4}}, [True, False, False]),
        ({"small.score": {"above": 0.2, "below": 0.4}}, [False, True, False]),
        ({"small.label": {"equals": 1}}, [False, True, False]),
        ({"small.label": {"equals": ["0", "1"]}}, [True, True, True]),
        ({"small.score": {"below": 0.4}, "small.label": {"equals": "0"}}, [False, False, True]),
    ],
)
def test_conditions(tmp_path: Path, condition: dict[str, Any], large: list[bool]) -> None:
    """above, below and equals on a number or a text; several entries must all hold."""
    rollout = made(tmp_path, escalation(tmp_path, when=condition))
    batch = run(rollout, [features(0.5, 0, 0, 0), features(0, 0.3, 0, 0), features(0.1, 0, 0, 0)])
    assert ["large" in result["prediction"] for result in results(batch)] == large


def test_a_score_of_nothing_is_below_every_bound(tmp_path: Path) -> None:
    """A classifier that is sure of no class has no score; `below` holds for it, `above` and `equals` do not."""
    for condition, held in (({"below": 0.1}, True), ({"above": 0.0}, False), ({"equals": "0"}, False)):
        steps = escalation(tmp_path, when={"small.score": condition})
        steps[0]["postprocess"] = {"classification": {"threshold": 0.6}}
        [result] = results(run(made(tmp_path, steps), [features(0.5, 0, 0, 0)]))
        assert result["prediction"]["small"]["score"] is None
        assert ("large" in result["prediction"]) == held


def test_fields_of_a_prediction_are_given_to_a_later_step(tmp_path: Path) -> None:
    """A list of numbers feeds a numeric model, a text a model with a string input; numbers are not rounded on the way."""
    models.write(tmp_path, models.identity(), "small.onnx")
    models.write(tmp_path, models.two_outputs(), "large.onnx")
    models.write(tmp_path, models.identity(str, ("N", 1)), "text.onnx")
    steps = [
        {"name": "first", "model": {"path": "small.onnx"}, "postprocess": "found_boxes:word"},
        {"name": "vector", "model": {"path": "small.onnx"}, "postprocess": {"embedding": {}}},
        {"name": "double", "from": "vector.embedding", "model": {"path": "large.onnx"}},
        {
            "name": "same", "from": "first.text", "preprocess": {"text": {}}, "model": {"path": "text.onnx"},
        },
    ]  # fmt: skip
    batch = run(made(tmp_path, steps), [features(0.1, 2, 3, 4), features(1.5, 0, 0, 1e-7)])
    for result, numbers, word in zip(
        results(batch), ([0.1, 2, 3, 4], [1.5, 0, 0, 1e-7]), ("off", "on"), strict=True
    ):
        said = result["prediction"]
        double = (np.array(numbers, np.float32) * 2).tolist()
        assert said["double"]["outputs"]["double"] == [float(str(np.float32(x))) for x in double]
        assert said["same"]["outputs"]["y"] == [word]


def test_the_example_asks_the_large_model_for_a_fifth_of_the_digits() -> None:
    """Of 599 digits that nobody was trained on, the small model reads 586, both together as many as the large one alone."""
    rollout = example("escalation.yaml")
    digits = Digits.load()
    said = [result["prediction"] for result in results(run(rollout, [png(frame) for frame in digits.frames]))]
    truth = [str(label) for label in digits.labels]
    escalated = sum("large" in each for each in said)
    assert 0.15 < escalated / len(said) < 0.25
    right = {
        "small": sum(each["small"]["label"] == label for each, label in zip(said, truth, strict=True)),
        "both": sum(
            each.get("large", each["small"])["label"] == label
            for each, label in zip(said, truth, strict=True)
        ),
    }
    alone = results(run(example("digits.yaml"), [png(frame) for frame in digits.frames]))
    large = sum(each["prediction"]["label"] == label for each, label in zip(alone, truth, strict=True))
    assert right["small"] < right["both"] >= large - 1


# What rapidocr-onnxruntime 1.4.4 with its defaults reads on :func:`page`, with onnxruntime 1.32.
PAGE = ["Order 2024-1177", "stands on its head", "Total 96.50 EUR", "Sideways"]


def page() -> bytes:
    """A page with four lines: one on its head, one along the side."""
    shown = np.full((600, 900, 3), 250, np.uint8)
    shown[30:86, 40:400] = line("Order 2024-1177", 360)
    shown[130:186, 60:440] = line("stands on its head", 380)[::-1, ::-1]
    shown[240:296, 420:760] = line("Total 96.50 EUR", 340)
    shown[310:510, 60:116] = np.rot90(line("Sideways", 200), 3)
    return png(shown)


def line(text: str, width: int) -> Any:
    """(56, width, 3): dark text on light paper."""
    shown = np.full((56, width, 3), 250, np.uint8)
    cv2.putText(shown, text, (10, 38), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (20, 20, 20), 2, cv2.LINE_AA)
    return shown


def test_a_page_is_read_as_rapidocr_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pipeline finds the lines, turns the one on its head, and reads the texts that the package reads."""
    monkeypatch.setenv("MODELS", str(ocr_models.folder() / "models"))
    result = answer(example("ocr.yaml"), page())
    lines = result["prediction"]["detect"]["regions"]
    assert [each["line"]["text"] for each in lines] == PAGE
    assert [each["angle"]["label"] for each in lines] == ["0", "180", "0", "0"]
    assert set(result["steps_ms"]) == {"detect", "angle", "line"}


def example(name: str) -> Rollout:
    with structlog.testing.capture_logs():
        [rollout] = load(settings.load(EXAMPLES / name)).values()
    return rollout


# -- boxes -------------------------------------------------------------------------------------------------


def over_boxes(tmp_path: Path, **second: Any) -> Rollout:
    """A step that finds boxes, and one that gives the mean of each channel of their crops."""
    models.write(tmp_path, models.image(3, None), "find.onnx")
    models.write(tmp_path, models.image(3, 8), "mean.onnx")
    steps = [
        {
            "name": "detect",
            "preprocess": {"image": {"size": [16, 16], "color": "bgr", "interpolation": "nearest"}},
            "model": {"path": "find.onnx"},
            "postprocess": "found_boxes:find",
        },
        {
            "name": "mean",
            "from": "detect.boxes",
            "preprocess": {"image": {"size": [8, 8], "color": "bgr"}},
            "model": {"path": "mean.onnx"},
            "batching": {"max_size": 4},
            **second,
        },
    ]
    return made(tmp_path, steps, input={"topics": ["in"], "format": "image"})


def test_a_box_is_a_crop_of_the_original_picture(tmp_path: Path) -> None:
    """Every pixel that a box touches, in the picture's own size, resized as the step says; the answer stands in the box."""
    noise = np.random.default_rng(1).integers(0, 6, (64, 48, 3)).astype(np.uint8)
    [result] = results(run(over_boxes(tmp_path), [png(noise)]))
    boxes = result["prediction"]["detect"]["boxes"]
    assert boxes
    for index, box in enumerate(boxes):
        part = noise[8 * index : 8 * index + 8, 2:20]
        expected = cv2.resize(part, (8, 8)).astype(np.float32).mean(axis=(0, 1))
        assert box["mean"]["outputs"]["y"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "mean" not in result["prediction"]


def test_crops_of_many_records_share_runs(tmp_path: Path) -> None:
    """2 + 0 + 5 + 3 boxes of four pictures are answered in runs of at most max_size, 4; each box has its own answer."""
    pictures = [np.full((64, 48, 3), count, np.uint8) for count in (2, 0, 5, 3)]
    batch = run(over_boxes(tmp_path), [png(each) for each in pictures])
    [answers] = batch.runs
    assert answers.steps is not None
    part = answers.steps["mean"]
    assert (part.items, part.runs) == (10, math.ceil(10 / 4))
    for count, result in zip((2, 0, 5, 3), results(batch), strict=True):
        boxes = result["prediction"]["detect"]["boxes"]
        assert [box["mean"]["outputs"]["y"] for box in boxes] == [[count] * 3] * count


def test_a_step_over_boxes_has_conditions_of_their_own(tmp_path: Path) -> None:
    """A condition on an earlier step over the same boxes chooses boxes; the others have no answer of the step."""
    models.write(tmp_path, models.image(3, 8), "mean.onnx")
    models.write(tmp_path, models.image(3, None), "find.onnx")
    image = {"size": [8, 8], "color": "bgr"}
    steps = [
        {"name": "detect", "preprocess": {"image": {**image, "size": [16, 16]}}, "model": {"path": "find.onnx"},
         "postprocess": "found_boxes:find"},
        {"name": "sort", "from": "detect.boxes", "preprocess": {"image": image}, "model": {"path": "mean.onnx"},
         "postprocess": {"classification": {}}},
        {"name": "more", "from": "detect.boxes", "when": {"sort.label": {"equals": "2"}},
         "preprocess": {"image": image}, "model": {"path": "mean.onnx"}},
    ]  # fmt: skip
    shown = np.full((64, 48, 3), 2, np.uint8)
    shown[:8, :, 2] = 0  # of the first box another channel is the brightest
    rollout = made(tmp_path, steps, input={"topics": ["in"], "format": "image"})
    [result] = results(run(rollout, [png(shown)]))
    boxes = result["prediction"]["detect"]["boxes"]
    assert [box["sort"]["label"] for box in boxes] == ["0", "0"]
    assert ["more" in box for box in boxes] == [False, False]
    shown[8:16, :, :2] = 0
    [result] = results(run(rollout, [png(shown)]))
    assert ["more" in box for box in result["prediction"]["detect"]["boxes"]] == [False, True]


def test_a_fault_in_a_crop_costs_its_record_alone(tmp_path: Path) -> None:
    """A box that is none, and more boxes than anybody looks at, are one dead letter each that names step and box."""
    for code, words in (
        ("found_boxes:nothing", "step mean, box 0: a box without xyxy"),
        ("found_boxes:no_number", "step mean, box 0: a box without xyxy"),
        ("found_boxes:far", "step mean, box 0: a box without points"),
        ("found_boxes:many", "step detect: it found 1001 boxes, later steps take at most 1000"),
    ):
        over_boxes(tmp_path)
        steps = [
            {"name": "detect", "preprocess": {"image": {"size": [16, 16]}}, "model": {"path": "find.onnx"},
             "postprocess": code},
            {"name": "mean", "from": "detect.boxes", "preprocess": {"image": {"size": [8, 8]}},
             "model": {"path": "mean.onnx"}},
        ]  # fmt: skip
        rollout = made(tmp_path, steps, input={"topics": ["in"], "format": "image"})
        batch = run(rollout, [png(np.zeros((32, 32, 3), np.uint8))])
        [(reason, _, message)] = refusals(batch).values()
        assert reason == "model_error"
        assert message.startswith(words)


def test_rotated_boxes_are_cut_as_rapidocr_cuts_them() -> None:
    """Pixel by pixel, for slanted, upright and tall boxes, which are turned by a quarter; their size is known beforehand."""
    shown = np.random.default_rng(2).integers(0, 255, (120, 200, 3)).astype(np.uint8)
    boxes = [
        [[10, 10], [60, 20], [58, 40], [8, 30]], [[5, 5], [105, 5], [105, 30], [5, 30]], [[50, 20], [70, 20], [70, 90], [50, 90]],
    ]  # fmt: skip
    reference = ocr_models.crops(shown, [np.array(box, np.float32) for box in boxes])
    for box, expected in zip(boxes, reference, strict=True):
        part = cut(shown, {"points": box})
        np.testing.assert_array_equal(part, expected)
        assert size_of({"points": box}, 120, 200) == part.shape[:2]


# -- memory ------------------------------------------------------------------------------------------------


def test_later_steps_stay_within_their_part_of_the_budget(tmp_path: Path) -> None:
    """Runs over boxes hold at most their part; it is taken from limits.in_flight_bytes, and a kept picture is charged."""
    rollout = over_boxes(tmp_path, batching={"max_size": 1000})
    cascade = rollout.choose()
    assert isinstance(cascade, Cascade)
    assert 0 < cascade.reserve_bytes <= 256 * 2**20 // 4
    item = cascade.steps[1].servable.item_nbytes
    most = cascade.room.each // item
    assert most < 1000 or cascade.reserve_bytes >= 1000 * item
    assert bytes_for_records(256 * 2**20, [rollout]) == 256 * 2**20 - cascade.reserve_bytes
    large = png(np.zeros((500, 400, 3), np.uint8))
    assert cascade.cost(large) >= 2 * 500 * 400 * 3
    cascade.room.each = 3 * item
    batch = run(rollout, [png(np.full((64, 48, 3), 5, np.uint8))])
    [answers] = batch.runs
    assert answers.steps is not None
    assert (answers.steps["mean"].items, answers.steps["mean"].runs) == (5, 2)


def test_an_item_beyond_the_part_of_one_is_refused(tmp_path: Path) -> None:
    """A single crop that needs more than all that later steps have is a dead letter that says so."""
    rollout = over_boxes(tmp_path)
    cascade = rollout.choose()
    assert isinstance(cascade, Cascade)
    cascade.room.largest = 10
    batch = run(rollout, [png(np.full((64, 48, 3), 1, np.uint8)), png(np.zeros((64, 48, 3), np.uint8))])
    assert {row: words[0] for row, words in refusals(batch).items()} == {0: "too_large"}
    assert results(batch)[1] is not None


# -- mistakes ----------------------------------------------------------------------------------------------


def step(name: str, **rest: Any) -> dict[str, Any]:
    return {"name": name, "model": {"path": "m.onnx"}, **rest}


CLASSES = {"postprocess": "classification"}
BOXED = {"postprocess": "detection"}
MISTAKES: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([step("a"), step("a")], {}, "steps.1.name: got 'a' a second time"),
    ([step("1a")], {}, "steps.0.name: got '1a', expected letters"),
    ([step("score")], {}, "steps.0.name: got 'score', expected a name that boxes and records do not use"),
    ([step("a", **{"from": "b.text"}), step("b")], {}, "steps.0.from: got 'b', expected record, because it is the first"),
    ([step("a"), step("b", **{"from": "b.text"})], {}, "steps.1.from: got 'b', the step itself, expected an earlier step (a)"),
    ([step("a"), step("b", **{"from": "a"})], {}, "steps.1.from: got 'a', expected record, <step>.boxes or <step>.<field>"),
    ([step("a", **CLASSES), step("b", **{"from": "a.boxes"})], {}, "steps.1.from: got 'a.boxes', but postprocess classification of a gives no boxes"),
    ([step("a", **CLASSES), step("b", **{"from": "a.lable"})], {}, "predictions of a (postprocess classification) have no lable"),
    ([step("a", **CLASSES), step("b", when={"a.value": {"below": 1}})], {}, "steps.1.when.a.value: predictions of a (postprocess classification) have no value"),
    ([step("a", **CLASSES), step("b", when={"a.label": {"below": 1}})], {}, "steps.1.when.a.label: label is no number; expected equals"),
    ([step("a", **CLASSES), step("b", when={"a.top": {"equals": 1}})], {}, "steps.1.when.a.top: top is a list"),
    ([step("a", **CLASSES), step("b", when={"a.score": {}})], {}, "steps.1.when.a.score: got {}, expected below, above or equals"),
    ([step("a", **CLASSES), step("b", when={"score": {"below": 1}})], {}, "steps.1.when.score: expected <step>.<field>"),
    ([step("a", **BOXED), step("b", **{"from": "a.boxes"}, **CLASSES), step("c", when={"b.score": {"below": 1}})], {}, "steps.2.when.b.score: b answers the boxes of a, c does not"),
    ([step("a"), step("b", turn={"step": "a"})], {}, "steps.1.turn: goes with from: <step>.boxes only"),
    ([step("a")], {"model": {"path": "m.onnx"}}, "model: expected inside the steps, because steps is there"),
    ([step("a")], {"postprocess": "raw"}, "postprocess: expected inside the steps"),
    ([step("a")], {"output": {"topic": "out", "format": "npy"}}, "output.format: got 'npy', expected json"),
    ([step("a")], {"input": {"topics": ["in"], "format": "oip"}}, "input.format: 'oip' does not go with steps"),
    ([step("a", model={})], {}, "steps.0.model.path is required"),
    ([step("a", wen={})], {}, "unknown key steps.0.wen; the nearest known key is steps.0.when"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "rest", "words"), MISTAKES, ids=[words[:50] for _, _, words in MISTAKES])
def test_a_mistake_is_one_sentence(
    tmp_path: Path, steps: list[dict[str, Any]], rest: dict[str, Any], words: str
) -> None:
    """Names the setting, what is there, and what is expected."""
    with pytest.raises(ConfigError) as refused:
        made(tmp_path, steps, **rest)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_mistakes_that_only_the_model_shows_name_the_step(tmp_path: Path) -> None:
    """A postprocess that does not fit, boxes without a picture, colours of a gray picture."""
    models.write(tmp_path, models.identity(), "m.onnx")
    with pytest.raises(ConfigError, match=r"^steps\.1: postprocess\.regions needs a map of scores"):
        made(tmp_path, [step("a"), step("b", postprocess="regions")])
    models.write(tmp_path, models.image(3, 8), "mean.onnx")
    crops = {"from": "a.boxes", "preprocess": {"image": {"size": [8, 8]}}, "model": {"path": "mean.onnx"}}
    with pytest.raises(
        ConfigError, match=r"^steps\.1\.from: a is given no picture, so its boxes have no crops"
    ):
        made(tmp_path, [step("a", postprocess="found_boxes:many"), {"name": "b", **crops}])
    models.write(tmp_path, models.image(1, 8), "gray.onnx")
    gray = {"preprocess": {"image": {"size": [8, 8], "color": "gray"}}, "model": {"path": "gray.onnx"}}
    with pytest.raises(
        ConfigError, match=r"^steps\.1\.preprocess\.image\.color: got rgb, but a looks at gray"
    ):
        made(
            tmp_path,
            [{"name": "a", "postprocess": "found_boxes:many", **gray}, {"name": "b", **crops}],
            input={"topics": ["in"], "format": "image"},
        )


def test_custom_code_of_a_step_may_ask_for_another_try(tmp_path: Path) -> None:
    """The record is tried again from its first step on; the others of its batch have their results."""
    steps = escalation(tmp_path, postprocess="found_boxes:asks")
    rollout = made(tmp_path, steps)
    servable, engine = rollout.choose(), Engine(retry_s=10.0)
    values = [features(0.9, 0, 0, 0), features(0.5, 0, 0, 0)]
    batch = run(rollout, values, engine)
    assert [result is not None for result in results(batch)] == [True, False]
    assert batch.again is not None
    (tmp_path / "service").touch()
    again = batch.again.batch
    assert again.servable is servable
    through(engine, again)
    assert results(batch)[1]["prediction"]["large"] == {"asked": True}
    assert refusals(batch) == {}


@pytest.mark.parametrize("side", [40, 400])
def test_wrapped_pictures_reach_every_step(tmp_path: Path, side: int) -> None:
    """A gzipped picture, small or large, is read by a later step with settings of its own, as it is by itself."""
    models.write(tmp_path, models.image(3, 8), "mean.onnx")
    steps = [
        {
            "name": "bgr",
            "preprocess": {"image": {"size": [8, 8], "color": "bgr"}},
            "model": {"path": "mean.onnx"},
        },
        {"name": "rgb", "preprocess": {"image": {"size": [8, 8]}}, "model": {"path": "mean.onnx"}},
        {"name": "again", "preprocess": {"image": {"size": [8, 8]}}, "model": {"path": "mean.onnx"}},
    ]
    shown = np.random.default_rng(3).integers(0, 255, (side, side, 3)).astype(np.uint8)
    rollout = made(tmp_path, steps, input={"topics": ["in"], "format": "image", "unwrap": ["gzip"]})
    said = answer(rollout, png(shown))["prediction"]
    means = {name: each["outputs"]["y"] for name, each in said.items()}
    assert means["rgb"] == means["again"] == means["bgr"][::-1]
    assert means["bgr"] == pytest.approx(cv2.resize(shown, (8, 8)).mean(axis=(0, 1)).tolist(), abs=0.5)


def test_boxes_in_crops_and_pictures_in_fields(tmp_path: Path) -> None:
    """A step may find boxes in a crop, in the crop's pixels; the picture may be base64 text in a field of the record."""
    models.write(tmp_path, models.image(3, None), "find.onnx")
    models.write(tmp_path, models.image(3, 8), "mean.onnx")
    shown = np.random.default_rng(4).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    image = {"size": [8, 8], "color": "bgr"}
    steps = [
        {"name": "outer", "preprocess": {"inputs": {"x": {"from": "photo", "image": image}}},
         "model": {"path": "find.onnx"}, "postprocess": "found_boxes:centre"},
        {"name": "inner", "from": "outer.boxes", "preprocess": {"image": {"size": [8, 8]}},
         "model": {"path": "find.onnx"}, "postprocess": "found_boxes:centre"},
        {"name": "mean", "from": "inner.boxes", "preprocess": {"image": image}, "model": {"path": "mean.onnx"}},
    ]  # fmt: skip
    record = json.dumps({"photo": base64.b64encode(png(shown)).decode()}).encode()
    [outer] = answer(made(tmp_path, steps), record)["prediction"]["outer"]["boxes"]
    [inner] = outer["inner"]["boxes"]
    part = shown[4:12, 4:20][4:8, 4:16]
    expected = cv2.resize(part, (8, 8)).astype(np.float32).mean(axis=(0, 1)).tolist()
    assert inner["mean"]["outputs"]["y"] == pytest.approx(expected, abs=1e-3)


def test_a_record_of_several_items_is_refused(tmp_path: Path) -> None:
    """An npy record with a batch dimension of its own has no single answer for a later step."""
    import io

    rollout = made(tmp_path, escalation(tmp_path), input={"topics": ["in"], "format": "npy"})
    held = io.BytesIO()
    np.save(held, np.zeros((2, 4), np.float32))
    with pytest.raises(Reject, match="holds 2 items of its own; steps take records of one"):
        answer(rollout, held.getvalue())
