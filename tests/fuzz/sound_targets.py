"""Sounds, as any bytes: files, raw samples in JSON, with windows and with features."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import sounds
from decode_support import Decoding

from worker.errors import Reject

SOUND_REASONS = frozenset(("undecodable", "invalid", "too_large"))
SOUNDS = [
    Decoding("audio", {"x": ("float", ["N", "S"])}, preprocess={"audio": {"max_s": 2}}),
    Decoding(
        "audio",
        {"x": ("float", ["N", 576])},
        preprocess={"audio": {"max_s": 2, "window_s": 0.032, "context_s": 0.004, "pad": False}},
    ),
    Decoding(
        "audio",
        {"x": ("float16", ["N", 20, "T"])},
        preprocess={
            "audio": {"rate": 8000, "max_s": 2, "window_s": 0.1, "hop_s": 0.05, "features": {"bins": 20}}
        },
    ),
    Decoding(
        "json",
        {"x": ("float", ["N", "S"])},
        preprocess={"inputs": {"x": {"from": "a", "audio": {"max_s": 2}}}},
    ),
]


def check_sound(data: bytes) -> None:
    """Whatever a header says, no sound is longer than the limit, nothing is charged less than it takes, samples are finite."""
    from fuzz_targets import assert_meant  # that module imports this one

    record = orjson.dumps({"a": base64.b64encode(data).decode()})
    for decoding in SOUNDS:
        value = record if "json" in type(decoding.decoder).__module__ else data
        assert refused(decoding, value) in ("", *SOUND_REASONS)
        feed = decoding.decode(value)
        if assert_meant(feed):
            continue
        item = feed.items[0]
        assert item is not None
        assert np.isfinite(item.arrays["x"]).all()
        rate = 8000 if decoding is SOUNDS[2] else 16_000
        if item.marks is None:
            assert item.arrays["x"].shape[1] <= 2 * rate + 2
        else:
            assert len(item.arrays["x"]) == item.count == len(item.marks["start_s"])
            assert item.marks["end_s"].max() <= 2 + 1 / rate


def refused(decoding: Decoding, value: bytes) -> str:
    """Why the header of a record refuses it; empty if it does not."""
    try:
        decoding.decoder.cost(value)
    except Reject as error:
        return error.reason
    return ""


def sound_seeds() -> list[bytes]:
    """A short sound in every encoding."""
    return [
        sounds.file(sounds.speech(0.2, rate, channels), rate, encoding)
        for encoding in sounds.ENCODINGS
        for rate, channels in ((16_000, 1), (48_000, 2))
    ]


SOUND_TOKENS = [
    *(
        b"RIFF",
        b"RF64",
        b"WAVE",
        b"fmt ",
        b"data",
        b"fact",
        b"ds64",
        b"LIST",
        b"fLaC",
        b"OggS",
        b"OpusHead",
        b"ID3",
    ),
    *(b"\x01vorbis", b"\x7fFLAC", b"Xing", b"Info", b"\xff\xfb\x90", b"\xff\xf3", b"\xfe\xff", b"\x03\0"),
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\x3e\0\0", b"\x01\0", b"\x18\0"),
]
