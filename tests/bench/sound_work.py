"""The workload of sound: clips through mel features and a small network, and the same by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from workloads import CLASSES, Graph, Workload

from worker.features.mel import LogMel, MelRecipe

BINS, FRAMES, RATE = 64, 501, 16_000


def audio_cnn(folder: Path) -> Workload:
    """Clips of 5 s, 22.05 kHz WAV -> 16 kHz -> 64 mel bins -> a small convolutional network -> the three best classes as JSON."""
    graph = Graph()
    x = "x"
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        x = graph.relu(graph.conv(x, inputs, outputs, 3, stride=2, pad=1))
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    path = graph.save(folder / "sounds.onnx", [1, BINS, FRAMES], graph.dense(x, 64, CLASSES))
    return Workload(
        "audio",
        "WAV 22.05 kHz, 5 s -> mel -> CNN -> JSON",
        clips(20, 5.0, 22_050),
        {
            "input": {"format": "audio"},
            "preprocess": {
                "audio": {
                    "rate": RATE,
                    "features": {"n_fft": 400, "hop": 160, "bins": BINS, "log": "natural"},
                }
            },
            "model": {"path": str(path), "name": "sounds"},
            "batching": {"max_size": 16},
            "postprocess": {"classification": {"top_k": 3}},
            "output": {"format": "json"},
        },
        records=160,
        single_records=100,
        batch=16,
    )


def clips(count: int, seconds: float, rate: int) -> list[bytes]:
    """16-bit WAV files of noise through changing resonances."""
    random = np.random.default_rng(5)
    clock = np.arange(round(seconds * rate)) / rate
    found = []
    for _ in range(count):
        pitch = 2 * np.pi * np.cumsum(100 + 50 * np.sin(clock * random.uniform(1, 5))) / rate
        voice = sum(np.sin(n * pitch) / n for n in range(1, 12)) * 0.1
        out = io.BytesIO()
        noisy = (voice + random.standard_normal(len(clock)) * 0.02).astype(np.float32)
        soundfile.write(out, noisy, rate, format="WAV", subtype="PCM_16")
        found.append(out.getvalue())
    return found


def limit(run: Callable[..., Any], topic: str) -> Callable[[list[bytes], int], list[bytes]]:
    """soundfile, soxr, the worker's own mel, one run."""
    mel = LogMel(MelRecipe("librosa", RATE, 400, 400, 160, BINS, 0, 8000, "natural", True, "slaney"))

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        x = np.empty((len(values), 1, BINS, FRAMES), np.float32)
        for slot, value in zip(x, values, strict=True):
            sound, rate = soundfile.read(io.BytesIO(value), dtype="float32")
            slot[0] = mel(soxr.resample(sound, rate, RATE)[np.newaxis])[0].T
        best = run(None, {"x": x})[0].argmax(axis=1).tolist()
        return [b'{"id":"%b/3/%d","prediction":{"label":"%d"}}' % (topic.encode(), first_offset + i, c)
                for i, c in enumerate(best)]  # fmt: skip

    return batch
