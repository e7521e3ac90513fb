"""The only module that imports OpenCV, because OpenCV reads its limits from the environment at import."""

from __future__ import annotations

import os

from worker.features.quiet import quiet_decoders

# Headers are checked before every decode. This limit holds even if a decoder reads a header differently.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "40000000")

import cv2

cv2.setNumThreads(1)  # the pool's threads already decode in parallel
# A broken picture is a dead letter, not a warning per record.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


quiet_decoders()

__all__ = ["cv2"]
