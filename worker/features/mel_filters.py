"""Triangular filters on a mel scale, as librosa and Kaldi make them.

Sources: Slaney, Auditory Toolbox (1998), for the scale that is linear up to 1 kHz and the norm by area; Young et al., The HTK
Book, for 2595 log10(1 + f / 700); Kaldi's ``mel-computations.cc`` for filters that are triangles on the mel axis.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from worker.batch import Array

Scale = Literal["slaney", "htk"]
_LINEAR_HZ, _STEP_HZ = 1000.0, 200.0 / 3
_LOG_STEP = np.log(6.4) / 27.0


def to_mel(hertz: Array, scale: Scale) -> Array:
    """Frequencies on the mel scale."""
    if scale == "htk":
        mels: Array = 2595.0 * np.log10(1.0 + hertz / 700.0)
        return mels
    linear = hertz / _STEP_HZ
    above = _LINEAR_HZ / _STEP_HZ + np.log(np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ) / _LOG_STEP
    return np.where(hertz >= _LINEAR_HZ, above, linear)


def to_hertz(mels: Array, scale: Scale) -> Array:
    """The frequencies of points on the mel scale."""
    if scale == "htk":
        hertz: Array = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
        return hertz
    first = _LINEAR_HZ / _STEP_HZ
    above = _LINEAR_HZ * np.exp(_LOG_STEP * (mels - first))
    return np.where(mels >= first, above, mels * _STEP_HZ)


def filters(
    rate: int, n_fft: int, bins: int, f_min: float, f_max: float, scale: Scale, by_area: bool
) -> Array:
    """Triangles on the frequency axis, as ``librosa.filters.mel``: (n_fft // 2 + 1, bins), float64.

    Args:
        by_area: every filter has the same area (Slaney's norm), else the same height.
    """
    frequencies = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    limits = to_mel(np.array([f_min, f_max]), scale)
    points = to_hertz(np.linspace(limits[0], limits[1], bins + 2), scale)
    widths = np.diff(points)
    ramps = points[:, np.newaxis] - frequencies
    rising = -ramps[:-2] / widths[:-1, np.newaxis]
    falling = ramps[2:] / widths[1:, np.newaxis]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    if by_area:
        weights *= (2.0 / (points[2:] - points[:-2]))[:, np.newaxis]
    return np.ascontiguousarray(weights.T)


def kaldi_filters(rate: int, n_fft: int, bins: int, f_min: float, f_max: float) -> Array:
    """Triangles on the mel axis, as Kaldi's: (n_fft // 2 + 1, bins), float64; the last frequency has no weight."""
    limits = to_mel(np.array([f_min, f_max]), "htk")
    points = np.linspace(limits[0], limits[1], bins + 2)
    step = points[1] - points[0]
    mels = to_mel(np.arange(n_fft // 2 + 1) * (rate / n_fft), "htk")[:, np.newaxis]
    rising, falling = (mels - points[:-2]) / step, (points[2:] - mels) / step
    weights: Array = np.maximum(0.0, np.minimum(rising, falling))
    weights[-1] = 0.0
    return weights
