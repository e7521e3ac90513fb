"""The README is held to the code: its commands parse, its configurations load, its tables are current."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker import app, errors, settings
from worker.cli.main import COMMANDS, Parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "digits.yaml"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
YAML = [text for language, text in BLOCKS if language == "yaml"]
COMMAND_LINES = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language in ("console", "sh")
    for line in text.splitlines()
    if "streaminfer " in line and (language == "sh" or line.startswith("$ "))
]
COMMAND_LINES += re.findall(r"`(streaminfer [^`]*)`", README)


def test_the_configuration_shown_is_the_example() -> None:
    """The first configuration of the README is examples/digits.yaml, word for word."""
    shown = EXAMPLE.read_text(encoding="utf-8").partition("\n")[2]  # its first line says how to try it
    assert YAML[0] == shown


def test_the_example_reads_its_frames() -> None:
    """The example's worker answers every frame beside it with the digit it is named for."""
    (pipeline,) = app.load_pipelines(settings.load(EXAMPLE)).values()
    for frame in sorted((ROOT / "examples" / "frames").iterdir()):
        assert app.answer(pipeline, frame.read_bytes())["prediction"]["label"] == frame.stem


@pytest.mark.parametrize("text", YAML)
def test_every_configuration_loads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each YAML block is a configuration, or a part that the example takes."""
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    part = yaml.safe_load(text.replace("${KAFKA_PASSWORD}", "secret"))
    whole = part if "dead_letter" in part else {**yaml.safe_load(EXAMPLE.read_text()), **part}
    assert settings.validate(whole, EXAMPLE.parent).pipelines


def test_the_own_code_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions shown as own code take a record to a prediction, and refuse one that is too short."""
    (code,) = (text for language, text in BLOCKS if language == "python")
    (tmp_path / "tickets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    document = {
        **yaml.safe_load(EXAMPLE.read_text()),
        "input": {"topics": ["tickets"], "format": "tickets:digit"},
        "postprocess": "tickets:parity",
    }
    del document["preprocess"]
    try:
        (pipeline,) = app.load_pipelines(settings.validate(document, EXAMPLE.parent)).values()
        result = app.answer(pipeline, json.dumps({"pixels": [0] * 784}).encode())
        assert result["prediction"].keys() == {"even", "digit"}
        with pytest.raises(errors.Reject, match="got 1 pixels, expected 784"):
            app.answer(pipeline, b'{"pixels": [0]}')
    finally:
        sys.modules.pop("tickets", None)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_one(line: str) -> None:
    """Each `streaminfer` line of the README is accepted as it stands: command, arguments and options."""
    words = shlex.split(line.partition("|")[2] if line.startswith("echo ") else line.partition("|")[0])
    assert words[0] == "streaminfer"
    parser(words[1]).parse_args(words[2:])


def test_every_command_is_named() -> None:
    """No command is left out of the README."""
    assert [name for name in COMMANDS if not re.search(rf"(streaminfer |scripts/){name}\b", README)] == []


def test_every_script_and_file_named_is_there() -> None:
    """Scripts, paths in the map of the code and the targets of links exist."""
    named = set(re.findall(r"`(scripts/[\w-]+|worker/[\w/]+(?:\.py)?/?|tests/[\w/]+(?:\.py)?)", README))
    named |= {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_exit_codes_are_those_of_the_errors() -> None:
    """Every exit code an error can give stands in the table."""
    codes = {error.exit_code for error in [errors.WorkerError, *errors.WorkerError.__subclasses__()]}
    assert {str(code) for code in codes} <= set(re.findall(r"^\| (\d) \|", README, re.MULTILINE))


def test_the_generated_tables_are_current() -> None:
    """The tables of settings and metrics are what scripts/readme-tables writes."""
    with_tables: Any = runpy.run_path(str(ROOT / "scripts" / "readme-tables"))["with_tables"]
    assert with_tables(README) == README
    assert with_tables(README.replace("`input.max_bytes`", "`input.most`")) == README


def parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command, whose mistakes are raised as ConfigError."""
    made = Parser(prog=f"streaminfer {command}", allow_abbrev=False)
    importlib.import_module(f"worker.cli.{command}").configure(made)
    return made
