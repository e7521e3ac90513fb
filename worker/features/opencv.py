"""The only module that imports OpenCV, because OpenCV reads its limits from the environment at import."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

# Headers are checked before every decode. This limit holds even if a decoder reads a header differently.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "40000000")

import cv2

cv2.setNumThreads(1)  # the pool's threads already decode in parallel
# A broken picture is a dead letter, not a warning per record.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def _quiet_decoders() -> None:
    """Discard the warnings that libjpeg and libpng print for each broken picture: they would break the log's JSON lines.

    Both libraries write to C's ``stderr`` stream. Python, ONNX Runtime and crash dumps write to the file descriptor or to
    streams of their own; their output stays visible.
    """
    with suppress(OSError, ValueError):  # this C library has no such symbol: the warnings stay visible
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(os.devnull.encode(), b"w")
        if nowhere:
            ctypes.c_void_p.in_dll(libc, "stderr").value = nowhere


_quiet_decoders()

__all__ = ["cv2"]
