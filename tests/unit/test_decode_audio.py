"""Sound: files of every encoding against soundfile and soxr by hand, windows, limits and broken files."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
import sounds
import soxr
from decode_support import Decoding

from worker.errors import ConfigError, Reject

FREE = {"x": ("float", ("N", None))}


def decoding(shape: tuple[Any, ...] = ("N", None), form: Any = "audio", **settings: Any) -> Decoding:
    limits = settings.pop("limits", None)
    return Decoding(form, {"x": ("float", shape)}, preprocess={"audio": settings}, limits=limits)


def by_hand(value: bytes, rate: int) -> Any:
    """What soundfile and soxr make of a file."""
    sound, own = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
    mono = sound.mean(axis=1, dtype=np.float32)
    return mono if own == rate else soxr.resample(mono, own, rate)


def compared(count: int, encodings: list[str]) -> None:
    """Clips of these encodings, three rates, one and two channels, against soundfile and soxr."""
    one = decoding(rate=16_000)
    values = []
    for number in range(count):
        encoding = encodings[number % len(encodings)]
        rate = (8_000, 16_000, 48_000)[number // len(encodings) % 3]
        sound = sounds.speech(0.3 + number % 7 * 0.11, rate, 1 + number % 2, seed=number)
        values.append(sounds.file(sound, rate, encoding))
    for start in range(0, count, 50):
        part = values[start : start + 50]
        feed = one.decode(*part)
        assert not feed.rejected
        for value, item in zip(part, feed.items, strict=True):
            assert item is not None
            np.testing.assert_allclose(item.arrays["x"][0], by_hand(value, 16_000), rtol=0, atol=1e-6)


def test_200_clips_are_those_of_soundfile_and_soxr() -> None:
    """WAV, FLAC, OGG and MP3 at three rates give the samples that soundfile and soxr give by hand."""
    compared(200, list(sounds.FOUR))


@pytest.mark.slow
def test_2000_clips_are_those_of_soundfile_and_soxr() -> None:
    """The same for 2,000 clips."""
    compared(2000, list(sounds.FOUR))


@pytest.mark.parametrize("encoding", sounds.ENCODINGS)
def test_every_encoding_is_read(encoding: str) -> None:
    """8 to 64 bits, integers and floats, companded, compressed and big-endian: all as soundfile reads them."""
    one = decoding(rate=16_000)
    for channels in (1, 2):
        value = sounds.file(sounds.speech(0.5, 48_000, channels), 48_000, encoding)
        np.testing.assert_allclose(one.item(value)[0], by_hand(value, 16_000), rtol=0, atol=1e-6)


def test_many_channels_are_mixed() -> None:
    """24 channels become one: their mean."""
    value = sounds.file(sounds.speech(1.0, 16_000, 9).repeat(3, axis=1)[:, :24], 16_000)
    np.testing.assert_allclose(decoding().item(value)[0], by_hand(value, 16_000), rtol=0, atol=1e-6)


def test_chunks_that_are_no_sound_are_passed_over() -> None:
    """Lists, tags and unknown chunks of odd lengths before the format change nothing."""
    plain = sounds.file(sounds.speech(0.2), 16_000)
    junk = sounds.with_chunks(
        plain, (b"JUNK", b"x" * 501), (b"LIST", b"INFO" + b"y" * 33), (b"bext", b"z" * 700)
    )
    assert np.array_equal(decoding().item(junk), decoding().item(plain))
    trailing = plain + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert np.array_equal(decoding().item(trailing), decoding().item(plain))


def test_a_stream_that_does_not_know_its_length_is_read_to_its_end() -> None:
    """WAV files with a length of "until the end", and FLAC streams without one, are read whole."""
    sound = sounds.speech(1.3)
    wav = bytearray(sounds.file(sound, 16_000))
    expected = decoding().item(bytes(wav))
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0):
        wav[40:44] = struct.pack("<I", size)
        assert np.array_equal(decoding().item(bytes(wav)), expected)
    flac = bytearray(sounds.file(sound, 16_000, "flac"))
    expected = decoding().item(bytes(flac))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    assert np.array_equal(decoding().item(bytes(flac)), expected)
    reason, message = decoding(max_s=1).refusal(bytes(flac))
    assert (reason, message) == ("too_large", "the sound has more than 16000 samples")


# -- windows -------------------------------------------------------------------------------------------


def windows(sound: Any, length: int, hop: int, context: int, pad: bool) -> list[Any]:
    """The windows of a sound, one by one."""
    found = []
    start = 0
    while not found or (pad and start + length - hop < len(sound)) or start + length <= len(sound):
        before = sound[max(0, start - context) : start]
        piece = sound[start : start + length]
        front = np.zeros(context - len(before), np.float32)
        found.append(np.concatenate([front, before, piece, np.zeros(length - len(piece), np.float32)]))
        start += hop
    return found


@pytest.mark.parametrize("samples", [1, 511, 512, 513, 1600, 4000])
@pytest.mark.parametrize(
    ("length", "hop", "context"),
    [(512, 512, 0), (512, 512, 64), (512, 160, 64), (512, 600, 0), (400, 160, 700)],
)
@pytest.mark.parametrize("pad", [True, False])
def test_windows_stand_where_they_should(
    samples: int, length: int, hop: int, context: int, pad: bool
) -> None:
    """Each item is the context before a window and the window; zeros before the sound and, with pad, behind it."""
    sound = sounds.speech(samples / 16_000)
    value = sounds.file(sound, 16_000)
    one = decoding(window_s=length / 16_000, hop_s=hop / 16_000, context_s=context / 16_000, pad=pad)
    mono = by_hand(value, 16_000)
    feed = one.decode(value)
    if not pad and samples < length:
        assert feed.rejected[0].reason == "invalid"
        assert "expected at least window_s" in feed.rejected[0].message
        return
    item = feed.items[0]
    assert item is not None
    assert item.marks is not None
    expected = windows(mono, length, hop, context, pad)
    assert np.array_equal(item.arrays["x"], expected)
    assert (item.count, item.single) == (len(expected), False)
    starts = np.arange(len(expected)) * hop
    assert item.marks["start_s"].tolist() == (starts / 16_000).tolist()
    assert item.marks["end_s"].tolist() == (np.minimum(starts + length, samples) / 16_000).tolist()


@pytest.mark.parametrize(
    "shape", [("N", 576), ("N", 1, None), ("N", None, 1), ("N", None, None), ("N", 1, 576, 1)]
)
def test_samples_go_where_the_model_wants_them(shape: tuple[Any, ...]) -> None:
    """Dimensions of length 1 stand around the samples as the model's input says."""
    value = sounds.file(sounds.speech(0.1), 16_000)
    feed = decoding(shape, window_s=0.032, context_s=0.004).decode(value)
    item = feed.items[0]
    assert item is not None
    found = item.arrays["x"]
    assert len(found) == 4
    assert found.ndim == len(shape)
    assert all(wanted in ("N", None, length) for wanted, length in zip(shape, found.shape, strict=True))


