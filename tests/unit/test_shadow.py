"""A shadow: it answers what the stable version answers, nobody sees it, and it holds nothing up. And what agreement is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, FakeKafka, FakeRollout, FakeSink, FakeSource, columns_of
from test_loader import Place, shifted
from world import Figures, make_loop

from worker.batch import Batch, Outcomes, Partition
from worker.errors import Reject, Rejection
from worker.kafka.shadow_results import ShadowResults
from worker.loop.pool import InlinePool, Mailbox
from worker.serving import shadow as shadow_module
from worker.serving.agreement import agree
from worker.serving.engine import Engine
from worker.serving.load import load_servable
from worker.serving.rollout import Plan, Rollout
from worker.serving.versions import at

A = Partition("in", 0)


class Loop:
    """A replica that answers JSON by a real model, with another version of it as a shadow."""

    def __init__(
        self, folder: Path, by: float = 2.0, publish: Callable[[Batch], None] | None = None, **pipeline: Any
    ) -> None:
        self.place = Place(folder, **pipeline)
        self.place.put("2", shifted(by))
        self.rollout: Rollout = self.place.rollout
        settings = at(self.place.settings, self.rollout.route.name, self._version("2"))
        stable = self.rollout.stable
        self.candidate = load_servable(settings, self.rollout.route, 0.0, like=stable)
        self.rollout.publish = publish
        self.rollout.begin(Plan("r-1", "shadow", 0.0), self.candidate)
        self.kafka = FakeKafka(FakeClock(), {"in": 1})
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        pool: Any = InlinePool(Engine(), Mailbox())
        rollouts: Any = [self.rollout]
        self.world = make_loop(self.kafka.clock, source, sink, pool, rollouts, Figures())
        source.subscribe(self.world.conductor.membership)
        self.kafka.rebalance()

    def _version(self, name: str) -> Any:
        from worker.model.repository import Repository

        return Repository(self.place.folder.parent, "digits").find(name)

    def send(self, records: int) -> None:
        for number in range(records):
            self.kafka.append(A, json.dumps({"features": [number, 2, 3, 4]}).encode())

    def turn_until(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not there():
            assert time.monotonic() < deadline, self.rollout.figures()
            self.world.conductor.turn()
            time.sleep(0.001)

    def answers(self) -> list[Any]:
        return [json.loads(message.value or b"") for message in self.kafka.landed if message.topic == "out"]


@pytest.fixture(autouse=True)
def compares_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "COMPARE_SHARE", 1e9)


def test_a_shadow_is_compared_and_nobody_sees_it(tmp_path: Path) -> None:
    """The results are the stable version's alone; the figures say what both did and how often they disagree."""
    loop = Loop(tmp_path)
    loop.send(20)
    loop.turn_until(lambda: len(loop.answers()) == 20 and loop.rollout.figures().compared == 20)
    assert {answer["model"]["version"] for answer in loop.answers()} == {"1"}
    figures = loop.rollout.figures()
    assert (figures.candidate.records, figures.candidate.errors, figures.disagreed) == (20, 0, 20)
    assert figures.stable.records == 20
    loop.turn_until(lambda: loop.world.budget.held == 0)


def test_a_shadow_beside_a_cache_is_compared_too(tmp_path: Path) -> None:
    """Records that the stable version answers from memory are compared with the candidate's answers like all others; a
    batch that was not decoded is no fault of the candidate, and neither version answers from what the other one said."""
    loop = Loop(tmp_path, by=1.001, cache={})
    for repeat in range(4):
        loop.send(10)
        loop.turn_until(lambda: loop.rollout.figures().compared == 10 * (repeat + 1))  # noqa: B023
    assert loop.rollout.candidate is loop.candidate, "it is still on trial"
    assert loop.rollout.figures().disagreed == 0
    cached = ["cached" in answer for answer in loop.answers()]
    assert (cached[:10], all(cached[10:])) == ([False] * 10, True)
    assert {answer["model"]["version"] for answer in loop.answers()} == {"1"}
    assert [answer["prediction"]["outputs"]["y"][0] for answer in loop.answers()][10:20] == [
        float(number + 1) for number in range(10)
    ]


def test_versions_that_say_the_same_agree(tmp_path: Path) -> None:
    """A difference within the tolerance is none."""
    loop = Loop(tmp_path, by=1.001)
    loop.send(20)
    loop.turn_until(lambda: loop.rollout.figures().compared == 20)
    assert loop.rollout.figures().disagreed == 0


