"""The one place that imports OpenCV, because it reads its limits from the environment when it is imported."""

from __future__ import annotations

import os

# Headers are checked before every decode; this bounds what a decoder does if a header is read differently there.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "40000000")

import cv2

cv2.setNumThreads(1)  # the pool's threads decode side by side already
# A broken picture is a dead letter, not a warning per record.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

__all__ = ["cv2"]
