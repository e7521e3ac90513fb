"""``model.shapes``: the shapes that a model is tried and warmed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import structlog

from worker.errors import ConfigError
from worker.model.session import load
from worker.settings import PipelineSettings


def test_a_model_of_one_unusual_length_is_batchable_once_that_is_known(tmp_path: Path) -> None:
    """A model that refuses every likely length is tried with the configured one, and its items share runs."""
    path = models.write(tmp_path, models.of_length(577))
    assert not load(path).signature.batchable
    model = load(path, shapes={"x": [[1, 577]]})
    assert model.signature.batchable
    assert {name: array.shape for name, array in (model.sample(3) or {}).items()} == {"x": (3, 577)}


def test_the_first_shape_that_the_model_takes_counts_and_the_others_are_warmed(tmp_path: Path) -> None:
    """Each shape is run before the first record; one that the model refuses is one warning that names it."""
    path = models.write(tmp_path, models.identity(shape=("N", "length")))
    with structlog.testing.capture_logs() as lines:
        model = load(path, shapes={"x": [[1, 7], [1, 30]]})
    assert {name: array.shape for name, array in (model.sample(1) or {}).items()} == {"x": (1, 7)}
    assert lines == []
    path = models.write(tmp_path, models.of_length(577), "other.onnx")
    with structlog.testing.capture_logs() as lines:
        load(path, shapes={"x": [[1, 577], [1, 30]]})
    assert [line["shapes"] for line in lines] == [{"x": [1, 30]}]


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"y": [[1, 4]]}, "model.shapes: y is no input of the model; expected one of a, b"),
        ({"a": [[4]]}, "model.shapes.a: got [4], expected [1, any]: the shape of one item"),
        ({"a": [[2, 4]]}, "model.shapes.a: got [2, 4], expected [1, any]"),
        (
            {"a": [[1, 4], [1, 5]], "b": [[1, 4], [1, 5], [1, 6]]},
            "model.shapes: the inputs have different numbers of shapes",
        ),
    ],
)
def test_shapes_that_the_model_cannot_have_are_refused(tmp_path: Path, shapes: Any, sentence: str) -> None:
    """A shape of another rank, another batch or another input is one sentence at start."""
    path = models.write(tmp_path, models.add(shape=("N", "length")))
    with pytest.raises(ConfigError) as caught:
        load(path, shapes=shapes)
    assert sentence in str(caught.value)


def test_inputs_go_side_by_side(tmp_path: Path) -> None:
    """The first shapes of all inputs belong together; an input with one shape has it in all of them."""
    path = models.write(tmp_path, models.add(shape=("N", "length")))
    model = load(path, shapes={"a": [[1, 9]], "b": [[1, 8], [1, 9]]})
    assert {name: array.shape for name, array in (model.sample(1) or {}).items()} == {
        "a": (1, 9),
        "b": (1, 9),
    }


def test_shapes_are_lists_of_lengths() -> None:
    """In a configuration shapes are lists of positive lengths."""
    document = {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "m.onnx", "shapes": {"x": [["1", "576"]]}},
        "output": {"topic": "out"},
    }
    assert PipelineSettings.model_validate(document).model.shapes == {"x": [[1, 576]]}