def test_results_of_a_shadow_go_to_whoever_wants_them(tmp_path: Path) -> None:
    """Whole results, which name the candidate."""
    got: list[Any] = []

    def publish(batch: Batch) -> None:
        assert batch.outcomes is not None
        got.extend(json.loads(body or b"") for body in batch.outcomes.bodies)

    loop = Loop(tmp_path, publish=publish)
    loop.send(3)
    loop.turn_until(lambda: len(got) == 3)
    assert [result["model"]["version"] for result in got] == ["2"] * 3
    assert [result["prediction"]["outputs"]["y"][0] for result in got] == [2.0, 3.0, 4.0]
    assert [result["source"]["offset"] for result in got] == [0, 1, 2]


def test_what_was_decoded_is_not_decoded_again(tmp_path: Path) -> None:
    """Both versions read records alike, so the shadow gets the arrays; where they may not, it reads for itself."""
    loop = Loop(tmp_path)
    assert loop.candidate.reads_like(loop.rollout.stable)
    assert not loop.candidate.reads_like(replace(loop.rollout.stable, reading=None))
    assert not replace(loop.candidate, reading=("another",)).reads_like(loop.rollout.stable)


def test_a_shadow_that_reads_for_itself_answers_as_well(tmp_path: Path) -> None:
    """A version may come with a tokenizer of its own."""
    loop = Loop(tmp_path)
    loop.rollout.begin(
        Plan("r-2", "shadow", 0.0), replace(loop.candidate, reading=("a tokenizer of its own",))
    )
    loop.send(5)
    loop.turn_until(lambda: loop.rollout.figures().compared == 5)
    assert loop.rollout.figures().candidate.errors == 0


def test_a_busy_shadow_holds_nothing_up(tmp_path: Path) -> None:
    """Records are answered and committed while it hangs; what it does not get is counted; the budget stays bounded."""
    loop = Loop(tmp_path)
    goes_on = threading.Event()
    run = type(loop.candidate.model).run

    def slow(model: Any, feeds: Any) -> Any:
        if model is loop.candidate.model:
            goes_on.wait(20)
        return run(model, feeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loop.candidate.model), "run", slow)
        for _ in range(10):
            before = len(loop.answers())
            loop.send(4)
            loop.turn_until(lambda before=before: len(loop.answers()) == before + 4)  # type: ignore[misc]
        loop.turn_until(lambda: loop.kafka.committed.get(A) == 40)
        trial = loop.rollout.trial
        assert trial is not None
        assert trial.tally.passed_by > 0
        assert loop.rollout.figures().candidate.records == 0
        goes_on.set()
        loop.turn_until(lambda: loop.world.budget.held == 0)
    assert loop.rollout.figures().candidate.records == 40 - trial.tally.passed_by


def test_a_sick_shadow_is_ended(tmp_path: Path) -> None:
    """Whoever decides hears of it; the stable version goes on, and no record is a dead letter."""
    loop = Loop(tmp_path)
    told: list[str] = []
    loop.rollout.on_sick = lambda _, why: told.append(why)
    with pytest.MonkeyPatch.context() as patch:
        run = type(loop.candidate.model).run

        def broken(model: Any, feeds: Any) -> Any:
            if model is loop.candidate.model:
                raise RuntimeError("broken")
            return run(model, feeds)

        patch.setattr(type(loop.candidate.model), "run", broken)
        patch.setattr(type(loop.candidate.model), "sickness", lambda _model: "it gives zeros")
        loop.send(8)
        loop.turn_until(lambda: bool(told))
    assert "it gives zeros" in told[0]
    assert loop.rollout.candidate is None
    loop.turn_until(lambda: len(loop.answers()) == 8 and loop.world.budget.held == 0)
    assert {message.topic for message in loop.kafka.landed} == {"out"}


def test_a_shadow_can_be_promoted(tmp_path: Path) -> None:
    """From the next slab on its answers are the ones that are published."""
    loop = Loop(tmp_path)
    loop.send(4)
    loop.turn_until(lambda: loop.rollout.figures().compared == 4)
    loop.rollout.promote()
    loop.send(4)
    loop.turn_until(lambda: len(loop.answers()) == 8)
    assert [answer["model"]["version"] for answer in loop.answers()] == ["1"] * 4 + ["2"] * 4


