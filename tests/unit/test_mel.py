"""Log-mel features against librosa, Whisper's formula and Kaldi's code, by numbers recorded from them; and their shapes."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
import sounds
from decode_support import Decoding

from worker.batch import Array
from worker.errors import ConfigError, Reject

RECORDED = Path(__file__).with_name("mel_reference.npz")
"""Made by tests/reference/mel.py with librosa 0.11.0 and kaldi-native-fbank 1.23."""
RECIPES: dict[str, Any] = {
    "db": {"n_fft": 400, "hop": 160, "bins": 80, "log": "db"},
    "htk": {
        "n_fft": 1024,
        "hop": 256,
        "bins": 64,
        "f_min": 125,
        "f_max": 7500,
        "norm": "none",
        "scale": "htk",
    },
    "log10": {"n_fft": 512, "hop": 128, "bins": 40, "log": "log10", "f_max": 4000},
    "power": {"n_fft": 441, "hop": 220, "bins": 32, "log": "none", "scale": "htk"},
    "whisper80": "whisper80",
    "whisper128": "whisper128",
    "kaldi80": "kaldi80",
}


def recorded(name: str) -> Array:
    with np.load(RECORDED) as file:
        return np.array(file[name])


def decoding(shape: tuple[Any, ...], **settings: Any) -> Decoding:
    return Decoding("audio", {"x": ("float", shape)}, preprocess={"audio": settings})


def features(value: bytes, shape: tuple[Any, ...] = ("N", None, None), **settings: Any) -> Array:
    """The first item of a record."""
    feed = decoding(shape, **settings).decode(value)
    assert not feed.rejected, feed.rejected
    if feed.arrays is not None:
        return feed.arrays["x"][0]
    assert feed.items[0] is not None
    return feed.items[0].arrays["x"][0]


@pytest.mark.parametrize("name", RECIPES)
def test_features_are_those_of_the_reference(name: str) -> None:
    """librosa's, Whisper's and Kaldi's features of a sound, to 1e-4."""
    sound, expected = recorded("sound"), recorded(name)
    value = sounds.file(sound, 16_000)
    found = features(value, features=RECIPES[name], window_s=len(sound) / 16_000)
    np.testing.assert_allclose(found, expected, rtol=1e-4 if name == "power" else 0, atol=1e-4)


@pytest.mark.parametrize("name", ["whisper80", "kaldi80", "htk", "power"])
@pytest.mark.parametrize("samples", [1, 2, 150, 300, 700, 2_000, 30_000])
def test_sounds_of_any_length_have_features(name: str, samples: int) -> None:
    """The ends of a sound are mirrored or zeros however short it is; a part in the middle does not depend on the length."""
    sound = sounds.speech(2.0)
    one = features(sounds.file(sound[:samples], 16_000), features=RECIPES[name], window_s=samples / 16_000)
    assert np.isfinite(one).all()
    frames = one.shape[0] if name == "kaldi80" else one.shape[1]
    if name in ("htk", "power"):
        hop, n_fft = (256, 1024) if name == "htk" else (220, 441)
        expected = 1 + samples // hop
        longer = features(sounds.file(sound, 16_000), features=RECIPES[name], window_s=2.0)
        inside = (samples - n_fft // 2) // hop
        if inside > 0:
            np.testing.assert_allclose(one[:, :inside], longer[:, :inside], rtol=1e-5, atol=1e-5)
    else:
        expected = (samples + 80) // 160 if name == "kaldi80" else samples // 160
    assert frames == expected


def test_whisper_features_are_of_30_seconds() -> None:
    """Without windows, Whisper's features are those of the sound with zeros up to 30 s; a longer sound is refused."""
    sound = sounds.speech(5.0)
    value = sounds.file(sound, 16_000)
    place = metadata.distribution("onnx-asr").locate_file("onnx_asr/preprocessors/data/whisper80.onnx")
    samples = np.frombuffer(value[44:], "<i2").astype(np.float32)[np.newaxis] / 32_768
    session = onnxruntime.InferenceSession(os.fspath(place))  # type: ignore[arg-type]
    feeds = {"waveforms": samples, "waveforms_lens": np.array([samples.shape[1]])}
    expected = session.run(["features"], feeds)[0][0]
    for shape in (("N", 80, 3000), ("N", 80, None), ("N", 1, 80, None)):
        found = features(value, shape, features="whisper80").reshape(80, -1)
        assert found.shape == (80, 3000)
        # that graph computes in float32: where the sound is weak, its own error is this large
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    long = sounds.file(np.zeros((16_000 * 31, 1), np.float32), 16_000, "flac")
    assert decoding(("N", 80, 3000), features="whisper80").refusal(long)[0] == "invalid"


@pytest.mark.parametrize("name", ["whisper80", "kaldi80", "htk", "db"])
def test_windows_have_the_features_that_each_has_alone(name: str) -> None:
    """The features of a window do not depend on the windows beside it."""
    value = sounds.file(sounds.speech(2.0), 16_000)
    one = decoding(("N", None, None), features=RECIPES[name], window_s=0.25, hop_s=0.1)
    item = one.decode(value).items[0]
    assert item is not None
    samples = np.frombuffer(value[44:], "<i2")
    assert item.count == 19
    for number in (0, 7, 18):
        piece = samples[number * 1600 : number * 1600 + 4000].reshape(-1, 1)
        piece = np.concatenate([piece, np.zeros((4000 - len(piece), 1), np.int16)])
        alone = features(sounds.file(piece, 16_000), features=RECIPES[name], window_s=0.25)
        np.testing.assert_allclose(item.arrays["x"][number], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "wanted", "found"),
    [
        (("N", 80, None), "kaldi80", (80, 50)),
        (("N", None, 80), "kaldi80", (50, 80)),
        (("N", None, None), "kaldi80", (50, 80)),
        (("N", None, None), {"bins": 40}, (40, 51)),
        (("N", None, 40), {"bins": 40}, (51, 40)),
        (("N", 1, 51, 40), {"bins": 40}, (1, 51, 40)),
        (("N", 40, 51, 1), {"bins": 40}, (40, 51, 1)),
    ],
)
def test_features_lie_as_the_model_wants_them(
    shape: tuple[Any, ...], wanted: Any, found: tuple[int, ...]
) -> None:
    """Bins and frames are told apart by the model's dimensions; dimensions of length 1 stand around them."""
    value = sounds.file(sounds.speech(0.5), 16_000)
    assert features(value, shape, features=wanted).shape == found
    one = decoding(shape, features=wanted, window_s=0.5)
    assert one.decoder.padding == {}
    again = features(value, ("N", *sorted(n for n in found if n > 1)), features=wanted)
    squeezed = features(value, shape, features=wanted).squeeze()
    assert np.array_equal(squeezed if squeezed.shape == again.shape else squeezed.T, again)


