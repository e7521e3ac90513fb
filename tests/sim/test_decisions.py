"""Rollouts of several replicas under seeded schedules, and their judges under planted bugs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from sim_decisions import RULES, Violation, World
from sim_decisions_judges import all_judges

from worker.serving.control import Book, Decision
from worker.serving.decisions import Keeper
from worker.serving.moves import Action, Close, View, Write

SCHEDULES = 150
HARD_CASES = (
    "a rollout begins",
    "a start during a rollout",
    "a version refused",
    "aborted",
    "death after a record was written",
    "death before a record was written",
    "grow",
    "held and freed",
    "partition 0 moves",
    "pin",
    "promoted",
    "rolled_back",
    "sick",
    "unpin",
)


def test_replicas_come_to_one_decision_whatever_happens() -> None:
    """In every schedule all replicas come to the same version, no key goes back, and nothing is promoted too early."""
    seen: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        seen.update(World(seed, all_judges()).play())
    assert {case for case in HARD_CASES if not seen[case]} == set()


class LastCounts(Book):
    """Planted: a later decision of a rollout replaces the first one."""

    def _decide(self, record: Decision) -> bool:
        before = self.decided.pop(record.id, None)
        if before is not None and self.running is None:
            self.running = replace(before, state="running")
        return super()._decide(record)


class Forgetful(Book):
    """Planted: nobody remembers what was rolled back."""

    def ended(self, *_args: object) -> bool:
        return False


class Hasty(Keeper):
    """Planted: a replica acts on its own decision before it reads it back."""

    def step(self, view: View) -> list[Action]:
        actions = super().step(view)
        for action in [*actions]:
            if isinstance(action, Write) and isinstance(action.record, Decision) and self.active is not None:
                if action.record.state == "promoted":
                    self.answers = self.active.candidate
                self._out.add(action.record.id)
                self.active = self._watch = None
                actions.append(Close(action.record))
        return actions


class Few(Keeper):
    """Planted: a promotion does not wait for enough records."""

    @property
    def _limits(self):  # type: ignore[no-untyped-def]
        return RULES.model_copy(update={"min_records": 5})


class Early(Keeper):
    """Planted: a promotion does not wait for the time to pass."""

    @property
    def _limits(self):  # type: ignore[no-untyped-def]
        return RULES.model_copy(update={"for_s": 0.001})


class Jumpy(Keeper):
    """Planted: one bad stretch of time is enough."""

    def _judge(self, view: View, actions: list[Action]) -> None:
        super()._judge(view, actions)
        if self.active is not None and view.figures is not None and view.figures.candidate.records > 20:
            self._want(self.active.id, "rolled_back", "it felt slow")


def with_book(book: type[Book]) -> Callable[..., World]:
    class Its(Keeper):
        def __init__(self, *args: object) -> None:
            given = args[5]
            assert isinstance(given, Book)
            # a replica that starts has read the topic by the planted rule, too
            super().__init__(*args[:5], book(**{n: getattr(given, n) for n in given.__dataclass_fields__}))  # type: ignore[arg-type]

    return lambda seed: World(seed, all_judges(), keeper=Its)


BUGS: dict[str, tuple[str, Callable[[int], World]]] = {
    "the last decision counts": ("OneOutcome|NoKeyGoesBack", with_book(LastCounts)),
    "what was rolled back is forgotten": ("RolledBackStaysAway|OneOutcome", with_book(Forgetful)),
    "acts before it reads back": (
        "NoKeyGoesBack|OneOutcome",
        lambda seed: World(seed, all_judges(), keeper=Hasty),
    ),
    "too few records": ("PromotedInTime", lambda seed: World(seed, all_judges(), keeper=Few)),
    "too early": ("PromotedInTime", lambda seed: World(seed, all_judges(), keeper=Early)),
    "a false alarm": ("NoFalseAlarm", lambda seed: World(seed, all_judges(), keeper=Jumpy)),
    "nobody holds back": ("NoKeyGoesBack", lambda seed: World(seed, all_judges(), holds=False)),
    "a start does not read the topic": (
        "NoKeyGoesBack|OneOutcome",
        lambda seed: World(seed, all_judges(), reads_first=False),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_judge_sees_a_planted_bug(bug: str) -> None:
    """Each promise, broken on purpose, is reported by its judge within a hundred schedules."""
    judge, make = BUGS[bug]

    def play() -> None:
        for seed in range(100):
            make(seed).play()

    with pytest.raises(Violation, match=judge):
        play()
