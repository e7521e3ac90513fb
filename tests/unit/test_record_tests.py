"""`tests:` of a configuration, and the command that runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import models
import numpy as np
import pytest
import yaml

from worker import settings
from worker.cli.main import main
from worker.local.answers import Answer, Rejected
from worker.local.record_tests import faults
from worker.serving.differences import differences
from worker.settings.plain import Plain
from worker.settings.record_tests import ExpectSettings

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits.yaml"
SEVEN = {"file": str(ROOT / "examples" / "frames" / "7.png")}
REFUSED = Answer("a", rejected=Rejected("invalid", "decode", "the field x is missing"))
LABELLED = Answer("a", {"prediction": {"label": "7", "score": 0.75, "top": [{"label": "7"}, {"label": "1"}]}})


def run(config: Path, tests: list[dict[str, Any]], *arguments: str) -> int:
    return main(["test", str(config), "--set", f"tests={json.dumps(tests)}", *arguments])


def expected(**given: Any) -> ExpectSettings:
    return ExpectSettings.model_validate(given)


def test_the_example_passes_and_a_wrong_expectation_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A test that holds is `ok` and exit 0; one that does not is FAIL with each difference, and exit 2."""
    good = {
        "name": "a seven",
        "record": SEVEN,
        "expect": {"label": "7", "min_score": 0.9, "pipeline": "digits"},
    }
    bad = {"name": "no picture", "record": {"value": "hello"}, "expect": {"label": "7"}}
    worse = {"name": "a one", "record": SEVEN, "expect": {"prediction": {"label": "1", "why": "x"}}}
    letter = {"name": "refused", "record": {"base64": "AAA="}, "expect": {"dead_letter": "undecodable"}}
    assert run(DIGITS, [good, letter]) == 0
    assert capsys.readouterr().out == "ok   a seven\nok   refused\n2 tests: all ok\n"
    assert run(DIGITS, [good, bad, worse]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "ok   a seven",
        "FAIL no picture",
        "     expected a result, got a dead letter undecodable in decode: not a JPEG, PNG or WebP image",
        "FAIL a one",
        '     prediction.label is "7", expected "1"',
        "     prediction has no why",
        "3 tests: 2 failed",
    ]
    assert run(DIGITS, [good, bad, worse], "--only", "a s*") == 0