def test_a_graph_of_ones_own(tmp_path: Path) -> None:
    """An .onnx file turns samples into features before the model; one of another form is refused at start."""
    place = metadata.distribution("onnx-asr").locate_file("onnx_asr/preprocessors/data/kaldi.onnx")
    value = sounds.file(sounds.speech(1.0), 16_000)
    samples = np.frombuffer(value[44:], "<i2").astype(np.float32)[np.newaxis] / 32_768
    session = onnxruntime.InferenceSession(os.fspath(place))  # type: ignore[arg-type]
    expected = session.run(["features"], {"waveforms": samples, "waveforms_lens": np.array([16_000])})[0][0]
    assert np.array_equal(features(value, ("N", None, 80), features=str(place)), expected)
    windows = decoding(("N", None, 80), features=str(place), window_s=0.5, hop_s=0.1).decode(value).items[0]
    assert windows is not None
    assert windows.arrays["x"].shape == (6, 50, 80)
    with pytest.raises(ConfigError, match=r"features have 2 dimensions for each sound, an item .* has 1"):
        decoding(("N", None), features=str(place))
    own = models.write(tmp_path, models.recurrent())
    with pytest.raises(ConfigError, match=r"preprocess\.audio\.features: .* has another form"):
        decoding(("N", None), features=str(own))
    with pytest.raises(ConfigError, match=r"does not exist"):
        decoding(("N", None), features=str(tmp_path / "none.onnx"))


@pytest.mark.parametrize(
    ("shape", "settings", "sentence"),
    [
        (
            ("N", 40, None),
            {"features": "whisper80"},
            r"features: .* has shape \[40, \?\]; expected a dimension of 80 bins",
        ),
        (
            ("N", 80, 3000),
            {"features": "whisper80", "window_s": 5},
            r"500 frames of features, .* takes 3000; expected window_s: 30\.0",
        ),
        (
            ("N", 80, None),
            {"features": "whisper80", "rate": 8000},
            r"audio\.rate: whisper80 features are made for 16000",
        ),
    ],
)
def test_features_that_cannot_fit_the_model_are_refused_at_start(
    shape: tuple[Any, ...], settings: dict[str, Any], sentence: str
) -> None:
    """Another number of bins or frames than the model's is a mistake in the settings."""
    with pytest.raises(ConfigError, match=sentence):
        decoding(shape, **settings)


def test_features_are_charged() -> None:
    """Hours of silence with overlapping windows of features are refused from the header."""
    value = sounds.file(np.zeros((16_000 * 60, 1), np.float32), 16_000, "flac")
    one = decoding(("N", None, None), features={"hop": 2}, window_s=1.0, hop_s=0.01)
    with pytest.raises(Reject, match=r"needs [0-9]+ bytes of memory, limits\.in_flight_bytes"):
        one.decoder.cost(value)
