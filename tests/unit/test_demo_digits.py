"""The digits the demo ships: frames, labels, model and configuration fit together."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from worker.cli.demo import CONFIG, FOLDER, Digits, configure, png
from worker.features.picture import ImageSettings
from worker.settings import load


def test_the_frames_are_valid_png() -> None:
    """A PNG decoder reads back the very pixels of the demo's frames."""
    frame = Digits.load().frames[0]
    decoded = cv2.imdecode(np.frombuffer(png(frame), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, frame)


def test_the_model_reads_digits_it_was_not_trained_on() -> None:
    """The demo's model reads at least 97 % of the held-out digits, with the configured preprocessing."""
    digits = Digits.load()
    image = load(CONFIG).pipelines["digits"].preprocess.options(ImageSettings)
    assert image is not None
    assert image.size is not None
    session = ort.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    height, width = image.size
    pixels = np.stack([cv2.resize(frame, (width, height)) for frame in digits.frames])
    (scores,) = session.run(None, {"image": pixels[:, None].astype(np.float32) * np.float32(image.scale)})
    assert np.mean(scores.argmax(axis=1) == digits.labels) >= 0.97


@pytest.mark.parametrize("option", [["--replicas", "0"], ["--seconds", "-1"], ["--seconds", "nan"]])
def test_options_that_make_no_sense_are_refused(option: list[str]) -> None:
    """The demo refuses options that make no sense before it starts anything."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    configure(parser)
    with pytest.raises(argparse.ArgumentError, match="expected a number above 0"):
        parser.parse_args(option)
