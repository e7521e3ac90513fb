"""``streaminfer bench``: how it refuses what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.main import main

CONFIG = """
input: {topics: [in], format: json}
model: {path: model.onnx}
output: {topic: out}
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:1", group.id: g}
"""


@pytest.mark.parametrize("source", ["missing.jsonl", "empty.jsonl", "folder"])
def test_a_source_without_a_record_is_a_mistake(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing source, an empty file and a folder without images are each one sentence naming it, exit code 2."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    arguments = ["--rate", "5", "--source", str(tmp_path / source)]
    assert main(["bench", str(tmp_path / "config.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / source) in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "5", "--duration", "-1"], "--duration"),
        (["--rate", "5", "--p99-ms", "5"], "--p99-ms"),
        (["--search"], "--p99-ms"),
        (["--rate", "5", "--search"], "--search"),
        ([], "--rate"),
        (["--rate", "5", "--json", "/no/such/folder/out.json"], "--json: /no/such/folder/out.json"),
        (["--rate", "5"], "config.yaml"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments and a missing configuration end with exit code 2 and a sentence naming them."""
    config = ["bench", str(tmp_path / "config.yaml"), "--source", str(tmp_path)]
    assert main([*config, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert named in output.err
