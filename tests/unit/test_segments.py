"""Windows of sound as stretches of time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from encode_support import batch_of, encode, make_encoder
from test_recurrent import rollout_of

from worker.batch import Item
from worker.errors import ConfigError

HOP_S = 0.032


def windowed(count: int, overlap_s: float = 0.0) -> Item:
    starts = np.arange(count) * 512 / 16_000
    return Item({}, count, single=False, marks={"start_s": starts, "end_s": starts + HOP_S + overlap_s})


def segments(scores: list[list[float]], overlap_s: float = 0.0, **settings: Any) -> list[Any]:
    """Per record its segments, or the reason of its rejection."""
    one = make_encoder({"y": ("float", ["N", 1])}, postprocess={"segments": settings})
    batch = batch_of(len(scores), items=[windowed(len(each), overlap_s) for each in scores])
    values = np.array([score for each in scores for score in each], np.float32).reshape(-1, 1)
    outcomes = encode(one, batch, {"y": values})
    return [
        outcomes.rejected[row].reason
        if row in outcomes.rejected
        else json.loads(body or b"")["prediction"]["segments"]
        for row, body in enumerate(outcomes.bodies)
    ]


def spans(found: Any) -> list[tuple[float, float]]:
    return [(round(one["start_s"] / HOP_S, 6), round(one["end_s"] / HOP_S, 6)) for one in found]


def test_windows_above_the_threshold_are_one_segment() -> None:
    """Neighbouring windows with a score of at least the threshold are one segment with their mean score; a record has its own."""
    first, second, third = segments([[0.1, 0.5, 0.75, 0.2, 1.0], [0.0, 0.1], [0.9]], threshold=0.5)
    assert spans(first) == [(1, 3), (4, 5)]
    assert [one["score"] for one in first] == [0.625, 1.0]
    assert second == []
    assert spans(third) == [(0, 1)]


@pytest.mark.parametrize(
    ("join", "least", "expected"),
    [
        (0, 0, [(0, 1), (2, 3), (6, 8)]),
        (1, 0, [(0, 3), (6, 8)]),
        (3, 0, [(0, 8)]),
        (0, 2, [(6, 8)]),
        (1, 3, [(0, 3)]),
    ],
)
def test_near_segments_join_and_short_ones_fall_out(
    join: int, least: int, expected: list[tuple[int, int]]
) -> None:
    """Segments at most join_s apart become one; after that, those shorter than min_s are left out."""
    scores = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    (found,) = segments([scores], join_s=join * HOP_S, min_s=least * HOP_S)
    assert spans(found) == expected


def test_windows_that_overlap_are_one_segment() -> None:
    """A window that begins before the last one ends continues its segment."""
    (found,) = segments([[1.0, 1.0, 0.0, 0.0, 1.0]], overlap_s=HOP_S)
    assert spans(found) == [(0, 3), (4, 6)]


def test_a_score_that_is_no_number_refuses_its_record_alone() -> None:
    """NaN in one window refuses its record as non_finite; the others are answered."""
    assert segments([[1.0], [0.2, float("nan")], [1.0]])[1] == "non_finite"


def test_segments_need_windows_and_one_score(tmp_path: Path) -> None:
    """Without windows, or with several numbers per window, segments are a mistake in the settings."""
    with pytest.raises(ConfigError, match=r"postprocess\.segments: needs one number per window, .* has 3"):
        make_encoder({"y": ("float", ["N", 3])}, postprocess="segments")
    model = models.write(tmp_path, models.running_sum())
    with pytest.raises(
        ConfigError, match=r"postprocess\.segments: goes with windows of sound only; expected .*window_s"
    ):
        rollout_of(
            tmp_path,
            str(model),
            postprocess="segments",
            model={"state": {"before": "after"}},
            input={"topics": ["in"], "format": "oip"},
        )
