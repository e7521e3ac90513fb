"""Rollouts in a schedule: candidates that begin, grow, are promoted, are taken back or turn sick, on each replica in its time.

Every replica has rollouts of its own. What is decided for a pipeline reaches each of them some turns later, in order. What
the decision is worth is another simulation's matter; here it is what the loop makes of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from fakes import FakeRollout, FakeServable

from worker.batch import Batch, Kept
from worker.serving.rollout import Plan, Rollout

SHARES = (0.1, 0.3, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class State:
    """Who answers a route on one replica."""

    stable: str
    candidate: str | None = None
    """Its version; None where nobody answers beside the stable one."""
    rollout_id: str = ""
    share: float = 0.0

    def version_of(self, key: bytes | None, place: bytes) -> str:
        """The version that a record must be answered by; by the words of the contract.

        Args:
            place: ``partition/offset``.
        """
        if self.candidate is None:
            return self.stable
        digest = hashlib.blake2b(place if key is None else key, digest_size=8, key=self.rollout_id.encode())
        slot = int.from_bytes(digest.digest(), "big") % 10_000
        return self.candidate if slot < round(self.share * 10_000) else self.stable


class SimShadow:
    """Answers at once whatever it is given, up to two batches at a time."""

    def __init__(self, cases: Counter[str]) -> None:
        self._cases = cases
        self._places = 0
        self._twins: list[Batch] = []

    def reserve(self, batch: Batch) -> bool:
        if self._places == 2:
            return False
        self._places += 1
        return True

    def pass_by(self, batch: Batch) -> None:
        self._cases["batch that a shadow does not get"] += 1

    def release(self) -> None:
        self._places -= 1

    def start(self, twin: Batch, kept: Kept | None) -> None:
        self._cases["batch of a shadow"] += 1
        self._twins.append(twin)

    def back(self) -> list[tuple[Batch, str | None]]:
        twins, self._twins = self._twins, []
        self._places -= len(twins)
        return [(twin, getattr(twin.servable, "health", {}).get("sick")) for twin in twins]

    def close(self, timeout_s: float) -> None: ...


class SimRollout(Rollout):
    """A rollout that says who answers, as of the slab that is closed last."""

    def __init__(self, like: FakeRollout, version: str, cases: Counter[str]) -> None:
        # The batches of both sides run in one lane, as the loader makes them.
        stable: Any = replace(like.stable, model_version=version, health={})
        super().__init__(like.route, stable)  # type: ignore[arg-type]
        self.state = State(version)
        self.make_shadow = lambda _trial: SimShadow(cases)  # type: ignore[assignment, return-value]
        self._cases = cases
        self.on_sick = lambda _rollout, _why: cases.update(["candidate sick"])

    def choose(self) -> Any:
        servable = super().choose()
        self.state = State(servable.model_version)
        if self.candidate is not None and self.plan is not None and self.plan.mode == "canary":
            self.state = replace(
                self.state,
                candidate=self.candidate.model_version,
                rollout_id=self.plan.id,
                share=self.plan.share,
            )
        return servable

    def servable(self, version: str) -> FakeServable:
        made: FakeServable = replace(self.stable, model_version=version, health={})  # type: ignore[type-var, assignment]
        return made

    def fall_sick(self) -> None:
        """The candidate goes wrong; what it has in the pool is not trusted either."""
        if self.candidate is not None and not self.waiting:
            self.candidate.health["sick"] = "it gives zeros"  # type: ignore[attr-defined]

    def recover(self) -> None:
        """Who is to be the stable one is well: what a sick stable one means is not this simulation's matter."""
        if self.candidate is not None:
            self.candidate.health.clear()  # type: ignore[attr-defined]


Order = Callable[[SimRollout], None]


class Decisions:
    """What is decided for every pipeline, and how far each replica has come.

    Args:
        often: probability of a decision per step; 0 = there are no rollouts at all.
        fussy: some records are refused by every second version, and by no other one.
    """

    def __init__(
        self,
        rollouts: Iterable[FakeRollout],
        rng: Random,
        often: float,
        fussy: bool,
        cases: Counter[str],
    ) -> None:
        self._rollouts = list(rollouts)
        self._rng = rng
        self._often = often
        self._fussy = fussy
        self._cases = cases
        self._count = 1
        self._stable = {rollout.route.name: "1" for rollout in self._rollouts}
        self._plans: dict[str, tuple[Plan, str]] = {}
        self._open: dict[int, deque[tuple[str, Order]]] = {}
        """Per replica the decisions that it has not heard of."""

    def of_new_replica(self) -> list[SimRollout]:
        """The rollouts of a process that starts: it knows what is decided before it takes anything."""
        found = []
        for rollout in self._rollouts:
            name = rollout.route.name
            made = SimRollout(rollout, self._stable[name], self._cases)
            if name in self._plans:
                plan, version = self._plans[name]
                made.begin(plan, made.servable(version))  # type: ignore[arg-type]
            found.append(made)
        return found

    def step(self, replicas: Iterable[tuple[int, list[SimRollout]]]) -> None:
        """Perhaps decide something; perhaps let replicas hear of it.

        Args:
            replicas: each by a number of its own, with its rollouts.
        """
        if not self._often:
            return
        found = dict(replicas)
        if self._rng.random() < self._often:
            name = self._rng.choice([*self._stable])
            order = self._decide(name)
            for number in found:
                self._open.setdefault(number, deque()).append((name, order))
        for number, rollouts in found.items():
            waiting = self._open.get(number, deque())
            while waiting and self._rng.random() < 0.7:
                name, order = waiting.popleft()
                order(next(rollout for rollout in rollouts if rollout.route.name == name))
            if self._rng.random() < self._often / 4:
                self._rng.choice(rollouts).fall_sick()
            if self._rng.random() < self._often / 2:
                rollout = self._rng.choice(rollouts)
                rollout.hold(not rollout.held)
                self._cases["intake held"] += rollout.held

    def fussy(self) -> bool:
        """Whether the next good record is one that every second version refuses."""
        return bool(self._often) and self._fussy and self._rng.random() < 0.1

    def calm(self, rollouts: Iterable[SimRollout]) -> None:
        """Nobody holds anything any more."""
        for rollout in rollouts:
            rollout.hold(False)

    def _decide(self, name: str) -> Order:
        rng = self._rng
        if name not in self._plans:
            self._count += 1
            version = str(self._count)
            if rng.random() < 0.2:
                self._stable[name] = version
                self._cases["swap"] += 1
                return lambda rollout: rollout.offer(rollout.servable(version))  # type: ignore[arg-type]
            mode = "shadow" if rng.random() < 0.2 else "canary"
            plan = Plan(f"rollout-{self._count}", mode, rng.choice(SHARES))  # type: ignore[arg-type]
            self._plans[name] = plan, version
            self._cases[mode] += 1
            return lambda rollout: rollout.begin(plan, rollout.servable(version))  # type: ignore[arg-type]
        plan, version = self._plans[name]
        what = rng.choice(["grow", "promote", "end"])
        self._cases[f"rollout: {what}"] += 1
        if what == "grow":
            share = rng.choice([share for share in SHARES if share >= plan.share])
            self._plans[name] = replace(plan, share=share), version
            return lambda rollout: rollout.grow(share)
        del self._plans[name]
        if what == "end":
            return lambda rollout: rollout.end()
        self._stable[name] = version

        def promote(rollout: SimRollout) -> None:
            rollout.recover()
            rollout.promote()

        return promote
