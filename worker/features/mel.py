"""Sound -> log-mel features: frames, power spectrum, mel filters, logarithm.

The spectrum is computed in float64, because in float32 the weak bands of a frame are lost beside its strong ones, and the
logarithm shows that. Frames are worked on in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np

from worker.batch import Array
from worker.features.mel_filters import Scale, filters, kaldi_filters
from worker.features.opencv import cv2

Log = Literal["natural", "log10", "db", "none"]
Kind = Literal["librosa", "whisper", "kaldi"]
BLOCK_FRAMES = 128
_BLOCK_SAMPLES = BLOCK_FRAMES * 400
"""Samples of all frames worked on at a time: some 1 MiB per thread."""
_BAND_PRODUCT = 250_000
"""Multiplications in one matrix product; above some 260,000, OpenBLAS starts threads of its own, which this process's
threads would have to share the cores with."""
_LEAST = 1e-10
"""The least power before a logarithm, as in librosa and Whisper."""
_TOP_DB = 80.0
_KALDI_LEAST = float(np.finfo(np.float32).eps)
_PREEMPHASIS = 0.97


@dataclass(frozen=True)
class MelRecipe:
    """What log-mel features are made of.

    ``librosa``: frames around every ``hop``-th sample, zeros beyond the ends, Hann window of ``n_fft`` samples. ``whisper``: the
    same with the ends mirrored, the last frame left out, and Whisper's range. ``kaldi``: frames of ``window`` samples with the
    ends mirrored, mean removed, pre-emphasis, Povey's window, ``n_fft`` a power of two.
    """

    kind: Kind
    rate: int
    n_fft: int
    window: int
    hop: int
    bins: int
    f_min: float
    f_max: float
    log: Log
    by_area: bool
    scale: Scale

    def frames(self, samples: int) -> int:
        """How many frames a sound of so many samples has."""
        if self.kind == "whisper":
            return samples // self.hop
        if self.kind == "kaldi":
            return (samples + self.hop // 2) // self.hop
        return 1 + samples // self.hop


def whisper(bins: int) -> MelRecipe:
    """As openai/whisper's ``log_mel_spectrogram``."""
    return MelRecipe("whisper", 16_000, 400, 400, 160, bins, 0.0, 8000.0, "log10", True, "slaney")


KALDI_80 = MelRecipe("kaldi", 16_000, 512, 400, 160, 80, 20.0, 7600.0, "natural", False, "htk")
"""As Kaldi's ``compute-fbank-feats --snip-edges=false --dither=0 --high-freq=-400 --num-mel-bins=80`` of samples within -1..1."""


