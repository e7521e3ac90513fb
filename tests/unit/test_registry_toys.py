"""A new component is one file and one line of a registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import yaml

from worker import registry
from worker.cli.main import main
from worker.errors import ConfigError
from worker.settings import json_schema, load


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    """The two lines that stand for those of worker/registry.py."""
    registry.INPUT_FORMATS.add("line", "toy_format:LineDecoder")
    registry.POSTPROCESSES.add("above", "toy_postprocess:Above")
    yield
    registry.INPUT_FORMATS.remove("line")
    registry.POSTPROCESSES.remove("above")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    models.write(tmp_path, models.identity(shape=("N", 3)))
    path = tmp_path / "worker.yaml"
    document: dict[str, Any] = {
        "input": {"topics": ["in"], "format": "line"},
        "preprocess": {"numeric": {"mean": 1}},
        "model": {"path": "model.onnx"},
        "postprocess": {"above": {"level": 1.5}},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_new_format_and_a_new_postprocess_answer_a_record(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A format and a postprocess added by one line each answer a record through `check --sample`."""
    sample = config.parent / "sample.csv"
    sample.write_text("1,3,4.5")
    assert main(["check", str(config), "--sample", str(sample), "--offline", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = next(line["message"] for line in lines if line["check"] == "sample")
    assert '{"above":2}' in said.replace(" ", "")
    sample.write_text("1,three")
    assert main(["check", str(config), "--sample", str(sample), "--offline"]) == 2
    assert "not a line of numbers" in "".join(capsys.readouterr())


def test_settings_know_a_new_component(config: Path) -> None:
    """A new component stands in the JSON Schema, in the sentences about mistakes and among the nearest keys."""
    schema = json_schema()
    assert schema["$defs"]["AboveSettings"]["properties"]["level"]["default"] == 0.5
    assert '"line"' in json.dumps(schema["$defs"]["InputSettings"])
    with pytest.raises(ConfigError, match=r", line or custom code"):
        load(config, ["input.format=lime"])
    with pytest.raises(ConfigError, match=r"postprocess\.above\.levle; the nearest known key is .*level"):
        load(config, ["postprocess.above={levle: 3}"])
    with pytest.raises(ConfigError, match=r"preprocess\.image: does not go with input\.format 'line'"):
        load(config, ["preprocess={image: {}}"])
