"""All mistakes of a configuration at once, each with the line that has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worker.cli.main import main
from worker.errors import ConfigError, Mistake, StartError
from worker.settings import load

GOOD = """\
name: w
input:
  topics: [in]
  format: json
model: {path: small.onnx}
batching: {max_size: 4}
output: {topic: out}
dead_letter: {topic: dead}
limits:
  stall_s: 30
kafka:
  bootstrap.servers: localhost:9092
  group.id: g
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, so that messages name files as a user does."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(text: str, *overrides: str) -> list[Mistake]:
    """What is wrong with a file k.yaml."""
    Path("k.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load("k.yaml", overrides)
    return list(caught.value.mistakes)


def test_every_mistake_is_told_with_its_line(folder: Path) -> None:
    """Unknown keys, wrong values, wrong client properties and settings that do not go together come in one run."""
    text = (
        GOOD.replace("batching: {max_size: 4}", "batchng: {max_size: many}")
        .replace("stall_s: 30", "stall_s: long")
        .replace("bootstrap.servers", "bootstrap_server")
    )
    assert [str(each) for each in mistakes(text)] == [
        "k.yaml:6:1: unknown key batchng; the nearest known key is batching",
        "k.yaml:6:21: batching.max_size: got 'many', expected a whole number or 'auto'",
        "k.yaml:10:12: limits.stall_s: got 'long', expected a number",
        "k.yaml:12:3: unknown key kafka.bootstrap_server; the nearest known key is kafka.bootstrap.servers",
    ]


def test_checks_of_several_settings_are_told_beside_unknown_keys(folder: Path) -> None:
    """A misspelt key does not hide that other settings contradict each other."""
    text = GOOD.replace("topic: out", "topic: in").replace("stall_s", "stal_s") + "  partitioner: random\n"
    assert [(each.line, each.sentence.partition(": ")[0]) for each in mistakes(text)] == [
        (7, "output.topic"),
        (10, "unknown key limits.stal_s; the nearest known key is limits.stall_s"),
        (14, "kafka.partitioner"),
    ]


def test_what_a_misspelt_key_leaves_missing_is_no_mistake_of_its_own(folder: Path) -> None:
    """`inpt:` is one mistake: its settings are not missing, and `input` is not required as well."""
    assert [each.sentence for each in mistakes(GOOD.replace("input:", "inpt:"))] == [
        "unknown key inpt; the nearest known key is input"
    ]
    assert [
        each.sentence for each in mistakes(GOOD.replace("input:\n  topics: [in]", "topics: [in]\ninput:"))
    ] == ["unknown key topics; the nearest known key is input.topics"]


def test_a_value_refused_by_each_of_its_kinds_is_one_mistake(folder: Path) -> None:
    """`input.keep` takes a word or a mapping: a wrong mapping is one mistake, not one for each kind."""
    (found,) = mistakes(GOOD.replace("format: json", "format: json\n  keep: {every: 1}"))
    assert found.line == 5
    assert found.sentence.startswith("input.keep")


def test_what_a_section_lacks_is_one_mistake(folder: Path) -> None:
    """Two settings missing from one section are one sentence, at the section; without the section, at the file."""
    without = GOOD.replace("  topics: [in]\n  format: json\n", "  start: earliest\n")
    assert [str(each) for each in mistakes(without)] == [
        "k.yaml:2:1: input.topics is required, and so is input.format"
    ]
    assert [str(each) for each in mistakes(GOOD[: GOOD.index("kafka:")])] == [
        "k.yaml: kafka.bootstrap.servers is required, and so is kafka.group.id"
    ]


def test_options_and_variables_are_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of --set has the option as its place, one of the environment its line with the variable."""
    monkeypatch.setenv("STALL", "soon")
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = GOOD.replace("stall_s: 30", "stall_s: ${STALL}").replace("name: w", "name: ${NOT_THERE}")
    found = mistakes(text, "batching.max_size=many", "input={topics: [], format: json}")
    assert [each.place for each in found] == ["k.yaml:1:7", "k.yaml:10:12 ${STALL}", "--set", "--set"]
    assert found[0].sentence == "name: the environment variable NOT_THERE is not set and has no default"


def test_yaml_that_cannot_be_read_has_its_place(folder: Path) -> None:
    """A syntax error has line and column; a variable without quotes inside braces is told how to be written."""
    (found,) = mistakes(GOOD.replace("{topic: dead}", "{topic: ${DEAD}}"))
    assert (found.line, found.column) == (8, 23)
    assert 'a variable needs quotes: "${NAME}"' in found.sentence
    (other,) = mistakes("name: [a\n")
    assert "quotes" not in other.sentence


def test_aliases_stand_where_they_were_written(folder: Path) -> None:
    """A wrong value behind an anchor or a merge key has the line of the anchor's text."""
    text = "x-size: &size {max_size: many}\n" + GOOD.replace("{max_size: 4}", "{<<: *size}")
    (found,) = mistakes(text)
    assert (found.line, found.sentence.partition(":")[0]) == (1, "batching.max_size")


def test_mistakes_are_lines_on_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` and `check` print the file with the number of mistakes, then each in the order of the file; exit 2."""
    Path("k.yaml").write_text(GOOD.replace("stall_s: 30", "stall_s: x").replace("topics: [in]", "topics: []"))
    for argv in (["run", "k.yaml"], ["check", "k.yaml"]):
        assert main(argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "streaminfer: k.yaml: 2 mistakes"
        assert [line.split()[0] for line in lines[1:]] == ["k.yaml:3:11", "k.yaml:10:12"]


def test_one_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single mistake is a sentence behind its place, without a heading."""
    Path("k.yaml").write_text(GOOD.replace("stall_s: 30", "stall_s: x"))
    assert main(["run", "k.yaml"]) == 2
    assert (
        capsys.readouterr().err == "streaminfer: k.yaml:10:12: limits.stall_s: got 'x', expected a number\n"
    )


def test_check_gives_places_to_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check --json` has a line for each mistake, with file, line and column; what is well has no such keys."""
    Path("k.yaml").write_text(GOOD.replace("stall_s: 30", "stall_s: x").replace("topics: [in]", "topics: []"))
    assert main(["check", "k.yaml", "--json"]) == 2
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["file"], each["line"], each["column"]) for each in shown] == [
        ("k.yaml", 3, 11),
        ("k.yaml", 10, 12),
    ]
    Path("k.yaml").write_text(GOOD)
    assert main(["check", "k.yaml", "--json", "--offline"]) == 3
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (model,) = [each for each in shown if not each["ok"]]
    assert (model["check"], model["line"], model["column"]) == ("model file", 5, 15)
    assert all(each.keys() == {"check", "ok", "message"} for each in shown if each["ok"])


def test_every_wrong_client_property_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and values that librdkafka refuses are all told, at their lines."""
    Path("k.yaml").write_text(GOOD + "  linger.mz: 3\n  acks: lots\n")
    assert main(["run", "k.yaml"]) == 2
    _, first, second = capsys.readouterr().err.splitlines()[-3:]
    assert first.split()[:2] == ["k.yaml:14:3", "kafka.linger.mz:"]
    assert "did you mean kafka.linger.ms?" in first
    assert second.split()[:2] == ["k.yaml:15:9", "kafka.acks:"]


def test_every_missing_file_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pipelines without their models are two mistakes of one check, exit 3; each stands at its own line."""
    Path("k.yaml").write_text(
        "pipelines:\n"
        "  a: {input: {topics: [a], format: json}, model: {path: a.onnx}, output: {topic: x}}\n"
        "  b: {input: {topics: [b], format: json}, model: {path: b.onnx}, output: {topic: x}}\n"
        "dead_letter: {topic: dead}\nkafka: {bootstrap.servers: 'localhost:9092', group.id: g}\n"
    )
    assert main(["check", "k.yaml", "--json", "--offline"]) == 3
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["line"] for each in shown if not each["ok"]] == [2, 3]


def test_no_secret_is_in_a_mistake(folder: Path) -> None:
    """A wrong value under kafka is not shown, with or without a place."""
    text = GOOD + "  sasl.password: [hunter2]\n"
    (found,) = mistakes(text)
    assert "hunter2" not in str(found)
    assert found.file == "k.yaml"


def test_several_failures_of_a_start_are_one_error() -> None:
    """An error of several mistakes has a heading and a row for each on a terminal, and one sentence elsewhere."""
    both = StartError.of([Mistake("topic a is not there"), Mistake("topic b is not there")])
    assert both.lines == ["2 mistakes", "  topic a is not there", "  topic b is not there"]
    assert str(both) == "2 mistakes: topic a is not there; topic b is not there"
    assert StartError.of([Mistake("a")]).lines == ["a"]
    assert StartError("a\nb").lines == ["a b"]
