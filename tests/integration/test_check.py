"""``check`` with several pipelines and real models: each pipeline's sample, routing by header, pipelines without records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import yaml

from worker.cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write(tmp_path, models.identity(), "identity.onnx")
    models.write(tmp_path, models.mlp(4, 3), "mlp.onnx")
    (tmp_path / "two.json").write_text(json.dumps({"features": [1.5, 2.5, 3.5, 4.5]}))
    return tmp_path


def write(folder: Path, when: dict[str, Any]) -> str:
    """Two pipelines of one topic; each one's `when` as given."""
    pipelines = {
        name: {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "mlp.onnx"},
            "output": {"topic": "out"},
            **({"when": {"header": "x-model", "equals": when[name]}} if when.get(name) else {}),
        }
        for name in ("first", "second")
    }
    document = {
        "name": "two",
        "pipelines": pipelines,
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return str(folder / "two.yaml")


def checked(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["check", *argv, "--offline", "--json"])
    return code, [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_sample_goes_where_its_headers_send_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sample is answered by the pipeline that takes its headers; without a match it says what to give."""
    path, sample = write(folder, {"first": "a", "second": "b"}), str(folder / "two.json")
    code, lines = checked(capfd, path, "--sample", sample, "--sample-header", "x-model=b")
    answers = [json.loads(line["message"]) for line in lines if line["check"] == "sample"]
    assert (code, [answer["model"]["name"] for answer in answers]) == (0, ["second"])
    code, lines = checked(capfd, path, "--sample", sample)
    (failed,) = [line["message"] for line in lines if not line["ok"]]
    assert code == 2
    assert "no pipeline takes a record with these headers" in failed


def test_every_pipeline_can_have_its_sample(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """PIPELINE=FILE sends the file through that pipeline, once for each option."""
    path, sample = write(folder, {"first": "a", "second": "b"}), str(folder / "two.json")
    code, lines = checked(capfd, path, "--sample", f"second={sample}", "--sample", f"first={sample}")
    names = [json.loads(line["message"])["model"]["name"] for line in lines if line["check"] == "sample"]
    assert (code, names) == (0, ["second", "first"])


@pytest.mark.parametrize(("when", "code"), [({}, 2), ({"second": "b"}, 2), ({"first": "a"}, 0)])
def test_a_pipeline_that_no_record_can_reach_is_named(
    folder: Path, when: dict[str, str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipeline behind one that takes every record of its topics fails the check and says which one that is."""
    found, lines = checked(capfd, write(folder, when))
    assert found == code
    failed = [line["message"] for line in lines if not line["ok"]]
    assert len(failed) == (code != 0)
    assert all("pipelines.second: no record can reach it: first stands before it" in said for said in failed)
