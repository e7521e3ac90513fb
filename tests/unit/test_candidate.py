"""A candidate in the loop: who answers which record, what dead letters name, and what a sick one costs (nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import (
    DEAD_LETTERS,
    RESULTS,
    FakeClock,
    FakeKafka,
    FakePool,
    FakeRollout,
    FakeSink,
    FakeSource,
    Message,
    columns_of,
)
from test_engine import Model, process, rejections, servable
from world import Figures, World, make_loop

from worker.batch import Batch, Columns, Partition, Run
from worker.errors import Reject, Rejection, SickModel
from worker.loop.again import answered_by
from worker.loop.slab import Slab
from worker.process.progress import views
from worker.serving.assignment import slot_of
from worker.serving.rollout import Plan, Rollout
from worker.serving.servable import Servable
from worker.serving.trial import Trial

A = Partition("in", 0)
CANARY = Plan("r-1", "canary", 0.3)
KEYS = [b"key-%d" % number for number in range(12)]
THEIRS = {key for key in KEYS if slot_of(b"r-1", key) < 3_000}


class Loop:
    """One replica with a candidate on trial, whose batches come back when the test says so."""

    def __init__(self, plan: Plan = CANARY, ordered: bool = True, **route: Any) -> None:
        self.kafka = FakeKafka(FakeClock(), {"in": 1}, {RESULTS: 1})
        self.pool = FakePool(self.kafka.clock)
        like = FakeRollout(slab_records=64, max_size=64, **route)
        self.rollout = Rollout(like.route, like.stable)  # type: ignore[arg-type]
        self.told: list[str] = []
        self.rollout.on_sick = lambda _, why: self.told.append(why)
        self.candidate: Any = _version(like.stable, "2")
        self.rollout.begin(plan, self.candidate)
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        figures = Figures(ordered=ordered)
        self.world: World = make_loop(self.kafka.clock, source, sink, self.pool, [self.rollout], figures)  # type: ignore[list-item]
        self.conductor = self.world.conductor
        source.subscribe(self.conductor.membership)
        self.kafka.rebalance()

    def send(self, keys: Sequence[bytes | None], value: bytes = b"x") -> None:
        for key in keys:
            self.kafka.append(A, value, key=key)

    def turn(self, turns: int = 30) -> None:
        for _ in range(turns):
            self.conductor.turn()

    def answers(self) -> list[tuple[bytes | None, str]]:
        """Key and version of each result, in order."""
        return [(message.key, version(message)) for message in self.kafka.outputs(RESULTS)]


def _version(stable: Any, number: str) -> Any:
    return replace(stable, model_version=number, health={})


def version(message: Message) -> str:
    return (message.value or b"").decode().partition(" v")[2] or "1"


def expected(keys: Sequence[bytes]) -> list[tuple[bytes, str]]:
    return [(key, "2" if key in THEIRS else "1") for key in keys]


def test_each_key_is_answered_by_its_version_in_order() -> None:
    """One slab is answered by two versions; the results come in the order of the records and name who answered."""
    loop = Loop()
    loop.pool.finishes = True
    loop.send(KEYS + KEYS)
    loop.turn()
    assert 0 < len(THEIRS) < len(KEYS)
    assert loop.answers() == expected(KEYS + KEYS)
    assert loop.kafka.committed[A] == 24


def test_a_dead_letter_names_the_version_of_its_key() -> None:
    """Also where admission refused the record, before any version saw it."""
    loop = Loop(max_bytes=10)
    loop.pool.finishes = True
    loop.send(KEYS, b"bad")
    loop.send(KEYS, b"x" * 11)
    loop.turn()
    found = [
        (letter.key, dict(letter.headers or ())["streaminfer.model"])
        for letter in sorted(loop.kafka.outputs(DEAD_LETTERS), key=lambda letter: letter.offset)
    ]
    assert found == [(key, b"digits@" + number.encode()) for key, number in expected(KEYS + KEYS)]


def test_a_record_that_the_candidate_alone_refuses_counts_against_it() -> None:
    """It is a dead letter that names the candidate; the stable version answers the same record of another key."""
    loop = Loop()
    loop.pool.finishes = True
    loop.send(KEYS, b"fussy")  # refused by version 2
    loop.turn()
    assert {letter.key for letter in loop.kafka.outputs(DEAD_LETTERS)} == THEIRS
    assert {key for key, _ in loop.answers()} == {*KEYS} - THEIRS
    figures = loop.rollout.figures()
    assert (figures.candidate.records, figures.candidate.errors) == (len(THEIRS), len(THEIRS))
    assert (figures.stable.records, figures.stable.errors) == (len(KEYS) - len(THEIRS), 0)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "order none"])
def test_the_batch_of_a_sick_candidate_is_answered_again(ordered: bool) -> None:
    """By the stable version, in order, once; nothing is a dead letter, and the process goes on."""
    loop = Loop(ordered=ordered)
    loop.send(KEYS)
    while not loop.pool.held:
        loop.turn(1)
    loop.candidate.health["sick"] = "it gives zeros"
    loop.pool.finishes = True
    loop.send(KEYS)
    loop.turn()
    assert loop.told == ["it gives zeros"]
    assert loop.rollout.candidate is None
    found = loop.answers() if ordered else sorted(loop.answers(), key=lambda answer: KEYS.index(answer[0]))  # type: ignore[arg-type]
    wanted = KEYS + KEYS if ordered else [key for key in KEYS for _ in range(2)]
    assert found == [(key, "1") for key in wanted]
    assert loop.kafka.outputs(DEAD_LETTERS) == []
    assert loop.kafka.committed[A] == 24
    assert loop.world.budget.held == 0


def test_a_dead_letter_of_a_batch_that_was_answered_again_names_the_one_who_refused_it() -> None:
    """The stable version, not the candidate that was sick."""
    loop = Loop()
    loop.send(KEYS, b"bad")
    while not loop.pool.held:
        loop.turn(1)
    loop.candidate.health["sick"] = "it gives zeros"
    loop.pool.finishes = True
    loop.turn()
    letters = loop.kafka.outputs(DEAD_LETTERS)
    assert {dict(letter.headers or ())["streaminfer.model"] for letter in letters} == {b"digits@1"}
    assert len(letters) == len(KEYS)


def test_a_stable_version_that_turns_sick_ends_the_process_during_a_rollout() -> None:
    """Nothing of its batch is published or committed."""
    loop = Loop()
    loop.send(KEYS)
    while not loop.pool.held:
        loop.turn(1)
    loop.rollout.stable.health["sick"] = "it gives zeros"  # type: ignore[attr-defined]
    loop.pool.finishes = True
    with pytest.raises(SickModel):
        loop.turn()
    assert loop.kafka.outputs(RESULTS) == []


def test_a_batch_that_is_answered_again_is_as_it_was() -> None:
    """Records that were opened are to be opened again; those whose deadline has passed stay expired."""

    class Opening:
        always = False

        def applies(self, headers: Any) -> bool:
            return bool(headers)

    route = replace(FakeRollout().route, opening=Opening())
    columns = columns_of(A, range(3))
    columns.headers = [None, [("content-encoding", b"gzip")], None]
    stable = FakeRollout().stable
    slab = Slab(columns, [], 0, 0.0, None)  # type: ignore[arg-type]
    deadlines: Any = object()
    batch = Batch(
        slab, range(3), columns, route, _version(stable, "2"), 5, 6.0, cost_bytes=7, deadlines=deadlines
    )  # type: ignore[arg-type]
    other = Batch(slab, range(0), Columns(), route, stable, 5, 6.0)  # type: ignore[arg-type]
    slab.batches = [other, batch]
    slab.others = dict.fromkeys(range(3), batch.servable)
    batch.payloads = []
    fresh = answered_by(stable, batch)
    assert (fresh.to_open, fresh.payloads, fresh.deadlines) == ({1}, columns.values, deadlines)
    assert (fresh.cost_bytes, fresh.taken_ns, fresh.taken_ms) == (7, 5, 6.0)
    assert [one is two for one, two in zip(slab.batches, (other, fresh), strict=True)] == [True, True]
    assert slab.others == {}


def test_now_and_then_the_stable_version_runs_as_many_records_as_the_candidate() -> None:
    """Times are compared between runs of one size, so there must be such runs."""
    loop = Loop()
    sizes: list[dict[str, list[int]]] = []
    for _ in range(20):
        loop.send(KEYS)
        while not loop.pool.held:
            loop.turn(1)
        found: dict[str, list[int]] = {}
        for batch in loop.pool.held:
            found.setdefault(batch.servable.model_version, []).append(len(batch))
        sizes.append(found)
        loop.pool.finish()
        loop.turn()
    theirs, ours = len(THEIRS), len(KEYS) - len(THEIRS)
    controlled = [found for found in sizes if found["1"] == [theirs, ours - theirs]]
    assert len(controlled) == 2
    assert all(found == {"1": [ours], "2": [theirs]} for found in sizes if found not in controlled)


# -- hold ---------------------------------------------------------------------------------------------------


def test_a_route_that_is_held_waits_and_loses_nothing() -> None:
    """While it is held nothing is submitted and the topics are paused; afterwards every record is answered."""
    loop = Loop()
    loop.pool.finishes = True
    loop.rollout.hold(True)
    loop.send(KEYS)
    loop.turn(200)
    assert loop.answers() == []
    assert loop.conductor.paused == {"in"}
    assert loop.conductor.joined
    loop.rollout.hold(False)
    loop.turn()
    assert loop.answers() == expected(KEYS)


def test_the_watchdog_waits_for_a_route_that_is_held_but_not_for_ever() -> None:
    """Its partitions say what they wait for; after ten minutes they stand like any other."""
    loop = Loop()
    loop.rollout.hold(True)
    loop.turn(200)
    reach: Any = {A: SimpleNamespace(start=0, position=0, end=5, unreadable=0)}

    def held() -> bool:
        found = views(loop.conductor.window, None, reach, {"in"}, loop.conductor.waits())
        assert found[A].waits == "for a model of a rollout"
        return found[A].held

    assert held()
    loop.kafka.clock.advance(599)
    assert held()
    loop.kafka.clock.advance(2)
    assert not held()


# -- the engine ----------------------------------------------------------------------------------------------


class Refusing:
    """An encoder that finds every answer to be no number."""

    reserved, names_source = frozenset[str](), False

    def predict(self, batch: Batch, run: Run) -> list[Rejection]:
        return [Rejection.of(Reject("output y is not finite", "non_finite"), "postprocess", self)] * len(
            run.rows
        )

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[Rejection]) -> None:
        assert batch.outcomes is not None
        batch.outcomes.rejected.update(zip(run.rows, fragments, strict=True))


def on_trial(model: Model) -> tuple[Servable, Trial]:
    made = replace(servable(model), encoder=Refusing())  # type: ignore[arg-type]
    return made, Trial("r-1", 1.0, servable(Model()), made)


def test_a_candidate_whose_numbers_are_no_numbers_is_checked_at_once() -> None:
    """A stable version is checked once a minute; of a candidate the records would be dead letters until then."""
    model = Model()
    candidate, trial = on_trial(model)
    batch = process(candidate, "1", "2", trial=trial)
    assert (batch.sick, rejections(batch)) == (None, dict.fromkeys((0, 1), ("non_finite", "postprocess")))
    model.healthy = False
    sick = process(candidate, "1", "2", trial=trial).sick
    assert sick is not None
    assert "output y is not finite" in sick
    assert process(candidate, "1", "2").sick is None, "nobody else's model is checked for it"


def test_a_candidate_that_is_too_slow_is_sick() -> None:
    """A batch of it that is past its time-out is not divided to find a guilty record: the stable version answers it."""
    model = Model()
    candidate, trial = on_trial(model)
    model.poison = 2
    trial.overdue()
    sick = process(candidate, "1", "2", trial=trial).sick
    assert sick is not None
    assert sick.startswith("a batch took longer than limits.batch_timeout_s")
    assert model.asked == [[1, 2]]
