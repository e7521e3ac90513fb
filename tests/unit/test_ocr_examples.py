"""The examples that find and read text, against what the package of their models answers for the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ocr_models
import pytest
import structlog

from worker import settings
from worker.cli.sample import answer
from worker.serving.load import load

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
# What rapidocr-onnxruntime 1.4.4 finds in page.png (limit_side_len 192) and reads in line.png, with onnxruntime 1.32.
REGIONS = [
    ([[18, 26], [215, 28], [215, 55], [18, 53]], 0.8017547936234631),
    ([[55, 125], [215, 95], [221, 128], [61, 158]], 0.7666020079940954),
]
LINE = ("Kafka 4.1: 1042", 0.9875826358795166)


def predicted(example: str, picture: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MODELS", str(ocr_models.folder() / "models"))
    with structlog.testing.capture_logs():
        [rollout] = load(settings.load(EXAMPLES / example)).values()
    return answer(rollout, (EXAMPLES / "text" / picture).read_bytes())["prediction"]


def test_lines_are_found_where_rapidocr_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a turned one: scores agree to 1e-5, corners to 1.5 pixels, because RapidOCR rounds them to whole ones."""
    found = predicted("text-regions.yaml", "page.png", monkeypatch)["regions"]
    assert len(found) == len(REGIONS)
    for region, (points, score) in zip(found, REGIONS, strict=True):
        assert region["score"] == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(region["points"], points, atol=1.5)


def test_a_line_reads_as_rapidocr_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is the same, and its score to 1e-5; the characters come from the model file."""
    text, score = LINE
    assert predicted("text-line.yaml", "line.png", monkeypatch) == {
        "text": text,
        "score": pytest.approx(score, abs=1e-5),
    }