def test_results_of_a_shadow_are_sent_like_others_and_never_wait() -> None:
    """Key, headers and body; not those of refused records. Where the queue is full they are left out and counted."""

    class Producer:
        def __init__(self) -> None:
            self.sent: list[tuple[str, bytes | None, dict[str, Any]]] = []

        def produce(self, topic: str, value: bytes | None = None, **more: Any) -> None:
            if len(self.sent) == 2:
                raise BufferError("Local: Queue full")
            self.sent.append((topic, value, more))

        def poll(self, timeout: float) -> int:
            return 0

        def flush(self, timeout: float) -> int:
            return 0

    columns = columns_of(A, range(5))
    columns.keys = [b"a", None, b"c", b"d", b"e"]
    route = FakeRollout(output_partition="input").route
    batch = Batch(None, range(5), columns, route, FakeRollout().stable, 0, 0.0)
    batch.outcomes = Outcomes(
        [b"0", b"1", b"2", b"3", b"4"], [None, [("traceparent", b"t")], None, None, None]
    )
    batch.outcomes.rejected[2] = Rejection.of(Reject("bad record"), "infer", batch)
    producer = Producer()
    results = ShadowResults(producer)
    results.publish("trial", batch)
    assert producer.sent == [
        ("trial", b"0", {"key": b"a", "partition": 0}),
        ("trial", b"1", {"key": None, "partition": 0, "headers": [("traceparent", b"t")]}),
    ]
    assert results.left_out == 2


# -- agreement -----------------------------------------------------------------------------------------------


def box(*xyxy: float, label: str = "cat") -> dict[str, Any]:
    return {"label": label, "score": 0.9, "xyxy": [*xyxy]}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"label": "7", "score": 0.9, "top": []}, {"label": "7", "score": 0.4, "top": []}, True),
        ({"label": "7", "score": 0.9, "top": []}, {"label": "1", "score": 0.9, "top": []}, False),
        ({"label": None, "score": None, "top": []}, {"label": None, "score": None, "top": []}, True),
        ({"boxes": []}, {"boxes": []}, True),
        ({"boxes": [box(0, 0, 10, 10)]}, {"boxes": []}, False),
        ({"boxes": [box(0, 0, 10, 10)]}, {"boxes": [box(0, 0, 10, 6)]}, True),
        ({"boxes": [box(0, 0, 10, 10)]}, {"boxes": [box(0, 0, 10, 4)]}, False),
        ({"boxes": [box(0, 0, 10, 10)]}, {"boxes": [box(0, 0, 10, 10, label="dog")]}, False),
        (
            {"boxes": [box(0, 0, 10, 10), box(20, 0, 30, 10)]},
            {"boxes": [box(20, 0, 30, 9), box(0, 0, 9, 10)]},
            True,
        ),
        (
            {"boxes": [box(0, 0, 10, 10), box(0, 0, 10, 10)]},
            {"boxes": [box(0, 0, 10, 10), box(50, 0, 60, 10)]},
            False,
        ),
        (
            {"regions": [{"score": 1, "points": [[0, 0], [10, 0], [10, 5], [0, 5]]}]},
            {"regions": [{"score": 1, "points": [[1, 0], [10, 0], [10, 5], [1, 5]]}]},
            True,
        ),
        ({"embedding": [1.0, 0.0]}, {"embedding": [2.0, 0.01]}, True),
        ({"embedding": [1.0, 0.0]}, {"embedding": [1.0, 0.5]}, False),
        ({"embedding": [0.0, 0.0]}, {"embedding": [0.0, 0.0]}, True),
        ({"embedding": [1.0]}, {"embedding": [1.0, 0.0]}, False),
        (
            {"entities": [{"label": "PER", "start": 0, "end": 4, "score": 0.9}]},
            {"entities": [{"label": "PER", "start": 0, "end": 4, "score": 0.1}]},
            True,
        ),
        ({"text": "12", "score": 0.9}, {"text": "12", "score": 0.1}, True),
        ({"text": "12", "score": 0.9}, {"text": "13", "score": 0.9}, False),
        ({"size": [1, 1], "rle": [], "shares": {"sky": 0.5}}, {"shares": {"sky": 0.52, "sea": 0.01}}, True),
        ({"size": [1, 1], "rle": [], "shares": {"sky": 0.5}}, {"shares": {"sky": 0.3}}, False),
        ({"value": 100.0}, {"value": 100.9}, True),
        ({"value": 100.0}, {"value": 102.0}, False),
        ({"value": 0.001}, {"value": 0.009}, True),
        ({"outputs": {"y": [[1.0, 2.0]]}}, {"outputs": {"y": [[1.0, 2.5]]}}, False),
        ({"outputs": {"y": [1.0]}}, {"outputs": {"z": [1.0]}}, False),
        ({"value": True}, {"value": 1}, True),
        ([{"label": "a"}, {"label": "b"}], [{"label": "a"}, {"label": "b"}], True),
        ([{"label": "a"}], [{"label": "a"}, {"label": "b"}], False),
        ("yes", "yes", True),
        ({"boxes": 3}, {"boxes": 3}, True),
    ],
)
def test_agreement_is_what_a_reader_would_care_for(one: Any, other: Any, same: bool) -> None:
    """Labels, boxes that overlap, directions, texts; numbers within a tolerance; custom code like everything else."""
    assert agree(one, other) is same
    assert agree(other, one) is same