def test_a_model_of_one_length_gets_it() -> None:
    """Without windows, a shorter sound gets zeros behind it; a longer one, or any other without pad, is refused."""
    sound = sounds.speech(0.5)
    value = sounds.file(sound, 16_000)
    found = decoding(("N", 16_000)).decode(value)
    assert found.arrays is not None
    assert np.array_equal(found.arrays["x"][0, :8000], by_hand(value, 16_000))
    assert not found.arrays["x"][0, 8000:].any()
    reason, message = decoding(("N", 4_000)).refusal(value)
    assert (reason, message) == ("invalid", "the sound is 0.5 s long, the model's input x takes 0.25 s")
    assert decoding(("N", 16_000), pad=False).refusal(value)[0] == "invalid"


# -- what is refused -----------------------------------------------------------------------------------


def test_a_longer_sound_is_refused_undecoded() -> None:
    """A sound longer than max_s is too_large from its header, in every encoding, before anything is decoded."""
    for encoding in sounds.ENCODINGS:
        value = sounds.file(sounds.speech(2.0), 16_000, encoding)
        one = decoding(max_s=1.5)
        reason, message = one.refusal(value)
        assert reason == "too_large"
        assert "s long, preprocess.audio.max_s is 1.5" in message
        with pytest.raises(Reject, match=r"preprocess\.audio\.max_s is 1\.5"):
            one.decoder.cost(value)


