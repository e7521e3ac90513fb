"""A score and whether it is that of an anomaly: a number of the model, or how far a reconstruction is off its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from encode_support import pipeline, signature
from onnx import helper
from test_answers_fit import loaded

from worker.cli.sample import answer
from worker.errors import ConfigError
from worker.postprocess import postprocess

RANDOM = np.random.default_rng(9)


def reconstruction(width: int = 4) -> bytes:
    """Numbers -> the same, those above 1 cut to 1: what is larger than it ever was cannot be reconstructed."""
    node = helper.make_node("Min", ["x", "one"], ["same"])
    return models.build(
        [node],
        [models.tensor("x", np.float32, ["N", width])],
        [models.tensor("same", np.float32, ["N", width])],
        {"one": np.float32(1)},
    )


def test_a_score_is_the_models_number() -> None:
    """At the threshold an item is an anomaly."""
    settings = pipeline({"anomaly": {"threshold": 0.5}}).postprocess
    one = postprocess(settings, signature({"y": ("float", ["N", 1])}), None)
    scores = np.array([[0.25], [0.5], [0.75]], np.float32)
    found = [json.loads(text) for text in one.predictions({"y": scores}, 3, [None] * 3, False)]  # type: ignore[arg-type]
    assert found == [
        {"score": 0.25, "anomaly": False},
        {"score": 0.5, "anomaly": True},
        {"score": 0.75, "anomaly": True},
    ]


def test_a_reconstruction_is_held_against_its_input(tmp_path: Path) -> None:
    """The score is the mean of the squared differences, as sklearn's mean_squared_error, record by record."""
    rollout = loaded(
        tmp_path, reconstruction(), {"anomaly": {"of": "same", "against": "x", "threshold": 0.5}}
    )
    for features, expected in (([0.5, 1, -2, 0], 0.0), ([2, 1, 1, 4], (1 + 9) / 4)):
        prediction = answer(rollout, json.dumps({"features": features}).encode())["prediction"]
        assert prediction == {"score": expected, "anomaly": expected >= 0.5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": "nothing"}, r"of: the model has no output 'nothing'; expected one of y, z"),
        ({"against": "nothing"}, r"against: the model has no input 'nothing'; expected one of x"),
        ({"against": "x"}, r"against: the model's input 'x' has shape .*, its output 'y'"),
        ({}, "has 3 numbers per item, expected one score; or .*against"),
        ({"of": "z"}, "'z' is BYTES; expected numbers"),
    ],
)
def test_what_cannot_be_is_refused_at_start(options: Any, said: str) -> None:
    """One sentence names the setting, what the model has and what was expected."""
    outputs = {"y": ("float", ["N", 3]), "z": ("string", ["N", 1])}
    with pytest.raises(ConfigError, match=rf"postprocess\.anomaly.*{said}"):
        postprocess(pipeline({"anomaly": {"threshold": 1} | options}).postprocess, signature(outputs), None)
