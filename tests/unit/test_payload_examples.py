"""The examples of wrapped payloads and events answer the sample in their first line."""

from __future__ import annotations

import base64
import os
import shlex
from pathlib import Path

import pytest

from worker.cli.main import main

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("name", "expected"), [("encrypted", '"label": "7"'), ("events", '"id": "scan-17"')])
def test_an_example_answers_its_sample(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in the file's first line is exit 0, prints the answer to the sample, and shows no key."""
    key = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv("FRAMES_KEY", key)
    line = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    words = shlex.split(line.partition("streaminfer ")[2])
    assert main([word.replace("examples/", f"{ROOT}/examples/") for word in words]) == 0
    printed = "".join(capsys.readouterr())
    assert expected in printed
    assert '"label": "7"' in printed
    assert key not in printed
    assert ("keys demo, results use demo" in printed) == (name == "encrypted")
