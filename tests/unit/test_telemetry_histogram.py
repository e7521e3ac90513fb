"""The log histogram: percentiles within 3 %, exact cumulative counts, exact sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.telemetry.histogram import BATCH_EDGES, LATENCY_EDGES_US, Histogram

LATENCIES = st.lists(st.integers(0, 10**13), min_size=1, max_size=300)
SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.int64))
    return histogram


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300))
def test_percentiles_are_within_three_percent_of_the_nearest_rank(values: list[int]) -> None:
    """Every percentile is within 3 % of the value at that rank, and the maximum is exact."""
    histogram = histogram_of(values)
    ranked = np.sort(values)
    for share, found in zip(SHARES, histogram.percentiles(*SHARES), strict=True):
        true = int(ranked[max(0, int(np.ceil(share * len(values))) - 1)])
        assert abs(found - true) <= 0.03 * true
    assert histogram.max == max(values)


@given(LATENCIES)
def test_cumulative_counts_at_shown_edges_are_exact(values: list[int]) -> None:
    """The counts Prometheus sees are those of the values themselves, an edge belonging to its own bucket."""
    values = [*values, *LATENCY_EDGES_US, *(edge + 1 for edge in LATENCY_EDGES_US)]
    for edges in (LATENCY_EDGES_US, BATCH_EDGES):
        assert histogram_of(values).cumulative(edges) == [sum(v <= edge for v in values) for edge in edges]


@given(LATENCIES, LATENCIES)
def test_what_was_added_since_a_copy_is_what_was_added(before: list[int], after: list[int]) -> None:
    """Merging an earlier copy of a histogram with the difference since then gives the whole histogram again."""
    histogram = histogram_of(before)
    earlier = histogram.copy()
    histogram.add(np.array(after, np.int64))
    added = histogram.since(earlier)
    assert (added.count, added.sum) == (len(after), sum(after))
    assert added.max == pytest.approx(max(after), rel=0.03) or max(after) > 10**12
    earlier.merge(added)
    assert (earlier.counts == histogram.counts).all()
    assert (earlier.count, earlier.sum, earlier.max) == (histogram.count, histogram.sum, histogram.max)


def test_one_value_many_times_is_the_same_as_an_array_of_it() -> None:
    """A single value that is added with a count fills the histogram as an array of that value does."""
    one = Histogram()
    one.add(1234, 64)
    many = histogram_of([1234] * 64)
    assert (one.counts == many.counts).all()
    assert (one.count, one.sum, one.max) == (many.count, many.sum, many.max)


def test_nothing_added_is_zero_everywhere() -> None:
    """An empty array, or a value with a count of zero, leaves a histogram empty."""
    histogram = Histogram()
    histogram.add(np.array([], np.int64))
    histogram.add(7, 0)
    assert histogram.percentiles(*SHARES) == [0] * len(SHARES)
    assert (histogram.count, histogram.sum, histogram.max) == (0, 0, 0)
    assert set(histogram.cumulative(LATENCY_EDGES_US)) == {0}


def test_a_value_beyond_the_last_edge_is_counted_and_kept_as_maximum() -> None:
    """A latency of years, from a record with a wrong clock, is counted and becomes the maximum."""
    histogram = histogram_of([10**15])
    assert histogram.percentiles(0.5) == [10**15]
    assert histogram.cumulative(LATENCY_EDGES_US)[-1] == 0
