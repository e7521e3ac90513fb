"""Text from class scores along a line, against RapidOCR's decoder and a plain loop."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_support import picture_signature, predicted
from encode_support import pipeline

from worker.cli.main import main
from worker.errors import ConfigError
from worker.postprocess import postprocess

RANDOM = np.random.default_rng(8)
LETTERS = list("abcdefg")


def steps(count: int, classes: int) -> Any:
    """Probabilities in which one class is best by far, with repeats and blanks."""
    best = RANDOM.integers(0, classes, count).repeat(RANDOM.integers(1, 4, count))
    scores = RANDOM.random((len(best), classes)) * 0.1
    scores[np.arange(len(best)), best] = RANDOM.random(len(best)) * 0.5 + 0.5
    return scores.astype(np.float32)


def plain(scores: Any, texts: list[str], blank: int) -> tuple[str, float]:
    """The textbook: the best class of each step, one of each run of equal ones, no blanks."""
    best = scores.argmax(axis=1)
    kept = []
    for number, run in groupby(range(len(best)), key=lambda i: best[i]):
        if number != blank:
            kept.append(next(iter(run)))
    return "".join(texts[best[i]] for i in kept), float(np.mean([scores[i].max() for i in kept] or [0]))


@pytest.mark.parametrize("blank", [0, 3, -1])
@pytest.mark.parametrize("space", [True, False])
def test_text_and_score_are_those_of_the_textbook(blank: int, space: bool) -> None:
    """For any place of the blank, with a class for the space behind the alphabet or without."""
    texts = [*LETTERS, " "] if space else [*LETTERS]
    place = len(texts) if blank == -1 else blank
    texts.insert(place, "")
    for count in (1, 5, 40):
        scores = steps(count, len(texts))
        found = predicted({"ctc": {"alphabet": LETTERS, "blank": blank, "space": space}}, {"y": scores})
        text, score = plain(scores, texts, place)
        assert found == {"text": text, "score": pytest.approx(score, rel=1e-6)}


def test_the_number_of_classes_tells_of_the_space() -> None:
    """Without `space`, one class more than alphabet and blank is the space, as PaddleOCR trains its recognisers."""
    scores = np.eye(9, dtype=np.float32)[[1, 8, 2]]
    assert predicted({"ctc": {"alphabet": LETTERS}}, {"y": scores})["text"] == "a b"
    assert predicted({"ctc": {"alphabet": LETTERS}}, {"y": scores[:, :8]})["text"] == "ab"


def test_an_alphabet_may_name_the_blank_and_hold_a_sign_for_the_space() -> None:
    """Speech models list every class, the blank included, and write a space as |."""
    scores = np.eye(4, dtype=np.float32)[[2, 2, 0, 2, 1, 3]]
    options = {"alphabet": ["<pad>", "|", "h", "i"], "space": "|"}
    assert predicted({"ctc": options}, {"y": scores})["text"] == "hh i"


def test_logits_become_probabilities() -> None:
    """`activation: softmax` gives the score that the probabilities give; log-probabilities work as well."""
    logits = RANDOM.normal(size=(20, 8)) * 4
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = predicted({"ctc": {"alphabet": LETTERS}}, {"y": chances})
    for given in (logits, np.log(chances)):
        found = predicted({"ctc": {"alphabet": LETTERS, "activation": "softmax"}}, {"y": given})
        assert found == {"text": expected["text"], "score": pytest.approx(expected["score"], rel=1e-5)}


def test_the_batch_may_stand_in_the_middle() -> None:
    """[steps, 1, classes], as recurrent recognisers exported from PyTorch give it, one record at a time."""
    settings = pipeline({"ctc": {"alphabet": LETTERS}}).postprocess
    one = postprocess(settings, picture_signature({"y": (3, 1, 8)}, (8, 8), batchable=False), None)
    scores = np.eye(8, dtype=np.float32)[[1, 0, 2]][:, np.newaxis]
    assert one.predictions({"y": scores[np.newaxis]}, 1, [None], True) == [b'{"text":"ab","score":1.0}']


def test_nothing_read_is_an_empty_text() -> None:
    """With score 0, as RapidOCR gives it."""
    scores = np.eye(8, dtype=np.float32)[[0, 0]]
    assert predicted({"ctc": {"alphabet": LETTERS}}, {"y": scores}) == {"text": "", "score": 0.0}


def test_a_score_above_one_is_a_model_error() -> None:
    """It names the activation that would make probabilities of it."""
    reason, message = predicted({"ctc": {"alphabet": LETTERS}}, {"y": np.full((3, 8), 5.0)})
    assert reason == "model_error"
    assert "expected postprocess.ctc.activation: softmax" in message


def test_an_alphabet_file_has_one_character_per_line(tmp_path: Path) -> None:
    """A line may be a single space; line ends of Windows are none of the characters."""
    (tmp_path / "letters.txt").write_bytes("a\r\n \r\nü\r\n".encode())
    scores = np.eye(4, dtype=np.float32)[[1, 2, 3]]
    found = predicted({"ctc": {"alphabet": str(tmp_path / "letters.txt")}}, {"y": scores})
    assert found["text"] == "a ü"


@pytest.mark.parametrize(
    ("options", "shape", "said"),
    [
        (
            {"alphabet": LETTERS},
            (20, 12),
            "has 7 characters, .* has 12 classes; expected the alphabet and the blank",
        ),
        ({"alphabet": LETTERS, "space": True}, (20, 8), "expected the alphabet and the blank and the space"),
        ({"alphabet": LETTERS, "space": "|"}, (20, 8), r"space: got '\|', expected a part of the alphabet"),
        ({"alphabet": LETTERS, "blank": 8}, (20, 8), "blank: got 8, but .* has 8 classes"),
        ({}, (20, 8), "alphabet: required, because the model file does not name its characters"),
        ({"alphabet": "missing.txt"}, (20, 8), "missing.txt cannot be read"),
        ({"alphabet": LETTERS}, (2, 20, 8), r"needs \[steps, classes\] per item"),
    ],
)
def test_what_cannot_be_is_refused_at_start(options: Any, shape: Any, said: str) -> None:
    """One sentence names the setting, what the model has and what was expected."""
    with pytest.raises(ConfigError, match=rf"postprocess\.ctc.*{said}"):
        postprocess(pipeline({"ctc": options}).postprocess, picture_signature({"y": shape}, (8, 8)), None)


def test_logits_are_refused_at_start() -> None:
    """Where the answer to a made-up item is outside of 0 to 1, the sentence asks for softmax."""
    answers = ({"y": np.full((1, 20, 8), -7.5, np.float32)},)
    with pytest.raises(
        ConfigError, match=r"ctc\.activation: .* gave -7\.5, not within 0 and 1; expected softmax"
    ):
        postprocess(
            pipeline({"ctc": {"alphabet": LETTERS}}).postprocess,
            picture_signature({"y": (20, 8)}, (8, 8), answers=answers),
            None,
        )


def test_a_missing_alphabet_is_told_before_the_model_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a mistake in the configuration, exit code 2, also where the model's file is not there yet."""
    config = tmp_path / "worker.yaml"
    config.write_text("""
input: {topics: [in], format: image}
model: {path: model.onnx}
postprocess: {ctc: {alphabet: letters.txt}}
output: {topic: out}
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:1", group.id: g}
""")
    assert main(["check", str(config), "--offline"]) == 2
    assert "postprocess.ctc.alphabet: " in capsys.readouterr().out