def test_silence_that_would_fill_the_memory_is_refused_from_its_header() -> None:
    """Minutes of silence in a few kilobytes of FLAC are charged in full, and refused beyond the budget."""
    value = sounds.file(np.zeros((48_000 * 240, 2), np.float32), 48_000, "flac")
    assert len(value) < 100_000
    samples = 48_000 * 240
    assert decoding(rate=48_000).decoder.cost(value) >= 4 * 3 * samples
    reason, message = decoding(limits={"in_flight_bytes": 20_000_000}).refusal(value)
    assert reason == "too_large"
    assert "limits.in_flight_bytes is 20000000" in message
    with pytest.raises(Reject, match=r"needs 1[0-9]{9} bytes of memory"):
        decoding(window_s=0.5, hop_s=0.01).decoder.cost(value)


@pytest.mark.parametrize("encoding", sounds.ENCODINGS)
def test_a_file_cut_short_is_undecodable(encoding: str) -> None:
    """A file that ends before its sound does is refused as undecodable, wherever it is cut."""
    value = sounds.file(sounds.speech(1.5, 16_000), 16_000, encoding)
    one = decoding()
    assert not one.decode(value).rejected
    for share in (0.1, 0.3, 0.5, 0.77, 0.95):
        assert one.refusal(value[: int(len(value) * share)])[0] == "undecodable"


def test_a_header_that_lies_is_undecodable() -> None:
    """A header that announces more samples than there are is refused, and no memory is taken for them."""
    value = bytearray(sounds.file(sounds.speech(1.0), 16_000, "flac"))
    value[24:26] = b"\xff\xff"  # some 60,000 samples instead of 16,000
    assert decoding().refusal(bytes(value))[0] == "undecodable"
    value[21] |= 0x0F
    assert decoding().refusal(bytes(value))[0] == "too_large"


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (b"", "undecodable", "got something else, expected a WAV, FLAC, OGG or MP3 file"),
        (b"FORM\0\0\0\0AIFF", "undecodable", "got an AIFF file"),
        (
            base64.b64encode(sounds.file(sounds.speech(0.1), 16_000)),
            "undecodable",
            "base64 text of a WAV file",
        ),
        (sounds.file(np.zeros((0, 1), np.float32), 16_000), "invalid", "the sound has no samples"),
        (sounds.file(np.full((9, 1), np.nan, np.float32), 16_000, "wav float"), "invalid", "NaN or infinity"),
        (
            sounds.file(np.full((9, 1), np.inf, np.float32), 16_000, "wav double"),
            "invalid",
            "NaN or infinity",
        ),
        (sounds.file(np.full((9, 1), 3e38, np.float32), 16_000, "wav float"), "invalid", "a sample of 3e+38"),
        (sounds.file(np.full((9, 2), 3e38, np.float32), 16_000, "wav float"), "invalid", "NaN or infinity"),
        (sounds.file(np.zeros((1, 1), np.float32), 48_000), "invalid", "shorter than one sample"),
        (
            sounds.file(np.zeros((9, 1), np.float32), 100),
            "invalid",
            "100 samples per second, expected 1000 to 768000",
        ),
    ],
)
def test_what_is_no_usable_sound_says_why(value: bytes, reason: str, message: str) -> None:
    """Other files, empty sounds, NaN and strange rates are refused with a sentence."""
    found = decoding().refusal(value)
    assert found[0] == reason
    assert message in found[1]


def test_sound_in_a_json_field() -> None:
    """A field holds a sound as base64 text or as a data URL; its length is charged before it is decoded."""
    value = sounds.file(sounds.speech(0.4), 16_000, "vorbis")
    one = Decoding("json", FREE, preprocess={"inputs": {"x": {"from": "clip.data", "audio": {}}}})
    text = base64.b64encode(value).decode()
    for written in (text, f"data:audio/ogg;base64,{text}", text.rstrip("=")):
        record = json.dumps({"clip": {"data": written}}).encode()
        assert np.array_equal(one.item(record)[0], by_hand(value, 16_000))
    long = sounds.file(np.zeros((16_000 * 300, 1), np.float32), 16_000, "flac")
    record = json.dumps({"clip": {"data": base64.b64encode(long).decode()}}).encode()
    assert one.decoder.cost(record) >= 4 * 2 * 16_000 * 300
    assert one.refusal(b'{"clip": {"data": 3}}') == (
        "invalid",
        'the field "clip.data": expected base64 text, got an integer',
    )


