"""Manners of the command line: the nearest word, help that fits the terminal, and what a report of a bug needs."""

from __future__ import annotations

import importlib
import json
import platform
from pathlib import Path

import pytest

from worker import __version__
from worker.cli import main as cli
from worker.cli.parser import Parser


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("rum x.yaml", "argument COMMAND: got 'rum'; did you mean run? see streaminfer --help"),
        ("zzz", "got 'zzz'; expected one of "),
        ("check --offlin x.yaml", "--offlin; did you mean --offline? see streaminfer check --help"),
        ("check x.yaml --sampel=a", "--sampel=a; did you mean --sample? see streaminfer check --help"),
        ("check x.yaml --off", "--off; did you mean --offline?"),
        ("check x.yaml --frobnicate", "--frobnicate; see streaminfer check --help"),
        ("dlq lst x.yaml", "got 'lst'; did you mean list? see streaminfer dlq --help"),
        ("dlq list x.yaml --jsn", "--jsn; did you mean --json? see streaminfer dlq list --help"),
        ("dlq list x.yaml more", "unrecognized arguments: more; see streaminfer dlq list --help"),
        ("tail x.yaml --what result", "got 'result'; did you mean results?"),
        (
            "tail x.yaml --what foo",
            "expected one of results, metrics, dead-letter; see streaminfer tail --help",
        ),
        ("topics", "CONFIG; see streaminfer topics --help"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command, option or word is exit 2 with the nearest known one and the help to look at."""
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_bare_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`streaminfer` alone prints every command on standard output and is still a usage error."""
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert set(cli.COMMANDS) <= listed
    assert err.startswith("streaminfer: ")


def test_help_says_what_all_commands_share(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` has the environment variables and the exit codes; `--version` is one line."""
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "LOG_LEVEL" in shown
    assert "7  the model is sick" in shown
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"streaminfer {__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_descriptions_fit_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns a command's description is wrapped; its examples keep their lines, however long."""
    monkeypatch.setenv("COLUMNS", "80")
    parser = Parser(prog=f"streaminfer {name}", allow_abbrev=False)
    importlib.import_module(f"worker.cli.{name}").configure(parser)
    text = parser.format_help()
    assert parser.description
    described = text[text.index("\n\n") :].partition("positional arguments:")[0].partition("options:")[0]
    own_lines = {
        line for each in parser.description.split("\n\n") if "\n" in each for line in each.splitlines()
    }
    assert described.strip()
    assert max(len(line) for line in described.splitlines() if line not in own_lines) <= 80
    if parser.epilog:
        assert all(
            line.strip() in text for line in parser.epilog.splitlines() if line.startswith("  streaminfer")
        )


def test_info_names_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, providers and abilities are there, for people and as one JSON object."""
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["streaminfer"] == __version__
    assert platform.python_version() in found["python"]
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert {"librdkafka", "confluent_kafka"} <= found["kafka_client"].keys()
    assert "sasl" in found["kafka_client"]["features"]
    assert "OpenSSL" in found["openssl"]
    assert Path(found["package"]).name == "worker"
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "streaminfer"
    assert len(lines) == len(found)
