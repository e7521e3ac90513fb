"""Records of several windows, and input formats with options of their own: both through a whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import pytest
import yaml

from worker import registry
from worker.batch import Batch, Columns, Partition
from worker.errors import ConfigError
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load as load_rollouts
from worker.serving.rollout import Rollout
from worker.serving.run_limit import RunLimit
from worker.settings import Settings, json_schema, load


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    registry.INPUT_FORMATS.add("scaled", "toy_windows:ScaledDecoder")
    registry.CONTENTS.add("pieces", "toy_windows:Pieces")
    yield
    registry.INPUT_FORMATS.remove("scaled")
    registry.CONTENTS.remove("pieces")


def config(folder: Path, model: bytes, *overrides: str, form: Any = None) -> Settings:
    models.write(folder, model)
    path = folder / "worker.yaml"
    document: dict[str, Any] = {
        "input": {"topics": ["in"], "format": form or {"scaled": {"factor": 2}}},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    path.write_text(yaml.safe_dump(document))
    return load(path, overrides)


def rollout_of(folder: Path, model: bytes, *overrides: str) -> Rollout:
    (found,) = load_rollouts(config(folder, model, *overrides)).values()
    return found


def answers(rollout: Rollout, values: Sequence[bytes]) -> list[Any]:
    """Per record its result, parsed, or the reason of its rejection."""
    count = len(values)
    source = Partition("in", 0)
    columns = Columns(
        [*values], [None] * count, [None] * count, [1] * count, [*range(count)], [source] * count
    )
    batch = Batch(None, range(count), columns, rollout.route, rollout.choose(), 0, 0.0)
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    pool.collect()
    assert batch.sick is None
    assert batch.outcomes is not None
    rejected = batch.outcomes.rejected
    return [
        rejected[row].reason if row in rejected else json.loads(body or b"")
        for row, body in enumerate(batch.outcomes.bodies)
    ]


@pytest.mark.parametrize("model", [models.add(), models.fixed_batch(1), models.fixed_batch(3)])
@pytest.mark.parametrize("max_size", [1, 2, 64])
def test_each_window_has_its_prediction_and_its_time(tmp_path: Path, model: bytes, max_size: int) -> None:
    """A record of k windows has k predictions, each with its own start and end, however the model runs them."""
    rollout = rollout_of(tmp_path, model, f"batching.max_size={max_size}")
    values = [bytes(range(4)), bytes(range(20)), b"\0", bytes(range(100, 112))]
    found = answers(rollout, values)
    assert found[2] == "invalid"
    for value, answer in zip(values, found, strict=True):
        if answer == "invalid":
            continue
        pieces = np.frombuffer(value, np.uint8).reshape(-1, 4) * 2.0
        predictions = answer["predictions"]
        assert [p["start_s"] for p in predictions] == [0.5 * i for i in range(len(pieces))]
        assert [p["end_s"] for p in predictions] == [0.5 * (i + 1) for i in range(len(pieces))]
        outputs = [next(iter(p["outputs"].values())) for p in predictions]
        alone = answers(rollout, [value])[0]["predictions"]
        assert outputs == [next(iter(p["outputs"].values())) for p in alone]
        assert np.shape(outputs)[0] == len(pieces)


def test_windows_give_what_the_model_gives(tmp_path: Path) -> None:
    """The prediction of each window is the model's output for that window."""
    rollout = rollout_of(tmp_path, models.identity())
    (answer,) = answers(rollout, [bytes(range(12))])
    outputs = [p["outputs"]["y"] for p in answer["predictions"]]
    assert outputs == (np.arange(12).reshape(3, 4) * 2.0).tolist()


def test_custom_code_is_told_where_a_window_is(tmp_path: Path) -> None:
    """A custom postprocess finds the start and the end of each window in item.window."""
    rollout = rollout_of(tmp_path, models.identity(), "postprocess=toy_windows:where")
    (answer,) = answers(rollout, [bytes(8)])
    assert [p["at"] for p in answer["predictions"]] == [[0.0, 0.5], [0.5, 1.0]]


def test_a_record_of_many_windows_runs_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run holds more windows than the limit, also if one record has more; out of memory halves the limit."""
    rollout = rollout_of(tmp_path, models.identity(), "batching.max_size=8")
    servable: Any = rollout.choose()
    sizes: list[int] = []
    run = servable.model.run

    def limited(feeds: dict[str, Any]) -> Any:
        sizes.append(len(feeds["x"]))
        if sizes[-1] > 4:
            raise RuntimeError("failed to allocate memory")
        return run(feeds)

    monkeypatch.setattr(servable.model, "run", limited)
    monkeypatch.setattr(servable.model, "sickness", lambda: None)
    (answer,) = answers(rollout, [bytes(4 * 30)])
    assert len(answer["predictions"]) == 30
    assert sizes == [8, *[4] * 7, 2]
    assert isinstance(servable.run_limit, RunLimit)
    assert servable.run_limit.items == 4


def test_further_windows_are_charged(tmp_path: Path) -> None:
    """Each window beyond the first takes its tensors from the byte budget before the record is decoded."""
    servable = rollout_of(tmp_path, models.identity()).choose()
    one, ten = servable.cost(bytes(4)), servable.cost(bytes(40))
    assert ten - one == 9 * 2 * (16 + 16)


def test_a_format_may_own_options(tmp_path: Path) -> None:
    """Options of an input format are checked, stand in the schema and in the plain form of the settings."""
    model = models.identity()
    settings = config(tmp_path, model)
    assert settings.pipelines["model"].input.format == "scaled"
    assert settings.redacted()["pipelines"]["model"]["input"]["format"] == {
        "scaled": {"factor": 2.0, "offset": 0}
    }
    validator = jsonschema.Draft202012Validator(json_schema())
    document = yaml.safe_load((tmp_path / "worker.yaml").read_text())
    assert validator.is_valid(document)
    document["input"]["format"] = {"scaled": {"factor": 2, "offset": -1}}
    assert not validator.is_valid(document)


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"scaled": {"factor": "x"}}, r"input\.format\.scaled\.factor: got 'x', expected a number"),
        (
            {"scaled": {"factr": 2}},
            r"unknown key input\.format\.scaled\.factr; the nearest known key is .*factor",
        ),
        ("scaled", r"input\.format: got 'scaled', expected \{scaled: \{factor: \.\.\.\}\}"),
        ({"json": {}}, r"input\.format: got .*, expected json alone"),
        ({"scaled": {"factor": 1}, "json": {}}, r"input\.format: got .*, expected one of .*scaled"),
        ({"nothing": {}}, r"input\.format: got .*, expected one of image, json"),
        (["scaled"], r"input\.format: got .*, expected text"),
    ],
)
def test_a_mistake_in_a_formats_options_is_one_sentence(tmp_path: Path, form: Any, sentence: str) -> None:
    """A mistake in the options of an input format names the setting and what was expected."""
    with pytest.raises(ConfigError, match=sentence):
        config(tmp_path, models.identity(), form=form)
