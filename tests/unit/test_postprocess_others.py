"""Regression, embedding, raw and own code."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from encode_support import pipeline, signature

from worker import Reject
from worker.errors import ConfigError, Rejection
from worker.postprocess import postprocess

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def predict(settings: Any, outputs: dict[str, Any], alone: bool = False) -> list[Any]:
    """Predictions, or (reason, stage) of the rejections."""
    kinds = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(object): "string"}
    shapes = {
        name: (kinds.get(value.dtype, str(value.dtype)), [None] * (value.ndim - alone))
        for name, value in outputs.items()
    }
    step = postprocess(pipeline(settings).postprocess, signature(shapes, not alone), None)
    count = len(next(iter(outputs.values())))
    found = step.predictions(outputs, count, [None] * count, alone)
    return [(one.reason, one.stage) if isinstance(one, Rejection) else json.loads(one) for one in found]


def test_one_number_is_a_value_and_several_are_values() -> None:
    """(N,) and (N, 1) give value; (N, 3) gives values; NaN costs its own record."""
    assert predict("regression", {"y": np.float32([0.1, np.nan])}) == [
        {"value": 0.1},
        ("non_finite", "postprocess"),
    ]
    assert predict("regression", {"y": np.float64([[0.1], [2]])}) == [{"value": 0.1}, {"value": 2.0}]
    assert predict("regression", {"y": np.array([[1, 2, 3]])}) == [{"values": [1, 2, 3]}]


def test_an_embedding_is_as_the_model_gave_it_unless_normalized() -> None:
    """normalize divides by the L2 length; large values do not overflow and zero stays zero."""
    y = np.float32([[3, 4], [3 * 2.0**100, 4 * 2.0**100], [0, 0]])
    assert predict("embedding", {"y": y})[0] == {"embedding": [3.0, 4.0]}
    found = predict({"embedding": {"normalize": True}}, {"y": y})
    assert found == [{"embedding": [0.6, 0.8]}, {"embedding": [0.6, 0.8]}, {"embedding": [0.0, 0.0]}]


def test_raw_gives_every_output_nested() -> None:
    """Names in the model's order; nested lists; strings, booleans and integers as they are."""
    outputs = {
        "m": np.arange(8, dtype=np.float32).reshape(2, 2, 2),
        "s": np.array([["a", '"b"'], ["é", ""]], object),
        "b": np.array([True, False]),
        "i": np.array([[2**53 + 1], [-1]]),
        "empty": np.empty((2, 0, 3), np.float32),
    }
    first, second = predict("raw", outputs)
    assert list(first["outputs"]) == ["m", "s", "b", "i", "empty"]
    assert first["outputs"] == {
        "m": [[0.0, 1.0], [2.0, 3.0]],
        "s": ["a", '"b"'],
        "b": True,
        "i": [2**53 + 1],
        "empty": [],
    }
    assert second["outputs"]["m"] == [[4.0, 5.0], [6.0, 7.0]]


def test_raw_half_precision_reads_back() -> None:
    """float16 is written through float32."""
    values = np.float16([0.1, 65504, 6e-8])
    found = [one["outputs"]["y"] for one in predict("raw", {"y": values})]
    assert np.array(found, np.float16).tobytes() == values.tobytes()


@dataclasses.dataclass
class Answer:
    value: float


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a function as `users_code:f` and predict with it."""

    def run(function: Any, outputs: Any = None, alone: bool = False) -> list[Any]:
        module = ModuleType("users_code")
        module.f = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "users_code", module)
        return predict("users_code:f", outputs or {"y": np.float32([[1, 2], [3, 4]])}, alone)

    return run


def test_own_code_gets_one_items_arrays(own: Any) -> None:
    """Without the batch dimension, whether or not the model is batchable."""

    def f(outputs: Any) -> Any:
        return {"shape": outputs["y"].shape, "sum": outputs["y"].sum(), 7: outputs["y"].T}

    assert own(f) == [
        {"shape": [2], "sum": 3.0, "7": [1.0, 2.0]},
        {"shape": [2], "sum": 7.0, "7": [3.0, 4.0]},
    ]
    assert own(f, {"y": np.float32([[[1, 2]]])}, alone=True)[0]["shape"] == [2]


def test_own_code_may_refuse_one_record(own: Any) -> None:
    """Reject is the record's own reason; any other exception is a model_error of that record only."""

    def f(outputs: Any) -> Any:
        if outputs["y"][0] == 1:
            raise Reject("too small")
        return 1 / 0

    assert own(f) == [("invalid", "postprocess"), ("model_error", "postprocess")]


@pytest.mark.parametrize(
    "result", [math.nan, {"a": [1, (None, -math.inf)]}, np.float32([np.nan]), Answer(math.inf)]
)
def test_own_nan_is_non_finite_wherever_it_hides(own: Any, result: Any) -> None:
    """orjson would write null."""
    assert {reason for reason, _ in own(lambda outputs: result)} == {"non_finite"}


@pytest.mark.parametrize("result", [None, [None, 1.5], {"a": None}, Answer(1.5), "null", np.array(["a"])])
def test_own_none_is_null(own: Any, result: Any) -> None:
    """A null that the function meant is an answer, as are dataclasses and arrays of strings."""
    expected = (
        {"value": 1.5} if isinstance(result, Answer) else ["a"] if isinstance(result, np.ndarray) else result
    )
    assert own(lambda outputs: result) == [expected, expected]


@pytest.mark.parametrize("result", [object(), {1, 2}, b"x", 2**64])
def test_own_results_that_json_cannot_hold_fail_in_encode(own: Any, result: Any) -> None:
    """The record is a model_error of stage encode."""
    assert set(own(lambda outputs: result)) == {("model_error", "encode")}


def test_own_code_that_is_not_there_is_a_configuration_error() -> None:
    """The sentence names what could not be imported."""
    with pytest.raises(ConfigError, match="no_such_module"):
        predict("no_such_module:f", {"y": np.float32([1])})