class LogMel:
    """Computes features. Several threads use one at once.

    Args:
        recipe: what they are made of.
    """

    def __init__(self, recipe: MelRecipe) -> None:
        self.recipe = recipe
        r = recipe
        if r.kind == "kaldi":
            weights = kaldi_filters(r.rate, r.n_fft, r.bins, r.f_min, r.f_max)
            hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(r.window) / (r.window - 1))
            self._window: Array = hann**0.85
            self._before = r.window // 2 - r.hop // 2
        else:
            weights = filters(r.rate, r.n_fft, r.bins, r.f_min, r.f_max, r.scale, r.by_area)
            self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(r.window) / r.window)
            self._before = r.n_fft // 2
        self._bands = _bands(_by_part(weights.astype(np.float32), r.n_fft))
        self._block = max(1, min(BLOCK_FRAMES, _BLOCK_SAMPLES // max(r.n_fft, r.hop)))
        """Frames worked on at a time."""
        self._memory = threading.local()
        self._quick = _smooth(r.n_fft) and r.n_fft % 2 == 0

    def __call__(self, sounds: Array) -> Array:
        """Features of sounds of one length.

        Args:
            sounds: (sounds, samples), float32.

        Returns:
            (sounds, frames, bins), float32.
        """
        r = self.recipe
        count = r.frames(sounds.shape[1])
        found = np.empty((len(sounds), count, r.bins), np.float32)
        together = max(1, self._block // max(1, count))
        for first in range(0, len(sounds), together):
            self._fill(sounds[first : first + together], found[first : first + together])
        self._finish(found)
        return found

    def _fill(self, sounds: Array, found: Array) -> None:
        """The mel power of a few sounds."""
        count = found.shape[1]
        if not count:
            return
        samples, r = sounds.shape[1], self.recipe
        behind = max(0, (count - 1) * r.hop + r.window - self._before - samples)
        work = self._work()
        if len(sounds) == 1 and samples > max(self._before, behind):
            for start in range(0, count, self._block):
                stop = min(count, start + self._block)
                first = start * r.hop - self._before
                piece = self._piece(sounds[0], first, first + (stop - start - 1) * r.hop + r.window, work)
                frames = np.lib.stride_tricks.sliding_window_view(piece, r.window)[:: r.hop]
                self._mel(self._squares(frames, work), found[:, start:stop])
            return
        padded = self._padded(sounds, behind)
        frames = np.lib.stride_tricks.sliding_window_view(padded, r.window, axis=1)[:, :: r.hop][:, :count]
        step = max(1, self._block // len(sounds))
        for start in range(0, count, step):
            part = frames[:, start : start + step]
            self._mel(self._squares(np.concatenate(part), work), found[:, start : start + step])

    def _work(self) -> _Work:
        """This thread's memory for one block. Fresh memory for each call would cost as much as the features."""
        work: _Work | None = getattr(self._memory, "work", None)
        if work is None:
            work = self._memory.work = _Work.of(self._block, self.recipe)
        return work

    def _piece(self, sound: Array, first: int, end: int, work: _Work) -> Array:
        """Samples ``first`` to ``end`` of a sound in float64, with what stands beyond its ends."""
        piece, samples = work.piece[: end - first], len(sound)
        inside = slice(max(0, first), min(samples, end))
        piece[inside.start - first : inside.stop - first] = sound[inside]
        before, behind = np.arange(first, min(0, end)), np.arange(max(samples, first), end)
        if self.recipe.kind == "librosa":
            piece[: len(before)] = 0.0
            piece[len(piece) - len(behind) :] = 0.0
            return piece
        again = self.recipe.kind == "kaldi"  # whether the outermost sample is mirrored, too
        piece[: len(before)] = sound[-before - again]
        piece[len(piece) - len(behind) :] = sound[2 * samples - 2 + again - behind]
        return piece

    def _padded(self, sounds: Array, behind: int) -> Array:
        """The sounds in float64 with what stands beyond their ends."""
        room = ((0, 0), (self._before, behind))
        wide = sounds.astype(np.float64)
        if self.recipe.kind == "librosa":
            return np.pad(wide, room)
        if sounds.shape[1] == 1:
            return np.pad(wide, room, mode="edge")
        return np.pad(wide, room, mode="symmetric" if self.recipe.kind == "kaldi" else "reflect")

    def _squares(self, frames: Array, work: _Work) -> Array:
        """The squares of the spectrum's parts, whose sums are the power: (frames, n_fft), float32.

        In each row: real of frequency 0, then real and imaginary of each frequency, at last real of the highest one.
        """
        r, count = self.recipe, len(frames)
        ready = work.ready[:count]
        if r.kind == "kaldi":
            level = frames - frames.mean(axis=1, keepdims=True)
            ready[:, 1 : r.window] = level[:, 1:] - _PREEMPHASIS * level[:, :-1]
            ready[:, 0] = level[:, 0] * (1 - _PREEMPHASIS)
            ready[:, : r.window] *= self._window
        else:
            np.multiply(frames, self._window, out=ready)
        packed, squares = work.packed[:count], work.squares[:count]
        if self._quick:
            cv2.dft(ready, packed, flags=cv2.DFT_ROWS)  # twice as fast as numpy's
        else:
            spectrum = np.fft.rfft(ready)
            packed[:, 0], packed[:, 1:] = (
                spectrum[:, 0].real,
                spectrum[:, 1:].view(np.float64)[:, : r.n_fft - 1],
            )
        np.multiply(packed, packed, out=squares, casting="same_kind")
        return squares

    def _mel(self, squares: Array, out: Array) -> None:
        """The filters' sums of a block's power."""
        for low, high, start, stop, weights in self._bands:
            product = np.matmul(squares[:, start:stop], weights)
            out[:, :, low:high] = product.reshape(*out.shape[:2], high - low)

    def _finish(self, found: Array) -> None:
        """The logarithm, in place, and Whisper's range."""
        r = self.recipe
        if r.log == "none":
            return
        if r.kind == "kaldi":
            np.log(np.maximum(found, _KALDI_LEAST, out=found), out=found)
            return
        np.maximum(found, _LEAST, out=found)
        if r.log == "natural":
            np.log(found, out=found)
            return
        np.log10(found, out=found)
        if r.kind == "whisper" and found.size:
            np.maximum(found, found.max(axis=(1, 2), keepdims=True) - 8.0, out=found)
            found += 4.0
            found /= 4.0
        elif r.log == "db" and found.size:
            found *= 10.0
            np.maximum(found, found.max(axis=(1, 2), keepdims=True) - _TOP_DB, out=found)


@dataclass(frozen=True)
class _Work:
    """Memory of one block: samples, frames, their spectra, the squares of these."""

    piece: Array
    ready: Array
    packed: Array
    squares: Array

    @classmethod
    def of(cls, frames: int, recipe: MelRecipe) -> _Work:
        shape = (frames, recipe.n_fft)
        piece = np.empty((frames - 1) * recipe.hop + recipe.window)
        return cls(piece, np.zeros(shape), np.empty(shape), np.empty(shape, np.float32))


def _by_part(weights: Array, n_fft: int) -> Array:
    """(frequencies, bins) as (n_fft, bins): each frequency's weight for its real and for its imaginary part."""
    parts = np.repeat(weights, 2, axis=0)[
        1:
    ]  # frequency 0 is real, and so is the highest one of an even length
    return np.ascontiguousarray(parts[:n_fft])


def _bands(weights: Array) -> list[tuple[int, int, int, int, Array]]:
    """The filters in groups: (first, last bin; first, last row; their weights). Most weights are 0, and a group of neighbours
    needs few rows."""
    bins = weights.shape[1]
    found = []
    low = 0
    while low < bins:
        high = min(bins, low + max(1, math.ceil(bins / 3)))
        while True:
            used = np.flatnonzero(weights[:, low:high].any(axis=1))
            start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            if high - low == 1 or (stop - start) * (high - low) * BLOCK_FRAMES <= _BAND_PRODUCT:
                break
            high = low + (high - low + 1) // 2
        found.append((low, high, start, stop, np.ascontiguousarray(weights[start:stop, low:high])))
        low = high
    return found


def _smooth(number: int) -> bool:
    """Whether it has no prime factor above 5: Fourier transforms of other lengths are slow."""
    for factor in (2, 3, 5):
        while number % factor == 0:
            number //= factor
    return number == 1
