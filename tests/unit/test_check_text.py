"""``check`` for people: a row for each thing, a last line, several files, and what a terminal adds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.cli import check_report
from worker.cli.main import main
from worker.cli.prediction_text import details, result_text
from worker.errors import Mistake, NotReady, StartError

DEMO = Path(__file__).parents[2] / "worker" / "demo_data"
FRAME = Path(__file__).parents[2] / "examples" / "frames" / "7.png"
HEAD = f"""
defaults:
  input: {{format: image}}
  preprocess: {{image: {{color: gray, scale: 0.00392157}}}}
  model: {{path: {DEMO}/digits.onnx, threads: 1}}
  output: {{topic: out}}
dead_letter: {{topic: dead}}
kafka: {{bootstrap.servers: "localhost:9", group.id: g}}
"""
ONE = HEAD + "pipelines: {one: {input: {topics: [a]}, postprocess: {classification: {top_k: 1}}}}\n"
TWO = HEAD + "pipelines:\n  cam01: {input: {topics: [a]}}\n  cam02: {input: {topics: [b]}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(ONE)
    Path("two.yaml").write_text(TWO)
    Path("bad.yaml").write_text("limits: {stall_s: x}\n" + ONE)
    return tmp_path


def rows(text: str) -> dict[str, str]:
    """Name -> the rest of each row."""
    found = {}
    for line in text.splitlines():
        if line.startswith(("ok   ", "FAIL ")):
            name, _, rest = line[5:].partition("  ")
            found[name.strip()] = rest.strip()
    return found


def test_one_pipeline_is_told_in_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Topics, model, speed and the sample's answer have a row each; the last line counts the rows."""
    assert main(["check", "one.yaml", "--offline", "--sample", str(FRAME)]) == 0
    shown = capsys.readouterr().out
    found = rows(shown)
    assert found["config"] == "1 pipeline, reads a, writes out"
    assert found["model"].startswith("one@")
    assert found["model"].endswith("batches")
    assert "us an item in batches of 64, " in found["speed"]
    assert found["sample"].startswith("7  ")
    assert json.loads(shown.splitlines()[shown.splitlines().index(f"ok   sample      {found['sample']}") + 1])
    assert shown.splitlines()[-1] == f"{len(found)} ok"


