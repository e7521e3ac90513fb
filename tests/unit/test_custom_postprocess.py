"""Custom postprocess code that wants to know of the record behind an answer, and code that takes many items at once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import models
import numpy as np
import pytest

from worker import Reject, batched
from worker.batch import Batch, Columns, Headers, Outcomes, Partition
from worker.errors import ConfigError
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import validate


@pytest.fixture(autouse=True)
def users_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts there is gone after it."""
    monkeypatch.setitem(sys.modules, "users_code", ModuleType("users_code"))


class Pipeline:
    """A real pipeline whose postprocess is a function of the test; answers records as the engine does."""

    def __init__(self, folder: Path, function: Callable[..., Any], model: bytes, **sections: Any) -> None:
        module: Any = ModuleType("users_code")
        module.f = function
        sys.modules["users_code"] = module
        models.write(folder, model)
        document = {
            "model": {"path": "model.onnx", "threads": 1},
            "batching": {"max_size": 8},
            "postprocess": "users_code:f",
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
            **sections,
            "input": {"topics": ["in"], **sections.get("input", {})},
        }
        self.rollout = load(validate(document, folder))["model"]

    def answer(self, *values: bytes, headers: list[Headers | None] | None = None) -> Outcomes:
        rows = len(values)
        nothing: list[Any] = [None] * rows
        partitions = [Partition("in", 0)] * rows
        columns = Columns([*values], nothing, headers or nothing, [0] * rows, [*range(rows)], partitions)
        batch = Batch(
            None, range(rows), columns, self.rollout.route, self.rollout.choose(), time.monotonic_ns(), 0.0
        )
        pool = InlinePool(Engine(), Mailbox())
        pool.submit(batch)
        (back,) = pool.collect()
        assert back.error is None
        assert batch.outcomes is not None
        return batch.outcomes

    def predictions(self, *values: bytes, headers: list[Headers | None] | None = None) -> list[Any]:
        """The prediction of each record; of a refused one (reason, message)."""
        outcomes = self.answer(*values, headers=headers)
        return [
            (why.reason, why.message)
            if (why := outcomes.rejected.get(row)) is not None
            else json.loads(body or b"")["prediction"]
            for row, body in enumerate(outcomes.bodies)
        ]


def features(*numbers: float, **more: Any) -> bytes:
    return json.dumps({"features": numbers, **more}).encode()


JSON = {"input": {"format": "json"}}


def test_a_second_argument_is_the_item(tmp_path: Path) -> None:
    """A postprocess with two arguments sees the model's inputs, the headers and the fields of the record it answers for."""

    def f(outputs: Any, item: Any) -> Any:
        return {
            "sum": outputs["y"].sum(),
            "inputs": item.inputs["x"],
            "headers": [name for name, _ in item.headers],
            "customer": item.fields["customer"],
            "size": item.size,
            "mask": item.mask,
        }

    pipeline = Pipeline(tmp_path, f, models.identity(), **JSON)
    values = [features(1, 2, 3, n, customer=f"c{n}") for n in range(3)]
    assert pipeline.predictions(*values, headers=[None, [("h", b"1")], None]) == [
        {
            "sum": 6.0 + n,
            "inputs": [1, 2, 3, n],
            "headers": ["h"] if n == 1 else [],
            "customer": f"c{n}",
            "size": None,
            "mask": None,
        }
        for n in range(3)
    ]


def test_the_item_of_a_picture_knows_its_size(tmp_path: Path) -> None:
    """`item.size` is height and width of the record's own picture, not of the model's input; it has no fields."""
    pipeline = Pipeline(
        tmp_path,
        lambda outputs, item: [item.size, item.inputs["x"].shape, item.fields],
        models.image(),
        input={"format": "image"},
    )
    ok, png = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))
    assert ok
    assert pipeline.predictions(png.tobytes()) == [[[20, 30], [3, 28, 28], None]]


def test_the_items_of_one_request_are_told_apart(tmp_path: Path) -> None:
    """Each item of an Open Inference Protocol request has inputs of its own."""
    pipeline = Pipeline(
        tmp_path, lambda outputs, item: item.inputs["x"][0], models.identity(), input={"format": "oip"}
    )
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 4], "data": [*range(12)]}]}
    (body,) = pipeline.answer(json.dumps(request).encode()).bodies
    assert json.loads(body or b"")["predictions"] == [0, 4, 8]


