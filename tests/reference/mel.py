"""Makes tests/unit/mel_reference.npz: features by librosa, by Whisper's formula over librosa's filters, and by Kaldi's code.

None of the three is a dependency of the tests. With librosa 0.11.0 and kaldi-native-fbank 1.23 in an environment of their own:

    python tests/reference/mel.py tests/unit/mel_reference.npz
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import kaldi_native_fbank
import librosa
import numpy as np

RATE = 16_000
RECIPES: dict[str, dict[str, Any]] = {
    "db": {"n_fft": 400, "hop": 160, "bins": 80, "log": "db"},
    "htk": {
        "n_fft": 1024,
        "hop": 256,
        "bins": 64,
        "f_min": 125.0,
        "f_max": 7500.0,
        "norm": "none",
        "scale": "htk",
    },
    "log10": {"n_fft": 512, "hop": 128, "bins": 40, "log": "log10", "f_max": 4000.0},
    "power": {"n_fft": 441, "hop": 220, "bins": 32, "log": "none", "scale": "htk"},
}


def sound() -> Any:
    """A voice of changing pitch above noise, 16-bit."""
    random = np.random.default_rng(12)
    clock = np.arange(9_600) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 40 * np.sin(5 * clock)) / RATE
    voice = sum(np.sin(number * pitch) / number for number in range(1, 40))
    mixed = 0.1 * voice * (1.1 + np.sin(20 * clock)) + random.standard_normal(len(clock)) * 0.02
    return np.round(np.clip(mixed, -1, 1) * 32_767).astype(np.int16)


def by_librosa(samples: Any, n_fft: int, hop: int, bins: int, **more: Any) -> Any:
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=RATE,
        n_fft=n_fft,
        hop_length=hop,
        n_mels=bins,
        fmin=more.get("f_min", 0.0),
        fmax=more.get("f_max"),
        norm="slaney" if more.get("norm", "slaney") == "slaney" else None,
        htk=more.get("scale") == "htk",
    )
    log = more.get("log", "natural")
    if log == "db":
        return librosa.power_to_db(power)
    return {"natural": np.log, "log10": np.log10}[log](np.maximum(power, 1e-10)) if log != "none" else power


def by_whisper(samples: Any, bins: int) -> Any:
    """log_mel_spectrogram of openai/whisper, in float64."""
    spectrum = librosa.stft(samples, n_fft=400, hop_length=160, pad_mode="reflect", dtype=np.complex128)[
        :, :-1
    ]
    mel = librosa.filters.mel(sr=RATE, n_fft=400, n_mels=bins, dtype=np.float64) @ np.abs(spectrum) ** 2
    log = np.log10(np.maximum(mel, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def by_kaldi(samples: Any) -> Any:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(RATE, samples.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(number) for number in range(fbank.num_frames_ready)])


def quickest_ms(work: Callable[[], Any]) -> float:
    """CPU milliseconds of the quickest of 30."""
    times = []
    for _ in range(30):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times) * 1000


def main() -> None:
    whole = sound()
    samples = whole.astype(np.float32) / 32_768
    found = {name: by_librosa(samples, **recipe) for name, recipe in RECIPES.items()}
    found |= {f"whisper{bins}": by_whisper(samples.astype(np.float64), bins) for bins in (80, 128)}
    found["kaldi80"] = by_kaldi(samples)
    np.savez_compressed(sys.argv[1], sound=whole, **{k: np.float32(v) for k, v in found.items()})
    clip = np.tile(samples, 9)[: 5 * RATE]
    print(
        f"5 s, librosa.melspectrogram + power_to_db: {quickest_ms(lambda: by_librosa(clip, **RECIPES['db'])):.2f} ms"
    )


if __name__ == "__main__":
    main()