def test_several_pipelines_have_a_row_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two pipelines each row has topics, model and speed; programs get a line for each thing as before."""
    assert main(["check", "two.yaml", "--offline"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["cam01"].startswith("a -> out, cam01@")
    assert "us an item" in found["cam02"]
    assert not {"model", "signature", "model file", "kafka"} & found.keys()
    assert main(["check", "two.yaml", "--offline", "--json"]) == 0
    names = [json.loads(line)["check"] for line in capsys.readouterr().out.splitlines()]
    assert names.count("signature") == names.count("speed") == 2


def test_several_files_are_checked_one_after_the_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has a heading; the sentence at the end names those that failed, the exit code is the first one's."""
    assert main(["check", "one.yaml", "bad.yaml", "two.yaml", "--offline"]) == 2
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.endswith(".yaml:")] == [
        "one.yaml:",
        "bad.yaml:",
        "two.yaml:",
    ]
    assert "1 of 1 failed (exit 2)" in out
    assert err == "streaminfer: 1 of 3 configurations failed: bad.yaml\n"
    assert main(["check", "one.yaml", "bad.yaml", "--offline", "--json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["config"] for line in lines} == {"one.yaml", "bad.yaml"}
    assert [line["config"] for line in lines if not line["ok"]] == ["bad.yaml"]
    assert main(["check", "one.yaml", "two.yaml", "--offline", "--sample", str(FRAME)]) == 2


def test_each_file_has_its_own_custom_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two configurations with custom code of one name are each checked with their own."""
    for name, code in (("a", "def post(outputs):\n    return 1\n"), ("b", "x = 1\n")):
        (folder / name).mkdir()
        (folder / name / "own_of_each.py").write_text(code)
        text = ONE.replace("postprocess: {classification: {top_k: 1}}", "postprocess: 'own_of_each:post'")
        (folder / name / "w.yaml").write_text(text)
    before = list(sys.path)
    assert main(["check", "a/w.yaml", "b/w.yaml", "--offline"]) == 2
    assert "own_of_each has no attribute post" in capsys.readouterr().out.partition("b/w.yaml:")[2]
    assert sys.path == before
    assert "own_of_each" not in sys.modules


def test_quiet_prints_what_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet a good configuration prints nothing, and of a bad one only what fails."""
    assert main(["check", "one.yaml", "two.yaml", "--offline", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["check", "bad.yaml", "--quiet"]) == 2
    assert (
        capsys.readouterr().out
        == "FAIL config      bad.yaml:1:19: limits.stall_s: got 'x', expected a number\n"
    )


def test_only_a_terminal_gets_colours_and_hears_it_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal verdicts have colours, unless NO_COLOR is set, and the failure is not said again on standard error."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["check", "bad.yaml"]) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert err.count("stall_s") == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["check", "bad.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("\x1b[1;31mFAIL\x1b[0m config")
    assert err == ""
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["check", "bad.yaml"]) == 2
    assert "\x1b" not in capsys.readouterr().out


def test_missing_topics_are_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Several missing topics are one failure with a row for each; programs get an object for each."""
    error = NotReady.of(
        [Mistake("input.topics: topic a is missing"), Mistake("output.topic: topic b is missing")]
    )
    assert isinstance(error, StartError)
    report = check_report.Report(as_json=False)
    report.fail("broker", error)
    report.end()
    assert capsys.readouterr().out.splitlines() == [
        "FAIL topics      2 mistakes",
        "       input.topics: topic a is missing",
        "       output.topic: topic b is missing",
        "1 of 1 failed (exit 3)",
    ]
    check_report.Report(as_json=True).fail("broker", error)
    assert [json.loads(line)["check"] for line in capsys.readouterr().out.splitlines()] == [
        "broker",
        "broker",
    ]


BOX = {"label": "car", "class_id": 1, "score": 0.5, "xyxy": [6.0, 0.0, 106.4, 81.0]}


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ({"label": "7", "score": 0.9934126, "top": []}, "7  99.3 %"),
        ({"label": "7", "score": 0.99999, "top": []}, "7  >99.9 %"),
        ({"label": "7", "score": 12.5, "top": []}, "7  12.5"),
        ({"label": None, "score": None, "top": []}, "no class above the threshold"),
        ({"boxes": [BOX, BOX, BOX | {"label": "dog"}]}, "2 car  1 dog"),
        ({"boxes": [BOX | {"label": name} for name in "abcde"]}, "1 a  1 b  1 c  +2"),
        ({"boxes": []}, "no boxes"),
        ({"value": 3.25}, "3.25"),
        ({"values": [1.0, 2.5]}, "1  2.5"),
        ({"embedding": [0.0] * 384}, "embedding of 384 numbers"),
        ({"outputs": {"y": [[1.0, 2.0]], "n": 3}}, "y [1,2]  n 3"),
        (
            {"entities": [{"label": "LOC", "score": 0.9, "start": 0, "end": 6, "text": "Berlin"}]},
            "Berlin (LOC)",
        ),
        (
            {"size": [2, 2], "rle": [], "shares": {"road": 0.25, "sky": 0.75, "car": 0.0}},
            "sky 75.0 %  road 25.0 %",
        ),
        ({"text": "HELLO", "score": 0.5}, '"HELLO"  50.0 %'),
        ({"score": 0.25, "anomaly": True}, "anomaly  0.25"),
        ({"segments": [{"start_s": 0.5, "end_s": 1.0, "score": 0.5}]}, "0.5-1 s  50.0 %"),
        ({"small": {"label": "a", "score": 0.5}, "large": {"value": 2}}, "small: a  50.0 %; large: 2"),
        ("evil\x1b[2J", '"evil\\u001b[2J"'),
        ({"boxes": 3}, '{"boxes": 3}'),
        ([1, 2], "[1, 2]"),
        (None, "null"),
    ],
    ids=str,
)
def test_each_kind_of_prediction_is_one_line(prediction: Any, line: str) -> None:
    """Every kind of prediction has its own words; what only looks like one, and custom code, is shown as JSON."""
    assert result_text({"prediction": prediction}) == line


def test_other_results_are_one_line() -> None:
    """Several predictions, errors, results in a store, and what is no result have a line each."""
    windows = [{"start_s": n, "end_s": n + 1, "label": "a", "score": 0.5} for n in range(6)]
    assert result_text({"predictions": windows}) == (
        "0-1 s a  50.0 %; 1-2 s a  50.0 %; 2-3 s a  50.0 %; 3-4 s a  50.0 %; ... 6 in all"
    )
    assert result_text({"id": "a", "error": "invalid: x"}) == "error: invalid: x"
    assert result_text({"dataref": "s3://a/b", "bytes": 7}) == "in s3://a/b (7 bytes)"
    assert result_text({"other": 1}) == '{"other": 1}'
    assert len(result_text({"other": "x" * 1000})) < 110


def test_details_have_a_line_for_each_thing() -> None:
    """Boxes, with what later steps said of them, and classes are listed one by one."""
    box = BOX | {"colour": {"label": "red", "score": 0.75}}
    assert list(details({"prediction": {"cars": {"boxes": [box]}}})) == [
        "cars: car             50.0 %     6,   0, 106,  81  colour: red  75.0 %"
    ]
    assert list(
        details({"prediction": {"label": "a", "score": 1.0, "top": [{"label": "a", "score": 1.0}]}})
    ) == ["a              100.0 %"]
