"""Sounds for tests: generated speech-like signals, and files of every encoding."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import soundfile

from worker.batch import Array

ENCODINGS: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav float": {"format": "WAV", "subtype": "FLOAT"},
    "wav double": {"format": "WAV", "subtype": "DOUBLE"},
    "wav 8 bit": {"format": "WAV", "subtype": "PCM_U8"},
    "wav 24 bit": {"format": "WAV", "subtype": "PCM_24"},
    "wav 32 bit": {"format": "WAV", "subtype": "PCM_32"},
    "wav mu-law": {"format": "WAV", "subtype": "ULAW"},
    "wav a-law": {"format": "WAV", "subtype": "ALAW"},
    "wav adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wav extensible": {"format": "WAVEX", "subtype": "PCM_16"},
    "wav big endian": {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "flac 24 bit": {"format": "FLAC", "subtype": "PCM_24"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}
FOUR = ("wav", "flac", "vorbis", "mp3")


def speech(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Array:
    """Pulses at the pitch of a voice through resonances, with pauses: (samples, channels), float32 within -1..1."""
    random = np.random.default_rng(seed)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    pitch = 110 + 25 * np.sin(2 * np.pi * 0.7 * time + random.random() * 6)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = np.zeros(count)
    for number in range(1, 30):
        formant = sum(np.exp(-(((number * 120 - f) / 180.0) ** 2)) for f in (550, 1500, 2600))
        if number * 140 < rate / 2:
            voice += (0.02 + formant) / number**0.5 * np.sin(number * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time + random.random() * 6) + 0.4, 0, 1)
    pauses = np.repeat(random.random(max(1, int(seconds / 0.4) + 1)) > 0.35, max(1, round(0.4 * rate)))[
        :count
    ]
    sound = voice * syllables * np.resize(pauses, count) * 0.1 + random.standard_normal(count) * 0.003
    tilted = [sound * (1 - 0.1 * channel) for channel in range(channels)]
    return np.clip(np.stack(tilted, axis=1), -0.99, 0.99).astype(np.float32)


def file(sound: Array, rate: int, encoding: str = "wav") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, sound, rate, **ENCODINGS[encoding])
    return out.getvalue()


def with_chunks(wav: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A WAV file with further chunks in front of its format."""
    extra = b"".join(
        name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in chunks
    )
    body = b"WAVE" + extra + wav[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body
