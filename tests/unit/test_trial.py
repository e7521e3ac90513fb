"""The servables of a route: which of them answers which records, and what is counted. No loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeRollout, columns_of

from worker.batch import Batch, Columns, Outcomes, Partition, Run
from worker.errors import Reject, Rejection, SickModel
from worker.serving.assignment import blake2_key, slot_of, slots_below
from worker.serving.rollout import Arm, Figures, Plan, Rollout
from worker.serving.trial import Trial

A = Partition("in", 0)
CANARY = Plan("r-1", "canary", 0.1)


def real(retired: list[str] | None = None, sick: list[str] | None = None) -> Rollout:
    """A rollout of stand-in servables that tells what it retires and what is sick."""
    stand_in = FakeRollout()
    rollout = Rollout(stand_in.route, stand_in.stable)  # type: ignore[arg-type]
    rollout.on_retire = lambda _, servable: (retired if retired is not None else []).append(servable.label)
    rollout.on_sick = lambda _, why: (sick if sick is not None else []).append(why)
    return rollout


def other(rollout: Rollout, version: str = "2") -> Any:
    return replace(rollout.stable, model_version=version)  # type: ignore[type-var]


def test_with_one_servable_a_sick_model_ends_the_process() -> None:
    """No other servable can answer, so the process ends with exit code 7 and one sentence that names the model."""
    rollout = real()
    with pytest.raises(
        SickModel, match=r"^model digits is sick: it gives zeros; nothing of this batch"
    ) as caught:
        rollout.sick(rollout.choose(), "it gives zeros")
    assert caught.value.exit_code == 7


def test_a_rollout_begins_and_ends_between_two_slabs() -> None:
    """What is asked for on any thread counts from the next slab on, in the order in which it was asked for."""
    retired: list[str] = []
    rollout = real(retired)
    rollout.begin(CANARY, other(rollout))
    assert rollout.waiting
    assert rollout.candidate is None
    rollout.choose()
    assert not rollout.waiting
    assert rollout.candidate is not None
    assert (rollout.candidate.label, rollout.plan, retired) == ("digits@2", CANARY, [])
    rollout.end()
    rollout.begin(Plan("r-2", "canary", 0.2), other(rollout, "3"))
    rollout.grow(0.5)
    rollout.choose()
    assert rollout.candidate is not None
    assert (rollout.candidate.label, rollout.plan, retired) == (
        "digits@3",
        Plan("r-2", "canary", 0.5),
        ["digits@2"],
    )
    assert rollout.stable.label == "digits@1"


def test_a_promoted_candidate_is_the_stable_one() -> None:
    """A promotion is a swap: the loop hears of it, and the servable that answered before is retired."""
    retired: list[str] = []
    swaps: list[tuple[str, str]] = []
    rollout = real(retired)
    rollout.on_swap = lambda now, before: swaps.append((now.stable.label, before.label))
    rollout.begin(CANARY, other(rollout))
    rollout.promote()
    assert rollout.choose().label == "digits@2"
    assert (rollout.candidate, rollout.plan, rollout.trial) == (None, None, None)
    assert (swaps, retired) == ([("digits@2", "digits@1")], ["digits@1"])


def test_without_a_rollout_its_end_and_its_promotion_mean_nothing() -> None:
    """A decision that comes late, or twice, changes nothing."""
    rollout = real()
    rollout.promote()
    rollout.end()
    rollout.grow(0.5)
    assert rollout.choose().label == "digits@1"


def test_a_sick_candidate_is_ended_and_does_not_end_the_process() -> None:
    """The stable servable answers everything again, and whoever decides hears of it once."""
    retired: list[str] = []
    sick: list[str] = []
    rollout = real(retired, sick)
    rollout.begin(CANARY, other(rollout))
    rollout.choose()
    candidate = rollout.candidate
    assert candidate is not None
    rollout.sick(candidate, "it gives zeros")
    rollout.sick(candidate, "it gives zeros")  # a second batch of it comes back
    assert (sick, retired) == (["it gives zeros"], ["digits@2"])
    assert (rollout.candidate, rollout.choose().label) == (None, "digits@1")


def test_a_stable_servable_that_turns_sick_ends_the_process_in_a_rollout_too() -> None:
    """A candidate is no substitute: nobody has decided that it is right."""
    rollout = real()
    rollout.begin(CANARY, other(rollout))
    with pytest.raises(SickModel):
        rollout.sick(rollout.choose(), "it gives zeros")


def test_closing_closes_every_servable_that_is_ours() -> None:
    """The stable one, the candidate, and those that wait to be either."""
    closed: list[str] = []
    rollout = real()

    class Closing:
        def __init__(self, label: str) -> None:
            self.label = label

        def close(self) -> None:
            closed.append(self.label)

    made: list[Any] = [Closing(label) for label in "abc"]
    rollout.offer(made[0])
    rollout.begin(CANARY, made[1])
    rollout.choose()
    rollout.offer(made[2])
    rollout.close()
    assert sorted(closed) == ["a", "b", "c"]


# -- which records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rollout_id", "key", "slot"),
    [
        ("digits-7", b"camera-3", 2862),
        ("digits-7", b"", 7052),
        ("digits-8", b"camera-3", 4505),
        ("x" * 100, b"camera-3", 560),
    ],
)
def test_the_slot_of_a_key_can_be_computed_by_anybody(rollout_id: str, key: bytes, slot: int) -> None:
    """BLAKE2b of 8 bytes over the key, keyed with the rollout's id (hashed where it is too long), big-endian, modulo 10,000.

    The numbers are those of OpenSSL: openssl mac -macopt hexkey:... -macopt size:8 BLAKE2BMAC.
    """
    assert slot_of(blake2_key(rollout_id), key) == slot


def trial(share: float, rollout_id: str = "r-1", shadow: bool = False) -> Trial:
    stable: Any = FakeRollout().stable
    made = Trial(rollout_id, share, stable, replace(stable, model_version="2"))
    made.shadow = Any if shadow else None  # type: ignore[assignment]
    return made


def keyed(*keys: bytes | None) -> Columns:
    columns = columns_of(A, range(len(keys)))
    columns.keys = list(keys)
    return columns


def test_a_share_that_grows_never_sends_a_key_back() -> None:
    """The keys of a smaller share are among those of every larger one; at 1 the candidate has them all."""
    columns = keyed(*(b"key-%d" % number for number in range(2_000)))
    growing, before = trial(0.0), set[int]()
    for share in (0.0, 0.01, 0.1, 0.29, 0.5, 1.0):
        growing.grow(share)
        rows = set(growing.rows(columns))
        assert before <= rows
        assert abs(len(rows) / 2_000 - share) < 0.04
        before = rows
    assert before == set(range(2_000))


def test_a_record_without_a_key_counts_by_its_place() -> None:
    """Its partition and offset take the place of the key, so every replica decides alike when it is read again."""
    columns = keyed(*[None] * 200)
    expected = [row for row in range(200) if slot_of(b"r-1", b"0/%d" % row) < 3_000]
    assert trial(0.3).rows(columns) == expected
    assert 30 < len(expected) < 90


def test_a_shadow_answers_nobody() -> None:
    """Whatever its share is."""
    assert trial(1.0, shadow=True).rows(keyed(b"a", b"b")) == []


@pytest.mark.parametrize(("share", "slots"), [(0.29, 2_900), (0.1, 1_000), (0.0001, 1), (1.0, 10_000)])
def test_a_share_is_whole_slots(share: float, slots: int) -> None:
    """0.29 x 10,000 is not quite 2,900 in binary."""
    assert slots_below(share) == slots


# -- figures -----------------------------------------------------------------------------------------------


def back(servable: Any, rows: int, run_us: int, rejected: int = 0) -> Batch:
    """A batch that is back: one run of all its rows."""
    batch = Batch(None, range(rows), columns_of(A, range(rows)), FakeRollout().route, servable, 0, 0.0)
    batch.outcomes = Outcomes.empty(rows)
    batch.outcomes.rejected = {
        row: Rejection.of(Reject("bad record"), "decode", batch) for row in range(rejected)
    }
    batch.runs = [Run(range(rows), {}, started_ns=1_000, ended_ns=1_000 + run_us * 1_000)]
    return batch


def test_figures_count_both_sides() -> None:
    """Records and errors of both sides since the rollout began; nothing of a servable that is neither."""
    rollout = real()
    rollout.begin(CANARY, other(rollout))
    rollout.choose()
    running = rollout.trial
    assert running is not None
    running.returned(back(rollout.stable, 90, 900, rejected=2))
    running.returned(back(rollout.candidate, 10, 100, rejected=1))
    running.returned(back(other(rollout, "0"), 10, 100, rejected=1))
    assert rollout.figures() == Figures(Arm(90, 2), Arm(10, 1))


def test_time_is_compared_between_runs_of_one_size() -> None:
    """A record of a small run takes longer than one of a large run; the canary's runs are the smaller ones."""
    running = trial(0.1)
    running.returned(back(running.stable, 512, 512))
    running.returned(back(running.candidate, 8, 160))
    assert running.tally.figures.stable.infer_us == running.tally.figures.candidate.infer_us == 0
    running.returned(back(running.stable, 8, 80))
    running.returned(back(running.candidate, 1, 1_000_000))
    figures = running.tally.figures
    assert (figures.stable.infer_us, figures.candidate.infer_us) == (10.0, 20.0)


def test_answers_from_memory_say_nothing_of_speed() -> None:
    """Runs that did not take place are left out of the times of both sides; their records count."""
    running = trial(0.1)
    running.returned(back(running.stable, 8, 80))
    known = back(running.candidate, 8, 160)
    known.runs.append(Run(range(8), {}, fragments=[b"{}"] * 8))
    running.returned(known)
    figures = running.tally.figures
    assert (figures.candidate.infer_us, figures.candidate.records) == (20.0, 8)


def test_figures_begin_anew_with_each_rollout() -> None:
    """From the moment in which a rollout is asked for, nobody sees the figures of the one before as its own."""
    rollout = real()
    rollout.begin(CANARY, other(rollout))
    rollout.choose()
    assert rollout.trial is not None
    rollout.trial.returned(back(rollout.stable, 5, 5))
    rollout.end()
    rollout.choose()
    assert rollout.figures().stable.records == 5
    rollout.begin(Plan("r-2", "canary", 0.1), other(rollout, "3"))
    assert rollout.figures() == Figures()
