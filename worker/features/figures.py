"""What can be said of a decoded picture or sound in a few numbers, to compare many of them."""

from __future__ import annotations

import math

import numpy as np

from worker.batch import Array

PIXELS_MAX = 1 << 20
"""Of a larger picture only each n-th row and column counts for brightness and contrast."""
SHARP_SIDE = 512
"""Sharpness is that of the middle of a picture, at most so many pixels wide and high, because it needs whole neighbourhoods."""
FRAME_S = 0.02
"""A sound is divided into frames of this length."""
SILENT = 10 ** (-50 / 20)
"""A frame below -50 dB of full scale is silence."""
FAINTEST = 1e-6
"""Nothing counts as fainter: -120 dB."""


def of_picture(pixels: Array, order: str) -> dict[str, float]:
    """Figures of one picture.

    Args:
        pixels: uint8, (height, width) for gray, else (height, width, 3).
        order: ``rgb``, ``bgr`` or ``gray``.

    Returns:
        ``brightness`` and ``contrast``: mean and standard deviation of the luma (ITU-R BT.601), 0 to 255. ``sharpness``: the
        variance of the Laplacian (Pech-Pacheco et al., 2000) in the middle of the picture. ``size``: pixels.
    """
    from worker.features.opencv import cv2

    height, width = pixels.shape[:2]

    def gray(part: Array) -> Array:
        part = np.ascontiguousarray(part)
        if part.ndim == 2:
            return part
        return cv2.cvtColor(part, cv2.COLOR_BGR2GRAY if order == "bgr" else cv2.COLOR_RGB2GRAY)

    step = max(1, math.ceil(math.sqrt(height * width / PIXELS_MAX)))
    mean, deviation = cv2.meanStdDev(gray(pixels[::step, ::step]))
    top, left = max(0, height - SHARP_SIDE) // 2, max(0, width - SHARP_SIDE) // 2
    middle = gray(pixels[top : top + SHARP_SIDE, left : left + SHARP_SIDE])
    _, edges = cv2.meanStdDev(cv2.Laplacian(middle, cv2.CV_16S))
    return {
        "brightness": float(mean[0, 0]),
        "contrast": float(deviation[0, 0]),
        "sharpness": float(edges[0, 0]) ** 2,
        "size": float(height * width),
    }


def of_sound(samples: Array, rate: int) -> dict[str, float]:
    """Figures of one sound.

    Args:
        samples: float32, mono, full scale is 1. rate: samples per second.

    Returns:
        ``level``: root mean square in dB of full scale, at least -120. ``silence``: share of frames of 20 ms whose level is below
        -50 dB. ``length``: seconds.
    """
    frame = max(1, int(rate * FRAME_S))
    whole = samples[: len(samples) // frame * frame] if len(samples) >= frame else samples
    squares = np.square(whole.reshape(-1, min(frame, max(1, len(whole)))), dtype=np.float64).mean(axis=1)
    level = math.sqrt(squares.mean()) if len(squares) else 0.0
    return {
        "level": 20 * math.log10(max(level, FAINTEST)),
        "silence": float((squares < SILENT**2).mean()) if len(squares) else 1.0,
        "length": len(samples) / rate,
    }
