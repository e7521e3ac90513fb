"""Drift, without a model: bins and the index as their formulas say, silence without change, and what is told of a change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from structlog.testing import CapturingLogger

from worker.batch import Array
from worker.drift.bins import NumberBins, TextBins, compared
from worker.drift.measured import Gathered, Measured
from worker.drift.profile import Profile, features_of
from worker.drift.watch import CPU_SHARE, LEAST_RECORDS, RATE, THRESHOLD, Watch
from worker.errors import ConfigError
from worker.telemetry.drift import DriftReports
from worker.telemetry.meters import Meters
from worker.telemetry.topic import pipeline_fields

SECOND_NS = 1_000_000_000


class Clocks:
    """Two clocks that a test moves: monotonic, and processor time."""

    def __init__(self) -> None:
        self.now_ns = self.cpu_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def cpu(self) -> int:
        return self.cpu_ns


def measured(numbers: Mapping[str, Array], texts: Mapping[str, list[str | None]] | None = None) -> Measured:
    count = len(next(iter(numbers.values())))
    columns = [((name,), np.asarray(values, np.float64)[:, None]) for name, values in numbers.items()]
    return Measured(count, columns, [*(texts or {}).items()])


def profile_of(figures: Measured) -> Profile:
    gathered = Gathered()
    gathered.add(figures)
    return Profile("p", "m", "1", "test", "now", gathered.records, {"x": "1 numbers"}, features_of(gathered))


def people(rng: np.random.Generator, count: int, shift: float = 0.0) -> Measured:
    """Records of one population in which everything odd occurs: long tails, ties, one value, few values, gaps, labels."""
    gaps = np.where(rng.random(count) < 0.1, np.nan, rng.normal(size=count))
    labels = rng.choice(["cat", "dog", "cow"], count, p=[0.7, 0.29, 0.01]).tolist()
    return measured(
        {
            "plain": rng.normal(shift, 1, count),
            "tail": rng.pareto(1.5, count),
            "ties": np.maximum(rng.normal(size=count), 0),
            "constant": np.full(count, 7.0),
            "few": rng.integers(0, 3, count).astype(float),
            "gaps": gaps,
        },
        {"label": labels},
    )


def by_hand(profile: list[int], now: list[int]) -> float:
    """The population stability index as the books write it, with half a value more in each bin."""
    total = 0.0
    for before, after in zip(profile, now, strict=True):
        p = (before + 0.5) / (sum(profile) + 0.5 * len(profile))
        q = (after + 0.5) / (sum(now) + 0.5 * len(now))
        total += (q - p) * math.log(q / p)
    return total


def test_the_index_is_the_formula() -> None:
    """The index of each of several features is the sum of (q - p) ln(q / p); the corrected one lacks (B - 1)(1/m + 1/n)."""
    first, second = ([50, 30, 20, 0], [10, 40, 45, 5]), ([400, 600], [90, 10])
    found = compared(np.array(first[0] + second[0]), np.array(first[1] + second[1]), np.array([0, 4]))
    assert found.psi == pytest.approx([by_hand(*first), by_hand(*second)])
    bias = [3 * (1 / 100 + 1 / 100), 1 * (1 / 1000 + 1 / 100)]
    assert found.corrected == pytest.approx([by_hand(*first) - bias[0], by_hand(*second) - bias[1]])
    assert found.real.tolist() == [False, True]  # 0.6 of 100 records may be chance, 3.6 of 100 is none


def test_chance_is_taken_off() -> None:
    """Of two small samples of one population the plain index is well above 0 on average, and the corrected one is not."""
    rng = np.random.default_rng(1)
    plain, corrected = [], []
    for _ in range(400):
        profile, now = (np.bincount(rng.integers(0, 10, 120), minlength=10) for _ in range(2))
        found = compared(profile, now, np.array([0]))
        plain.append(found.psi[0])
        corrected.append(found.psi[0] - 9 * 2 / 120)
        assert not found.real[0]
    assert np.mean(plain) > 0.12
    assert abs(np.mean(corrected)) < 0.02


def test_bins_of_numbers() -> None:
    """Quantiles are the edges; what lies outside has bins of its own, ties share one, and NaN is in none."""
    values = np.concatenate([np.arange(1000.0), np.full(1000, 500.0)])
    bins = NumberBins.of(values)
    assert bins is not None
    counts = np.bincount(bins.places(values), minlength=bins.size)
    assert counts[0] == counts[-1] == 0
    assert counts.sum() == 2000
    assert 500.0 in bins.edges
    assert bins.places(np.array([-1e9, np.nan, 999.0, 1e9, np.inf, -np.inf])).tolist() == [
        0,
        bins.size - 2,
        bins.size - 1,
        bins.size - 1,
        0,
    ]


def test_few_numbers_have_a_bin_each() -> None:
    """A feature of few values is counted by value, also a constant one; another value is no neighbour of it."""
    few = NumberBins.of(np.array([0.0, 1.0, 1.0, 5.0]))
    one = NumberBins.of(np.array([7.0, 7.0]))
    assert few is not None
    assert one is not None
    assert few.places(np.array([0.0, 1.0, 5.0, 9.0])).tolist() == [1, 2, 3, 4]
    assert one.places(np.array([6.5, 7.0, 8.0])).tolist() == [0, 1, 2]
    assert NumberBins.of(np.array([np.nan, np.inf])) is None


def test_bins_of_texts() -> None:
    """The most frequent texts have bins of their own, all others share one; texts that are all different have none."""
    bins = TextBins.of(["a"] * 5 + ["b"] * 3 + [None])
    assert bins is not None
    assert bins.values == ("a", "b")
    assert bins.places(["b", None, "c", "a"]).tolist() == [1, 2, 0]
    assert TextBins.of([f"text {number}" for number in range(500)]) is None


def test_a_million_records_without_change_are_silent() -> None:
    """Of a million records of the profile's population no feature ever drifts, and none comes near the threshold."""
    rng, clocks = np.random.default_rng(7), Clocks()
    watch = Watch(profile_of(people(rng, 5000)), 60.0, clocks, clocks.cpu)
    highest = 0.0
    for _ in range(200):
        watch.add(people(rng, 5000), 0)
        clocks.now_ns += 5 * SECOND_NS
        news = watch.look()
        assert not news.drifted
        highest = max(highest, *news.psi.values())
    assert 0 < highest < THRESHOLD / 2


