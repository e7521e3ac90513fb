"""What a trial of an open-loop load says, from what was sent when and what was read when."""

from __future__ import annotations

import numpy as np
import pytest

from worker.batch import STAGES
from worker.bench.trial import Answers, Sent, Trial, evaluate, place_code, warm_up_s

MS = 1_000_000


def sent(count: int = 100, gap_ms: int = 10, late_ms: int = 0) -> Sent:
    """Records due every ``gap_ms``, in turn to four partitions."""
    due = np.arange(count, dtype=np.int64) * gap_ms * MS + 5_000 * MS
    places = np.array([place_code(i % 4, i // 4) for i in range(count)], np.int64)
    return Sent(due, due + late_ms * MS, places)


def answers(of: Sent, rows: list[int], took_ms: list[float], dead: frozenset[int] = frozenset()) -> Answers:
    """Outputs for these rows, each so long after its record was due."""
    at = np.array(rows, np.int64)
    read = of.due_ns[at] + (np.array(took_ms) * MS).astype(np.int64)
    stages = {stage: np.full(len(rows), 1.0) for stage in (*STAGES, "total")}
    return Answers(of.places[at], read, np.array([row in dead for row in rows], bool), stages)


def test_latency_counts_from_when_a_record_was_due() -> None:
    """A record sent late because the system stalled shows the stall, whatever its own answer took."""
    load = sent(10, gap_ms=1)
    stalled = Sent(load.due_ns, load.due_ns + 700 * MS, load.places)
    trial = evaluate(stalled, answers(stalled, [*range(10)], [701.0] * 10), 1000, 0)
    assert trial.latency_ms["p50"] == pytest.approx(701)


def test_answers_in_any_order_find_their_records() -> None:
    """Percentiles are those of each record's own latency however the outputs are shuffled."""
    load = sent(100)
    order = np.random.default_rng(0).permutation(100).tolist()
    trial = evaluate(load, answers(load, order, [float(row) for row in order]), 100, 0)
    assert trial.latency_ms["max"] == pytest.approx(99)
    assert trial.latency_ms["p50"] == pytest.approx(49.5)
    assert (trial.results, trial.lost, trial.duplicates) == (100, 0, 0)


def test_losses_duplicates_and_dead_letters_are_told_apart() -> None:
    """A missing answer is lost, a second one a duplicate, a dead letter neither and without latency."""
    load = sent(10)
    trial = evaluate(load, answers(load, [0, 1, 1, 2, 3], [5, 6, 900, 7, 800], dead=frozenset({3})), 100, 0)
    assert (trial.results, trial.dead_letters, trial.duplicates, trial.lost) == (3, 1, 1, 6)
    assert trial.latency_ms["max"] == pytest.approx(7)


def test_outputs_of_other_records_do_not_count() -> None:
    """Somebody else's results on the same topic change nothing."""
    load = sent(4)
    ours = answers(load, [0, 1, 2, 3], [5.0] * 4)
    foreign = np.array([place_code(9, 9)], np.int64)
    both = Answers(
        np.concatenate([foreign, ours.places]),
        np.concatenate([ours.read_ns[:1], ours.read_ns]),
        np.concatenate([ours.dead[:1], ours.dead]),
        {stage: np.concatenate([times[:1], times]) for stage, times in ours.stages_ms.items()},
    )
    assert evaluate(load, both, 100, 0) == evaluate(load, ours, 100, 0)


def test_records_the_broker_refused_are_not_lost() -> None:
    """A record without a place was never the workers' to answer, and still spoils the trial."""
    load = sent(4)
    refused = Sent(load.due_ns, load.sent_ns, np.where(np.arange(4) == 2, -1, load.places))
    trial = evaluate(refused, answers(load, [0, 1, 3], [1.0] * 3), 100, 0)
    assert (trial.refused, trial.lost) == (1, 0)
    assert not trial.holds(1000)


def test_the_warm_up_counts_for_losses_only() -> None:
    """Slow first answers leave the percentiles alone, a lost first record does not go unseen."""
    load = sent(100)
    trial = evaluate(load, answers(load, [*range(1, 100)], [500.0] * 9 + [5.0] * 90), 100, warm_up_s(1.0))
    assert trial.latency_ms["max"] == pytest.approx(5)
    assert trial.lost == 1


@pytest.mark.parametrize(("load", "wanted"), [(sent(late_ms=6), 100), (sent(gap_ms=11), 100)])
def test_a_late_generator_is_no_verdict_on_the_workers(load: Sent, wanted: float) -> None:
    """A load that was slower than asked for holds nothing, however quick the answers; one that was late says that it was."""
    trial = evaluate(load, answers(load, [*range(100)], [1.0] * 100), wanted, 0)
    assert trial.generator_limited
    assert trial.holds(1000) == trial.reached == (trial.late_p99_ms == pytest.approx(6))


def test_a_trial_without_answers_has_no_percentiles() -> None:
    """Nothing came: everything is lost and no number is made up."""
    load = sent(5)
    trial = evaluate(load, answers(load, [], []), 100, 0)
    assert (trial.results, trial.lost, trial.latency_ms, trial.stages_ms) == (0, 5, {}, {})
    assert not trial.holds(1000)


def test_stages_are_left_out_where_results_carry_none() -> None:
    """A binary result has no stages; the JSON document then has none either."""
    load = sent(5)
    bare = answers(load, [*range(5)], [1.0] * 5)
    silent = Answers(
        bare.places, bare.read_ns, bare.dead, {name: np.full(5, np.nan) for name in bare.stages_ms}
    )
    trial: Trial = evaluate(load, silent, 100, 0)
    assert trial.document()["stages_ms"] == {}
    assert trial.results == 5
