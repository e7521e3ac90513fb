"""The examples for lines and pages of any size, against what the package of their models makes of the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ocr_models
import onnxruntime
import pytest
import structlog
from test_decode_image import encode
from test_image_fit import line
from test_ocr_examples import LINE, REGIONS

from worker import settings
from worker.cli.sample import answer
from worker.serving.load import load
from worker.serving.rollout import Rollout

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    monkeypatch.setenv("MODELS", str(ocr_models.folder() / "models"))
    with structlog.testing.capture_logs():
        [rollout] = load(settings.load(EXAMPLES / name)).values()
    return rollout


def read_by_hand(picture: Any) -> tuple[str, float]:
    """Text and score of a BGR line: the package's input, one run, and greedy CTC as its paper has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ocr_models.model("rec"), options)
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    scores = session.run(None, {"x": ocr_models.recognizer_input(picture)[None]})[0][0]
    best = scores.argmax(axis=1)
    kept = [step for step in range(len(best)) if best[step] and (step == 0 or best[step] != best[step - 1])]
    return "".join(characters[best[step]] for step in kept), float(scores[kept, best[kept]].mean())


def test_lines_of_any_width_read_as_rapidocr_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample, and lines shorter and longer than 320 pixels: the same text, and its score to 1e-5."""
    rollout = example("ocr-lines.yaml", monkeypatch)
    sample = answer(rollout, (EXAMPLES / "text" / "line.png").read_bytes())["prediction"]
    assert sample == {"text": LINE[0], "score": pytest.approx(LINE[1], abs=1e-5)}
    for height, width in ((48, 120), (48, 320), (48, 471)):
        picture = line(height, width)
        text, score = read_by_hand(picture)
        found = answer(rollout, encode(".png", picture[..., ::-1]))["prediction"]
        assert found == {"text": text, "score": pytest.approx(score, abs=1e-5)}
        assert text


def test_a_line_on_its_head_is_told_as_rapidocr_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line and the same line turned: the label, and the package's own score to 1e-5."""
    rollout = example("ocr-angles.yaml", monkeypatch)
    session = onnxruntime.InferenceSession(ocr_models.model("cls"))
    upright = line(60, 480)
    for picture, label in ((upright, "0"), (np.ascontiguousarray(upright[::-1, ::-1]), "180")):
        scores = session.run(None, {"x": ocr_models.angle_input(picture)[None]})[0][0]
        found = answer(rollout, encode(".png", picture[..., ::-1]))["prediction"]
        assert found["label"] == label
        assert found["score"] == pytest.approx(float(scores[int(label != "0")]), abs=1e-5)


@pytest.mark.slow
def test_pages_of_any_size_have_their_lines_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page as it is, twice as large, and beside an empty half: the same lines in each page's own pixels, to 12 of them."""
    rollout = example("ocr-pages.yaml", monkeypatch)
    page = cv2.imread(str(EXAMPLES / "text" / "page.png"))
    large = cv2.resize(page, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    beside = np.hstack([page, np.full_like(page, page[0, 0])])
    for picture, scale in ((page, 1), (large, 2), (beside, 1)):
        found = answer(rollout, encode(".png", picture[..., ::-1]))["prediction"]["regions"]
        assert len(found) == len(REGIONS)
        for region, (points, _) in zip(found, REGIONS, strict=True):
            np.testing.assert_allclose(np.array(region["points"]) / scale, points, atol=12)
