"""Clips made for tests, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

TICKS = 90_000
"""Of the clock of the pictures' times, a second."""


def write_clip(
    pictures: Iterable[Any],
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A clip of RGB pictures.

    Args:
        pictures: uint8, (height, width, 3).
        container: FFmpeg's name. codec: FFmpeg's name of the encoder.
        rate: pictures a second.
        options: of the encoder.
        times: when each picture is shown, in seconds; default: by the rate.
        container_options: of the muxer.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        stream: Any = None
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = output.add_stream(codec, rate=rate, options=options or {})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
                if times is not None:
                    stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * TICKS), Fraction(1, TICKS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def moving(count: int, height: int = 48, width: int = 64) -> list[Any]:
    """Pictures that differ: a bright square that moves over a gradient."""
    found = []
    for number in range(count):
        ramp = np.linspace(0, 200, width, dtype=np.uint8)
        picture = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (height, width, 3))).copy()
        left = number * 3 % (width - 8)
        picture[8:16, left : left + 8] = (255, 40 + number % 200, 10)
        found.append(picture)
    return found