def test_the_field_may_stand_in_the_content() -> None:
    """`from` beside the other options names the field, as it does for texts; text in base64 is a sound, too."""
    value = sounds.file(sounds.speech(0.3), 16_000)
    record = json.dumps({"clip": base64.b64encode(value).decode()}).encode()
    one = Decoding("json", FREE, preprocess={"audio": {"from": "clip"}})
    assert np.array_equal(one.item(record)[0], by_hand(value, 16_000))
    assert np.array_equal(decoding(form="text").item(base64.b64encode(value))[0], by_hand(value, 16_000))
    with pytest.raises(
        ConfigError, match=r"preprocess\.audio: with input\.format json the audio needs a field"
    ):
        Decoding("json", FREE, preprocess={"audio": {}})
    inputs = {"x": {"from": "clip", "default": "none", "audio": {}}}
    with pytest.raises(ConfigError, match=r"preprocess\.inputs\.x\.default: does not go with audio"):
        Decoding("json", FREE, preprocess={"inputs": inputs})


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("shape", [["N"], ["N", 1]])
def test_a_model_may_ask_for_the_length(kind: str, shape: list[Any]) -> None:
    """An integer input that is called a length gets the number of samples, or of frames, without padding."""
    values = [sounds.file(sounds.speech(seconds), 16_000) for seconds in (0.5, 0.31)]

    def lengths(samples: list[Any], **settings: Any) -> list[Any]:
        inputs = {"waves": ("float", samples), "waves_lens": (kind, shape)}
        feed = Decoding("audio", inputs, preprocess={"audio": settings}).decode(*values)
        assert not feed.rejected
        if feed.arrays is not None:
            return [each.ravel().tolist() for each in feed.arrays["waves_lens"]]
        found = [item.arrays["waves_lens"] for item in feed.items if item is not None]
        assert all(each.dtype == kind and each.ndim == len(shape) for each in found)
        return [each.ravel().tolist() for each in found]

    assert lengths(["N", "S"]) == [[8000], [4960]]
    assert lengths(["N", 10_000]) == [[8000], [4960]]
    assert lengths(["N", "S"], window_s=0.2, context_s=0.01) == [[3360, 3360, 1760], [3360, 1920]]
    assert lengths(["N", "T", 80], features="kaldi80") == [[50], [31]]


def test_raw_samples() -> None:
    """16-bit samples without a header are read with the rate and channels of the settings."""
    sound = (sounds.speech(0.5, 8_000, 2) * 32_767).astype("<i2")
    one = decoding(form={"pcm16": {"rate": 8_000, "channels": 2}})
    mono = (sound.astype(np.float32) / 32_768).mean(axis=1, dtype=np.float32)
    np.testing.assert_allclose(
        one.item(sound.tobytes())[0], soxr.resample(mono, 8_000, 16_000), rtol=0, atol=1e-6
    )
    reason, message = one.refusal(sound.tobytes()[:-1])
    assert (reason, message) == (
        "invalid",
        "got 15999 bytes, expected a multiple of 4: 16-bit samples of 2 channels",
    )
    assert one.refusal(b"")[0] == "invalid"


@pytest.mark.parametrize(
    ("shape", "settings", "sentence"),
    [
        (
            ("N", 400),
            {"window_s": 0.5},
            r"preprocess\.audio\.window_s: an item has 8000 samples with its context, but .* 400",
        ),
        (("N", 3, 200), {}, r"preprocess\.audio: an item of the model's input x has shape \[3, 200\]"),
    ],
)
def test_sound_that_cannot_fit_the_model_is_refused_at_start(
    shape: tuple[Any, ...], settings: dict[str, Any], sentence: str
) -> None:
    """Windows of another length than the model's, and inputs that are no samples, are a mistake in the settings."""
    with pytest.raises(ConfigError, match=sentence):
        decoding(shape, **settings)
