"""The one place that imports OpenCV, because it reads its limits from the environment when it is imported."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

# Headers are checked before every decode; this bounds what a decoder does if a header is read differently there.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "40000000")

import cv2

cv2.setNumThreads(1)  # the pool's threads decode side by side already
# A broken picture is a dead letter, not a warning per record.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def _quiet_decoders() -> None:
    """Send what libjpeg and libpng print of each broken picture to nowhere: the log is JSON lines, and they ask nobody.

    They write to C's ``stderr`` stream. Python, ONNX Runtime and crash dumps write to the file descriptor, or to a
    stream of their own, and are still heard.
    """
    with suppress(OSError, ValueError):  # no such symbol in this C library: then they are heard
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(os.devnull.encode(), b"w")
        if nowhere:
            ctypes.c_void_p.in_dll(libc, "stderr").value = nowhere


_quiet_decoders()

__all__ = ["cv2"]