def test_few_records_a_window_are_silent() -> None:
    """A window that holds just enough records to be compared does not alarm by chance."""
    rng, clocks = np.random.default_rng(3), Clocks()
    watch = Watch(profile_of(people(rng, 150)), 60.0, clocks, clocks.cpu)
    for _ in range(600):
        watch.add(people(rng, LEAST_RECORDS // 5), 0)
        clocks.now_ns += 10 * SECOND_NS
        assert not watch.look().drifted


def test_a_shift_is_told_once_and_its_end_once() -> None:
    """A feature that shifts is told when it does, by name and alone; it is told again only when it is back."""
    rng, clocks = np.random.default_rng(5), Clocks()
    watch = Watch(profile_of(people(rng, 3000)), 60.0, clocks, clocks.cpu)
    meters, log = Meters({"p": None}), CapturingLogger()
    reports = DriftReports({"p": watch}, meters, log)

    def live(shift: float, seconds: int) -> None:
        for _ in range(seconds):
            watch.add(people(rng, 20, shift), 0)
            clocks.now_ns += SECOND_NS
            reports.look()

    live(0.0, 90)
    assert log.calls == []
    live(1.0, 90)
    (first,) = log.calls
    assert (first.method_name, first.args) == ("warning", ("records differ from the profile",))
    assert first.kwargs["pipeline"] == "p"
    assert [*first.kwargs["psi"]] == ["plain"]
    shown = pipeline_fields(meters.snapshot().pipelines["p"])["drift"]
    assert shown["plain"] > 0.5
    assert max(value for name, value in shown.items() if name != "plain") < THRESHOLD / 2
    live(0.0, 90)
    assert [call.args[0] for call in log.calls[1:]] == ["records are like the profile again"]
    assert log.calls[1].kwargs["features"] == ["plain"]


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"label": ["dog"] * 400}, "label"),
        ({"label": ["bird"] * 400}, "label"),
        ({"label": [None] * 400}, "label"),
        ({"constant": np.full(400, 8.0)}, "constant"),
        ({"few": np.full(400, 2.0)}, "few"),
        ({"gaps": np.full(400, np.nan)}, "gaps"),
        ({"tail": np.full(400, 1e6)}, "tail"),
    ],
)
def test_each_kind_of_change_is_found(change: dict[str, Any], feature: str) -> None:
    """Other shares, a new class, gaps, a constant that moves, values beyond all that were seen: each is drift of its feature."""
    rng, clocks = np.random.default_rng(11), Clocks()
    watch = Watch(profile_of(people(rng, 3000)), 60.0, clocks, clocks.cpu)
    figures = people(rng, 400)
    figures.numbers = [
        (names, np.asarray(change[names[0]])[:, None] if names[0] in change else values)
        for names, values in figures.numbers
    ]
    figures.texts = [(name, change.get(name, texts)) for name, texts in figures.texts]
    watch.add(figures, 0)
    clocks.now_ns += 11 * SECOND_NS
    assert [*watch.look().drifted] == [feature]