def test_the_reports_for_programs_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` gives one object per test and a summary; `--junit` a suite with a failure for each failed test."""
    tests = [
        {"name": "good", "record": SEVEN, "expect": {"label": "7"}},
        {"name": "bad\u0007 <&>", "record": SEVEN, "expect": {"dead_letter": {"reason": "invalid"}}},
    ]
    assert run(DIGITS, tests, "--json", "--junit", str(tmp_path / "report.xml")) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ok"] for line in lines[:2]] == [True, False]
    assert lines[0]["result"]["prediction"]["label"] == "7"
    assert lines[2] == {"type": "summary", "tests": 2, "failed": 1}
    (suite,) = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    good, bad = suite
    assert good.find("failure") is None
    failure = bad.find("failure")
    assert failure is not None
    assert (failure.get("message") or "").startswith("expected a dead letter invalid, got a result")


def test_headers_and_topics_route_the_records_of_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headers choose the pipeline, a record that none takes is unroutable, null is a tombstone, and numbers have a tolerance."""
    models.write(tmp_path, models.identity(shape=("N", 2)))
    section = {"model": {"path": "model.onnx"}, "output": {"topic": "out"}}
    value = {"features": [1, 2]}
    document = {
        "pipelines": {
            "a": {"input": {"topics": ["in"], "format": "json"}, "when": {"header": "m", "equals": "a"}, **section},
            "b": {"input": {"topics": ["other"], "format": "json", "tombstone": "drop"}, **section},
        },
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
        "tests": [
            {"name": "1", "record": {"value": value, "headers": {"m": "a"}}, "expect": {"pipeline": "a"}},
            {"name": "2", "record": {"value": value}, "expect": {"dead_letter": {"reason": "unroutable", "stage": "decode"}}},
            {"name": "3", "record": {"value": None, "topic": "other"}, "expect": {"dropped": True}},
            {"name": "4", "record": {"value": None, "headers": {"m": "a"}}, "expect": {"result": None}},
            {
                "name": "5",
                "record": {"value": value, "topic": "other", "key": "k"},
                "expect": {"pipeline": "b", "prediction": {"outputs": {"y": [1.05, 2]}}, "result": {"model": {"name": "b"}}},
                "tolerance": 0.1,
            },
        ],
    }  # fmt: skip
    config = tmp_path / "worker.yaml"
    config.write_text(yaml.safe_dump(document))
    assert main(["test", str(config)]) == 0, capsys.readouterr().out
    document["tests"][4]["tolerance"] = 0.01  # type: ignore[index]
    config.write_text(yaml.safe_dump(document))
    capsys.readouterr()
    assert main(["test", str(config)]) == 2
    assert "prediction.outputs.y[0] is 1.0, expected 1.05" in capsys.readouterr().out


def test_steps_are_tested_like_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipeline of several models has the predictions of each step, and a step that did not run can be asked for."""
    config = ROOT / "examples" / "escalation.yaml"
    steps = [step.name for step in next(iter(settings.load(config).pipelines.values())).steps or ()]
    tests = [{"name": "a seven", "record": SEVEN, "expect": {"prediction": {steps[0]: {"label": "7"}}}}]
    assert run(config, tests) == 0
    tests[0]["expect"] = {"prediction": {steps[0]: {"label": "1"}}}
    assert run(config, tests) == 2
    assert f'prediction.{steps[0]}.label is "7", expected "1"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("expect", "answer", "fault"),
    [
        ({"label": "7", "min_score": 0.75}, LABELLED, None),
        ({"label": "1"}, LABELLED, 'label is "7", expected "1"'),
        ({"min_score": 0.76}, LABELLED, "score is 0.75, expected at least 0.76"),
        ({"min_score": 0.1}, Answer("a", {"prediction": {"score": None}}), "score is absent, expected at least 0.1"),
        ({"prediction": {"top": [{"label": "7"}]}}, LABELLED, "prediction.top has 2 entries, expected 1"),
        ({"pipeline": "b"}, LABELLED, "pipeline is a, expected b"),
        ({"dead_letter": "invalid"}, REFUSED, None),
        ({"dead_letter": {"message": "field x"}}, REFUSED, None),
        ({"dead_letter": {"message": "field y"}}, REFUSED, 'message is "the field x is missing", expected it to contain "field y"'),
        ({"dead_letter": {"stage": "infer"}}, REFUSED, "stage is decode, expected infer (message: the field x is missing)"),
        ({"dropped": True}, REFUSED, "expected a dropped record, got a dead letter invalid in decode: the field x is missing"),
        ({"result": None}, Answer("a"), None),
        ({"result": {"id": "x"}}, Answer("a"), 'result is absent, expected {"id":"x"}'),
        ({"result": None}, Answer("a", b"\0"), 'result is {"base64":"AA=="}, expected absent'),
        ({"label": "7"}, Answer("a", dropped=True), "expected a result, got a dropped record"),
    ],
)  # fmt: skip
def test_an_answer_is_compared_with_what_is_expected(
    expect: dict[str, Any], answer: Answer, fault: str | None
) -> None:
    """Each expectation passes where it holds, and says in one sentence where it does not."""
    assert list(faults(expected(**expect), answer, 1e-3)) == ([fault] if fault else [])


def test_a_nan_and_a_truth_value_are_no_numbers() -> None:
    """NaN is never within a tolerance, and true is not 1."""
    assert list(differences(1.0, float("nan"), "x", 10)) == ["x is nan, expected 1.0"]
    assert list(differences(1, True, "x", 10)) == ["x is true, expected 1"]
    assert list(differences({"a": [1.0, 2]}, {"a": [1.0005, 2], "b": 3}, "x", 1e-3)) == []
    assert np.isclose(1.0, 1.0005, atol=1e-3)


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ({"record": {}, "expect": {"label": "7"}}, "tests.0.record: got {}, expected exactly one of value, file, base64"),
        ({"record": {"value": 1, "file": "x"}, "expect": {"label": "7"}}, "expected exactly one of value, file, base64"),
        ({"record": {"value": 1}, "expect": {}}, "tests.0.expect: got {}, expected at least one of prediction, result"),
        ({"record": {"value": 1}, "expect": {"label": "7", "dropped": True}}, "expected only one of label and dropped"),
        ({"record": {"value": 1}, "expect": {"lable": "7"}}, "the nearest known key is tests.0.expect.label"),
        ({"record": {"value": 1}, "expect": {"dead_letter": "bad"}}, "tests.0.expect.dead_letter"),
        ({"record": {"file": "nowhere"}, "expect": {"label": "7"}}, "nowhere does not exist; expected a file with one record"),
        ({"record": {"base64": "%"}, "expect": {"label": "7"}}, "tests.0 (it).record.base64: expected base64 text"),
        ({"record": {"value": 1, "topic": "x"}, "expect": {"label": "7"}}, "record.topic: got 'x', expected one of digits"),
        ({"record": {"value": 1}, "expect": {"pipeline": "x"}}, "expect.pipeline: got 'x', expected one of digits"),
    ],
)  # fmt: skip
def test_a_wrong_test_is_one_sentence_of_check_and_of_test(
    capsys: pytest.CaptureFixture[str], test: dict[str, Any], sentence: str
) -> None:
    """A mistake in `tests:` is exit 2 with its place, from `check` as from `test`; nothing is run."""
    for command in (["test"], ["check", "--offline"]):
        given = f"tests={json.dumps([{'name': 'it', **test}])}"
        assert main([command[0], str(DIGITS), *command[1:], "--set", given]) == 2
        printed = capsys.readouterr()
        assert sentence in printed.out + printed.err


def test_a_name_stands_once_and_tests_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Two tests of one name, no test at all, and --only that fits none are mistakes; so is a report that cannot be written."""
    test = {"name": "it", "record": SEVEN, "expect": {"label": "7"}}
    assert run(DIGITS, [test, test]) == 2
    assert "tests.1 (it).name: another test has this name" in capsys.readouterr().err
    assert run(DIGITS, []) == 2
    assert "it has none; expected a list of tests" in capsys.readouterr().err
    assert run(DIGITS, [test], "--only", "that") == 2
    assert "no test is called that; expected one of it" in capsys.readouterr().err
    assert run(DIGITS, [test], "--junit", "/nowhere/report.xml") == 2
    assert "--junit: /nowhere/report.xml cannot be written" in capsys.readouterr().err


def test_only_the_test_command_needs_the_files_of_tests() -> None:
    """`run` reads a configuration whose tests name a file that is not there: it does not look at them."""
    given = json.dumps([{"name": "it", "record": {"file": "nowhere.png"}, "expect": {"label": "7"}}])
    assert settings.load(DIGITS, [f"tests={given}"]).tests[0].name == "it"


def test_quotation_marks_tell_texts_from_numbers(tmp_path: Path) -> None:
    """In a record and an expectation 7 is a number and "7" a text, as YAML 1.2 has it; other settings keep the text as it is."""
    written = """
      {a: 7, b: "7", c: [1.5, -2e-05, '1e3'], d: true, e: "true", f: null, g: yes, h: 12:30, i: 2024-01-01, j: 1_000}
    """
    config = tmp_path / "worker.yaml"
    config.write_text(
        DIGITS.read_text().replace("../worker", str(ROOT / "worker"))
        + f"tests:\n  - name: 007\n    record: {{value: {written.strip()}}}\n"
        + f"    expect: {{label: 7, prediction: {written.strip()}}}\n"
    )
    (test,) = settings.load(config).tests
    assert test.record.value == test.expect.prediction
    assert test.record.value == {
        "a": 7, "b": "7", "c": [1.5, -2e-05, "1e3"], "d": True, "e": "true", "f": None,
        "g": "yes", "h": "12:30", "i": "2024-01-01", "j": "1_000",
    }  # fmt: skip
    assert (test.name, test.expect.label) == ("007", "7")
    assert yaml.safe_load(yaml.safe_dump(Plain("7"))) == "7"
