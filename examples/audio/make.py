"""Makes what the examples beside it run on: a small classifier, its labels and three sounds.

    python examples/audio/make.py

It needs onnx and soundfile (streaminfer[quantize,audio]).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import soundfile
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
RATE = 16_000
BINS = 40
LABELS = ("hum", "whistle", "other")


def classifier() -> onnx.ModelProto:
    """log10 mel (N, 40, frames) -> the mean over the frames -> whether the low or the high bins are stronger."""
    low, high = np.zeros(BINS), np.zeros(BINS)
    low[1:8], high[20:34] = 1 / 7, 1 / 14
    weights = np.stack([low - high, high - low, 0 * low], axis=1).astype(np.float32) * 4
    bias = np.array([0, 0, 3], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["mel"], ["mean"], axes=[2], keepdims=0),
            helper.make_node("Gemm", ["mean", "weights", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "tones",
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["batch", BINS, "frames"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def tone(seconds: float, hertz: float, loudness: float) -> Any:
    clock = np.arange(round(seconds * RATE)) / RATE
    ends = np.minimum(1, 20 * np.minimum(clock, clock[::-1]))
    return loudness * ends * np.sin(2 * np.pi * (hertz * clock + 3 * np.sin(2 * np.pi * 5 * clock)))


def voice(seconds: float, pitch: float) -> Any:
    """Pulses through the resonances of a vowel, with the rhythm of syllables."""
    clock = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.15 * np.sin(2 * np.pi * 0.9 * clock))) / RATE
    sound = np.zeros(len(clock))
    for number in range(1, 40):
        strength = sum(
            gain * np.exp(-(((number * pitch - formant) / width) ** 2))
            for formant, width, gain in ((600, 160, 1), (1250, 220, 0.6), (2600, 300, 0.3))
        )
        sound += (strength + 0.01) * np.sin(number * phase)
    return 0.12 * sound * np.clip(np.sin(2 * np.pi * 2.6 * clock) + 0.35, 0, 1)


def main() -> None:
    random = np.random.default_rng(3)
    onnx.save(classifier(), HERE / "tones.onnx")
    (HERE / "tones.txt").write_text("\n".join(LABELS) + "\n")
    quiet = np.zeros(RATE)
    sounds = {
        "whistle": np.concatenate([quiet, tone(1.0, 2300, 0.3), quiet]),
        "hum": np.concatenate([quiet, tone(1.0, 180, 0.3), quiet]),
        "speech": np.concatenate([quiet, voice(1.5, 120), quiet]),
    }
    for name, sound in sounds.items():
        noisy = sound + random.standard_normal(len(sound)) * 0.0005
        soundfile.write(HERE / f"{name}.flac", noisy, RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