def test_a_feature_that_disappears_has_drifted() -> None:
    """Records that no longer have a figure at all count as missing it."""
    rng, clocks = np.random.default_rng(2), Clocks()
    watch = Watch(profile_of(people(rng, 3000)), 60.0, clocks, clocks.cpu)
    figures = people(rng, 400)
    figures.numbers = [(names, values) for names, values in figures.numbers if names != ("plain",)]
    watch.add(figures, 0)
    clocks.now_ns += 11 * SECOND_NS
    assert [*watch.look().drifted] == ["plain"]


def test_measuring_keeps_to_its_share() -> None:
    """However many batches come, the rows that are chosen cost at most their share of the processor time, and a second's rate."""
    clocks = Clocks()
    watch = Watch(profile_of(people(np.random.default_rng(1), 200)), 600.0, clocks, clocks.cpu)
    row_ns, spent_ns = 2_000_000, 0

    def run(seconds: int) -> int:
        """A process that is always busy, and answers a batch of 64 each 10 ms; returns how many rows it measured."""
        nonlocal spent_ns
        rows = 0
        for _ in range(100 * seconds):
            clocks.now_ns += SECOND_NS // 100
            clocks.cpu_ns += SECOND_NS // 100
            chosen = watch.chosen(64, 64)
            assert sorted({*chosen}) == [*chosen]
            assert all(0 <= row < 64 for row in chosen)
            if chosen:
                rows += len(chosen)
                spent_ns += len(chosen) * row_ns
                watch.add(measured({"plain": np.zeros(len(chosen))}), len(chosen) * row_ns)
        return rows

    run(30)  # spends what it has at the beginning
    spent_ns = 0
    assert run(300) > 100
    assert spent_ns < 1.1 * CPU_SHARE * 300 * SECOND_NS
    row_ns = 1
    assert run(60) <= 1.1 * RATE * 60


def test_rows_are_chosen_evenly() -> None:
    """Each row of a batch has the same chance to be measured."""
    clocks = Clocks()
    watch = Watch(profile_of(people(np.random.default_rng(1), 200)), 600.0, clocks, clocks.cpu)
    counts = np.zeros(10)
    for _ in range(3000):
        clocks.now_ns += SECOND_NS
        clocks.cpu_ns += SECOND_NS
        counts[[*watch.chosen(10, 3)]] += 1
    assert counts.min() > 0.8 * counts.mean()


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The file keeps edges, counts and names to the last bit, and says what it is."""
    profile = profile_of(people(np.random.default_rng(1), 500))
    profile.write(tmp_path / "p.json")
    again = Profile.read(tmp_path / "p.json")
    assert (again.pipeline, again.records, again.inputs) == (profile.pipeline, 500, profile.inputs)
    assert [*again.features] == [*profile.features]
    for name, feature in profile.features.items():
        found = again.features[name]
        assert found.counts.tolist() == feature.counts.tolist()
        assert feature.counts.sum() == 500
        if isinstance(feature.bins, NumberBins):
            assert isinstance(found.bins, NumberBins)
            assert found.bins.edges.tolist() == feature.bins.edges.tolist()
        else:
            assert isinstance(found.bins, TextBins)
            assert found.bins.values == feature.bins.values
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def damaged(document: dict[str, Any]) -> None:
    document["features"]["plain"]["counts"].pop()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda document: document.pop("records"), "is damaged"),
        (damaged, "is damaged"),
        (lambda document: document["features"]["plain"]["edges"].reverse(), "is damaged"),
        (lambda document: document.update(schema=2), "has schema 2, expected 1"),
        (lambda document: document.update(type="other"), "is no profile"),
        (lambda document: document.update(features=[]), "is damaged"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, spoil: Any, says: str) -> None:
    """A file that is no whole profile of this version is refused in one sentence that names it."""
    path = tmp_path / "p.json"
    profile_of(people(np.random.default_rng(1), 500)).write(path)
    document = orjson.loads(path.read_bytes())
    spoil(document)
    path.write_bytes(orjson.dumps(document))
    with pytest.raises(ConfigError, match="expected a file that streaminfer profile has written") as raised:
        Profile.read(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_profile_of_something_else_is_refused() -> None:
    """A profile of another pipeline, another model, or of inputs that are measured otherwise says which differs."""
    profile = profile_of(people(np.random.default_rng(1), 500))
    profile.check("p", "m", {"x": "1 numbers"})
    for wanted, says in (
        (("q", "m", {"x": "1 numbers"}), "of the pipeline p, expected one of q"),
        (("p", "n", {"x": "1 numbers"}), "of the model m, expected one of n"),
        (
            ("p", "m", {"x": "2 numbers"}),
            "has 1 numbers of the model's input x, and the pipeline gives 2 numbers",
        ),
        (("p", "m", {}), "the pipeline gives nothing"),
    ):
        with pytest.raises(ConfigError, match=says):
            profile.check(*wanted)
