"""Where custom code failed: its own files and lines, in `check`, in the log and in nothing that is published."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from stream import write_config

from worker.cli.main import main
from worker.errors import Reject, Rejection
from worker.frames import MOST_CALLS, mark, marked
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.custom import CustomPostprocess
from worker.settings.choice import CustomSettings

CODE = """
import json

from worker import Reject


def helper(n):
    return 1 / n


def post(outputs):
    return helper(0)


def read(value, headers):
    return {"x": helper(0)}


def refuse(outputs):
    try:
        json.loads("{")
    except ValueError:
        raise Reject("not today")


def through_a_library(outputs):
    return json.loads("{")


def deep(outputs, n=40):
    return deep(outputs, n - 1) if n else helper(0)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "custom_frames.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "custom_frames", raising=False)
    return tmp_path


def rejection(name: str) -> Rejection:
    signature = Signature((), (TensorSpec("y", np.dtype(np.float32), (None, 4), "tensor(float)"),), True)
    made = CustomPostprocess(CustomSettings(code=f"custom_frames:{name}"), signature, None)
    (found,) = made.predictions({"y": np.ones((1, 4), np.float32)}, 1, [None], False)
    assert isinstance(found, Rejection)
    return found


def test_the_calls_of_custom_code_are_named_innermost_last(code: Path) -> None:
    """Each call of the user's own file has file, line, function and source line; the worker's own calls are left out."""
    assert rejection("post").frames == (
        "custom_frames.py:12 in post: return helper(0)",
        "custom_frames.py:8 in helper: return 1 / n",
    )


def test_a_fault_inside_a_library_shows_who_called_it(code: Path) -> None:
    """The user's line that called a library is named, not the library's own lines."""
    assert rejection("through_a_library").frames == (
        'custom_frames.py:27 in through_a_library: return json.loads("{")',
    )


def test_a_refusal_on_purpose_is_no_fault(code: Path) -> None:
    """A record that custom code refuses with Reject names no calls, also if it answers another exception."""
    found = rejection("refuse")
    assert (found.message, found.frames) == ("not today", ())


def test_a_deep_recursion_keeps_its_innermost_calls(code: Path) -> None:
    """At most five calls are kept."""
    frames = rejection("deep").frames
    assert len(frames) == MOST_CALLS
    assert frames[-1].startswith("custom_frames.py:8 in helper")


def test_an_exception_that_nobody_marked_has_no_calls() -> None:
    """Only custom code is marked: a fault of the worker's own decoders is not shown as the user's."""
    assert marked(ValueError("x")) == ()
    assert Rejection.of(ValueError("x"), "decode", None).frames == ()
    with pytest.raises(Reject) as caught:
        raise Reject("no")
    mark(caught.value)
    assert marked(caught.value)[-1].startswith("test_frames.py:")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"postprocess": "custom_frames:post"}, "model_error: postprocess: division by zero"),
        (
            {"input": {"topics": ["in"], "format": "custom_frames:read"}},
            "undecodable: decode: division by zero",
        ),
    ],
)
def test_check_shows_the_line_of_custom_code(
    code: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], reason: str
) -> None:
    """`check --sample` names file, line and source of the custom code that failed, and exits with 2."""
    models.write(code, models.identity())
    sample = code / "sample.json"
    sample.write_text('{"features": [1, 2, 3, 4]}')
    config = write_config(
        code,
        {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "model.onnx"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
            **settings,
        },
    )
    assert main(["check", str(config), "--offline", "--sample", str(sample)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "custom_frames.py:8 in helper: return 1 / n" in said


def test_a_custom_filter_names_its_line_but_not_its_message(code: Path) -> None:
    """A record that a custom payload filter fails on has the line in its rejection; what the exception quotes stays out."""
    from worker.payload.custom import CustomFilter

    (code / "custom_filter.py").write_text("def unwrap(value, headers):\n    return value[0] / 0\n")

    class Making:
        name, setting = "custom_filter:unwrap", "input.unwrap"

    with pytest.raises(Reject) as caught:
        CustomFilter(Making()).unwrap(b"x", [], "t", 10)  # type: ignore[arg-type]
    found = Rejection.of(caught.value, "decode", None)
    assert found.frames == ("custom_filter.py:2 in unwrap: return value[0] / 0",)
    assert found.message == "custom code custom_filter:unwrap raised ZeroDivisionError"
