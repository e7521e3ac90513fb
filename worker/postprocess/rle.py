"""Masks as run lengths, in COCO's order: column after column, each from top to bottom.

A mask of two values is COCO's uncompressed form: the lengths of the runs in turn, the first one of pixels outside (0 where
the first pixel is inside). A map of classes is pairs, class and length.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from worker.batch import Array
from worker.errors import Reject

RUNS_MAX = 1 << 18
"""Most runs in the answer to one picture: about a megabyte of text, which is what a topic takes by default."""


class RunCount:
    """Counts the runs of one answer, and refuses a picture whose masks are too ragged."""

    def __init__(self) -> None:
        self._runs = 0

    def add(self, runs: int) -> None:
        self._runs += runs
        if self._runs > RUNS_MAX:
            raise Reject(f"the masks have more than {RUNS_MAX} runs", "too_large_output")


def mask_runs(
    bands: Iterable[tuple[int, Array]], top: int, height: int, width: int, count: RunCount
) -> Array:
    """COCO's counts of a mask in a picture of this size.

    Args:
        bands: parts of the mask from left to right: first column, and booleans (rows, columns).
        top: the picture's row that is the first row of every band.
    """
    starts: list[Array] = []
    ends: list[Array] = []
    for left, inside in bands:
        edges = np.zeros((inside.shape[1], inside.shape[0] + 2), np.int8)
        edges[:, 1:-1] = inside.T
        steps = np.diff(edges, axis=1)
        for sign, found in ((1, starts), (-1, ends)):
            column, row = np.nonzero(steps == sign)
            found.append((column + left) * height + row + top)
        count.add(2 * len(starts[-1]))
    if not starts:
        return np.array([height * width])
    first, last = np.concatenate(starts), np.concatenate(ends)
    apart = first[1:] != last[:-1]  # a run that goes on in the next column is one run
    first, last = (
        first[np.r_[True, apart]] if len(first) else first,
        last[np.r_[apart, True]] if len(last) else last,
    )
    borders = np.empty(2 * len(first) + 2, np.int64)
    borders[0], borders[1:-1:2], borders[2:-1:2], borders[-1] = 0, first, last, height * width
    counts = np.diff(borders)
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def class_runs(bands: Iterable[Array], count: RunCount) -> Array:
    """Pairs of class and length, flat, of a map of classes.

    Args:
        bands: parts of the map from left to right, integers (height, columns).
    """
    classes, starts, total = [], [], 0
    last = None
    for band in bands:
        flat = band.T.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if last is None or flat[0] != last:
            changes = np.r_[0, changes]
        count.add(len(changes))
        classes.append(flat[changes])
        starts.append(changes + total)
        last = flat[-1]
        total += len(flat)
    begun = np.concatenate([*starts, [total]])
    pairs = np.empty(2 * (len(begun) - 1), np.int64)
    pairs[0::2], pairs[1::2] = np.concatenate(classes), np.diff(begun)
    return pairs
