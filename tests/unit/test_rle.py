"""Run lengths of masks against those of pycocotools, and of maps of classes against the map itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detection_support import mask_of

from worker.errors import Reject
from worker.postprocess.rle import RUNS_MAX, RunCount, class_runs, mask_runs

RANDOM = np.random.default_rng(2)


def counts(mask: Any, band: int = 5) -> list[int]:
    """Of a whole mask, a few columns at a time."""
    height, width = mask.shape
    bands = ((left, mask[:, left : left + band]) for left in range(0, width, band))
    found: list[int] = mask_runs(bands, 0, height, width, RunCount()).tolist()
    return found


def from_coco(text: str) -> list[int]:
    """The counts in COCO's compressed text: five bits a character, a count as its difference to the one before last."""
    found: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value |= -1 << shift
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found


def drawn() -> Any:
    """Two shapes and bars at the edges, 23 x 31 pixels."""
    y, x = np.mgrid[:23, :31]
    ellipse = ((y - 8) / 6) ** 2 + ((x - 10) / 7) ** 2 < 1
    return ellipse | ((x >= 25) & (y >= 3)) | ((y == 22) & (x < 5)) | ((x >= 20) & (x < 22))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (drawn(), "f01f000000_O65JJ8:0O2O000000000001N101NQ2W1HVOkM000000000"),
        (np.zeros((3, 4), bool), "<"),
        (np.ones((3, 4), bool), "0<"),
    ],
)
def test_counts_are_those_of_pycocotools(mask: Any, text: str) -> None:
    """The texts are what pycocotools 2.0.11 encodes these masks as; its order is column after column."""
    assert counts(mask) == from_coco(text)


def test_counts_read_back_as_the_mask() -> None:
    """Also where a run goes on from column to column and from band to band."""
    for share in (0.02, 0.5, 0.98):
        for _ in range(20):
            mask = RANDOM.random((RANDOM.integers(1, 9), RANDOM.integers(1, 14))) < share
            assert np.array_equal(mask_of(counts(mask, int(RANDOM.integers(1, 6))), mask.shape), mask)


def test_pairs_read_back_as_the_map() -> None:
    """Pairs of class and length, column after column, with no two pairs of one class beside each other."""
    for _ in range(30):
        classes = RANDOM.integers(-1, 3, (RANDOM.integers(1, 9), RANDOM.integers(1, 14))).astype(np.int16)
        band = int(RANDOM.integers(1, 6))
        pairs = class_runs((classes[:, i : i + band] for i in range(0, classes.shape[1], band)), RunCount())
        assert np.array_equal(np.repeat(pairs[::2], pairs[1::2]).reshape(classes.shape, order="F"), classes)
        assert (np.diff(pairs[::2]) != 0).all()


def test_the_number_of_runs_is_bounded() -> None:
    """Noise is refused while it is read, not when it is all there."""
    read = []

    def bands() -> Any:
        for left in range(0, 1 << 20, 1024):
            read.append(left)
            yield np.indices((1024, 1024)).sum(axis=0) % 2

    with pytest.raises(Reject, match=f"more than {RUNS_MAX} runs"):
        class_runs(bands(), RunCount())
    assert len(read) == 1