def test_the_item_of_a_model_that_is_not_batchable_is_the_record(tmp_path: Path) -> None:
    """Where records run alone, inputs and outputs have no batch dimension either."""
    pipeline = Pipeline(
        tmp_path,
        lambda outputs, item: [outputs["y"].shape, item.inputs["x"].shape],
        models.softmax_over_batch(),
        **JSON,
    )
    (found,) = pipeline.predictions(features(1, 2, 3, 4))
    assert found[1] == [4]


def test_a_mask_is_the_input_of_that_name(tmp_path: Path) -> None:
    """`item.mask` is the model's input `attention_mask`, where it has one."""
    model = models.build(
        [models.helper.make_node("Mul", ["x", "attention_mask"], ["y"])],
        [models.tensor(name, np.float32, ("N", 2)) for name in ("x", "attention_mask")],
        [models.tensor("y", np.float32, ("N", 2))],
    )
    pipeline = Pipeline(tmp_path, lambda outputs, item: item.mask, model, input={"format": "oip"})
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1, 2], "data": data}
        for name, data in {"x": [5, 6], "attention_mask": [1, 0]}.items()
    ]
    (body,) = pipeline.answer(json.dumps({"inputs": inputs}).encode()).bodies
    assert json.loads(body or b"")["predictions"] == [[1, 0]]


def test_a_batched_function_is_called_once_for_a_run(tmp_path: Path) -> None:
    """A function marked `batched` gets all items of a run at once, and its results go to their records."""
    calls = []

    @batched
    def f(outputs: Any, items: Any) -> Any:
        calls.append(len(items))
        return [[row.sum(), item.fields["customer"]] for row, item in zip(outputs["y"], items, strict=True)]

    pipeline = Pipeline(tmp_path, f, models.identity(), **JSON)
    values = [features(n, 0, 0, 0, customer=n) for n in range(5)]
    assert pipeline.predictions(*values) == [[n, n] for n in range(5)]
    assert calls == [5]


def test_a_batched_function_may_take_the_outputs_alone(tmp_path: Path) -> None:
    """A batched function with one argument gets arrays whose first dimension counts the items."""
    pipeline = Pipeline(
        tmp_path, batched(lambda outputs: outputs["y"].sum(axis=1).tolist()), models.identity(), **JSON
    )
    assert pipeline.predictions(features(1, 2, 3, 4), features(0, 0, 0, 1)) == [10, 1]


def test_a_batched_function_refuses_single_records(tmp_path: Path) -> None:
    """A `Reject` among the results refuses that record; an exception costs only the record that causes it."""

    @batched
    def f(outputs: Any) -> Any:
        first = outputs["y"][:, 0]
        if (first == 3).any():
            raise RuntimeError("three")
        return [Reject("zero") if value == 0 else float(value) for value in first]

    pipeline = Pipeline(tmp_path, f, models.identity(), **JSON)
    assert pipeline.predictions(*[features(n, 0, 0, 0) for n in range(5)]) == [
        ("invalid", "zero"),
        1,
        2,
        ("model_error", "three"),
        4,
    ]


def test_a_batched_function_that_miscounts_answers_nobody_wrongly(tmp_path: Path) -> None:
    """A batched function that gives fewer results than items answers only the records for which the number fits."""
    pipeline = Pipeline(
        tmp_path, batched(lambda outputs: [0] * min(2, len(outputs["y"]))), models.identity(), **JSON
    )
    assert pipeline.predictions(*[features(n, 0, 0, 0) for n in range(4)]) == [0, 0, 0, 0]
    pipeline = Pipeline(tmp_path, batched(lambda outputs: []), models.identity(), **JSON)
    (found,) = pipeline.predictions(features(1, 0, 0, 0))
    assert found == ("model_error", "the batched postprocess gave 0 results for 1 items")


@pytest.mark.parametrize("function", [lambda: 0, lambda a, b, c: 0])
def test_a_postprocess_takes_one_or_two_arguments(function: Any, tmp_path: Path) -> None:
    """A function of any other number of arguments is refused at start, with what was expected."""
    with pytest.raises(ConfigError, match=r"users_code:f takes \d arguments; expected f\(outputs\) or"):
        Pipeline(tmp_path, function, models.identity(), **JSON)


def test_a_default_argument_stays_the_users_own(tmp_path: Path) -> None:
    """A second argument with a default and another name than `item` keeps its default."""

    def f(outputs: Any, factor: float = 2.0) -> Any:
        return outputs["y"][0] * factor

    assert Pipeline(tmp_path, f, models.identity(), **JSON).predictions(features(4, 0, 0, 0)) == [8]
