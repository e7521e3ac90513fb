"""From a score map to rotated boxes, with OpenCV.

The steps are those of the post-processing of DBNet (Liao et al., "Real-time Scene Text Detection with Differentiable
Binarization", 2020): cells above a threshold, the outlines of their groups, the smallest rotated box around each, the mean
score inside it, and its growth by area x ratio / perimeter.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from worker.batch import Array
from worker.features.opencv import cv2

_GROWN = 2
"""A box must be this many cells larger after it has grown."""


class Options(Protocol):
    """See :class:`worker.postprocess.regions.RegionsSettings`."""

    @property
    def threshold(self) -> float: ...
    @property
    def box_threshold(self) -> float: ...
    @property
    def unclip(self) -> float: ...
    @property
    def min_size(self) -> float: ...
    @property
    def dilate(self) -> bool: ...
    @property
    def max(self) -> int: ...


def rotated_boxes(scores: Array, options: Options) -> tuple[Array, Array]:
    """Corners (n, 4, 2) in cells, clockwise from the upper left one, and scores (n,) of the boxes in a map.

    Args:
        scores: (rows, columns), float32 or float64.
    """
    marked: Array = (scores > options.threshold).astype(np.uint8)
    if options.dilate:
        marked = cv2.dilate(marked, np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes, means = [], []
    for outline in outlines[: options.max]:
        centre, (width, height), angle = cv2.minAreaRect(outline)
        if min(width, height) < options.min_size:
            continue
        mean = _mean_inside(scores, cv2.boxPoints((centre, (width, height), angle)))
        if mean < options.box_threshold:
            continue
        # twice area x ratio / perimeter; the outline of one cell has neither
        grown = width * height * options.unclip / max(width + height, 1)
        larger = width + grown, height + grown
        if min(larger) < options.min_size + _GROWN:
            continue
        boxes.append(_clockwise(cv2.boxPoints((centre, larger, angle))))
        means.append(mean)
    return np.array(boxes, np.float64).reshape(-1, 4, 2), np.array(means)


def _mean_inside(scores: Array, corners: Array) -> float:
    """The mean score of the cells inside a box."""
    height, width = scores.shape
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, (width - 1, height - 1)).astype(int)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(corners - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(scores[top : bottom + 1, left : right + 1], inside)[0])


def _clockwise(corners: Array) -> Array:
    """The corners from the upper left one on: of the two leftmost the upper, of the two rightmost the upper and so on."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    left, right = left[np.argsort(left[:, 1], kind="stable")], right[np.argsort(right[:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]])
