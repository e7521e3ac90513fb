"""The promises about rollouts, one judge each. They read the topic by rules of their own, not by the worker's."""

from __future__ import annotations

from collections import defaultdict

from sim_decisions import RULES, Judge, Replica

from worker.serving import assignment
from worker.serving.control import CLI, Decision, Pin, Record, Seen, Stable


class Phase:
    """What the topic said from one record on: who answers, and the rollout that runs."""

    def __init__(self, stable: str, running: Decision | None) -> None:
        self.stable = stable
        self.running = running

    def version(self, key: bytes) -> str:
        running = self.running
        if running is None:
            return self.stable
        slot = assignment.slot_of(assignment.blake2_key(running.id), key)
        return running.candidate if slot < assignment.slots_below(running.share) else self.stable


def phases(log: list[Record]) -> list[Phase]:
    """The topic, told anew by the rule of the contract: the first decision of a rollout counts."""
    found: list[Phase] = []
    stable, running, pin = "", None, None
    over: dict[str, Decision] = {}
    for record in log:
        match record:
            case Stable() if not stable:
                stable = record.version
            case Pin():
                if record.version is None and pin is not None:
                    stable = pin
                if record.version is not None and running is not None:
                    over[running.id], running = running, None
                    found.append(Phase(stable, None))  # until the pinned version is loaded
                pin = record.version
            case Decision(state="running"):
                again = any(
                    (each.candidate, each.digest, each.state)
                    == (record.candidate, record.digest, "rolled_back")
                    for each in over.values()
                ) and not record.by.startswith(CLI)
                if running is not None and running.id == record.id and record.share > running.share:
                    running = record
                free = running is None and pin is None and record.id not in over
                if free and record.stable == stable and record.candidate != stable and not again:
                    running = record
            case Decision() if record.id not in over:
                over[record.id] = record
                if running is not None and running.id == record.id:
                    stable = record.candidate if record.state == "promoted" else stable
                    running = None
            case _:
                continue
        found.append(Phase(pin or stable, running))
    return found


class OneOutcome(Judge):
    """When all is quiet, every replica answers with the version that the first decisions in the topic say."""

    def quiet(self) -> None:
        last = phases(self.world.log)[-1]
        for who in self.world.replicas:
            running = who.rollout.id if who.rollout is not None else None
            if last.running is None and running is not None:
                raise self.broken(f"{who.name} is still in {running}")
            if who.stable != last.stable and not self._cannot(who, last.stable):
                raise self.broken(f"{who.name} answers with {who.stable}, the topic says {last.stable}")
            if who.held and not self._cannot(who, last.stable):
                raise self.broken(f"{who.name} still holds its records back")

    def _cannot(self, who: Replica, version: str) -> bool:
        return self.world.kinds[version] == "refused"


class NoKeyGoesBack(Judge):
    """A key never meets a version again that the topic had ended before the version that it met last."""

    def __init__(self) -> None:
        self._at: dict[bytes, int] = defaultdict(int)
        self._told: list[Phase] = []

    def written(self, record: Record, who: Replica | None) -> None:
        if not isinstance(record, Seen):
            self._told = []

    def answered(self, who: Replica, key: bytes, version: str) -> None:
        decided = who.keeper.book.decided.get(who.sick)
        if who.sick and (decided is None or (decided.state == "promoted" and who.stable == decided.stable)):
            return  # it has taken a sick candidate back, and the topic does not say so yet, or never will
        if who.behind:
            return
        told = self._told = self._told or phases(self.world.log)
        place = self._at[key]
        while place < len(told) and told[place].version(key) != version:
            place += 1
        if place == len(told):
            raise self.broken(f"{key!r} meets {version} on {who.name} after the topic had ended that")
        self._at[key] = place


class RolledBackStaysAway(Judge):
    """No version is on trial again after its rollout was rolled back, unless a person starts it or its files change."""

    def answered(self, who: Replica, key: bytes, version: str) -> None:
        rollout = who.rollout
        if rollout is None or rollout.by.startswith(CLI):
            return
        decided: dict[str, Decision] = {}
        for record in self.world.log[: who.read]:
            if isinstance(record, Decision) and record.state != "running":
                decided.setdefault(record.id, record)
        for each in decided.values():
            if each.id != rollout.id and each.candidate == rollout.candidate and each.state == "rolled_back":
                raise self.broken(f"{who.name} tries {rollout.candidate} again")


class PromotedInTime(Judge):
    """A replica promotes only after enough records and enough time, and only a version within its limits."""

    def written(self, record: Record, who: Replica | None) -> None:
        if who is None or not isinstance(record, Decision) or record.state != "promoted":
            return
        began = next(
            each
            for each in self.world.log
            if isinstance(each, Decision) and each.id == record.id and each.state == "running"
        )
        if record.time_ms - began.time_ms < RULES.for_s * 1000:
            raise self.broken(f"{record.id} after {record.time_ms - began.time_ms} ms")
        if self.world.candidates[record.id] < RULES.min_records:
            raise self.broken(f"{record.id} after {self.world.candidates[record.id]} records")
        kind = self.world.kinds[record.candidate]
        if kind == "errors" or (kind == "slow" and self._compared(record.id)):
            raise self.broken(f"{record.id} although it is bad ({self.world.kinds[record.candidate]})")

    def _compared(self, rollout_id: str) -> bool:
        """Whether any replica that still runs has had records of both versions."""
        return any(
            who.rollout is not None and who.rollout.id == rollout_id and who.counts[0] and who.counts[2]
            for who in self.world.replicas
        )


class NoFalseAlarm(Judge):
    """A replica never rolls a good version back."""

    def written(self, record: Record, who: Replica | None) -> None:
        if who is None or not isinstance(record, Decision) or record.state != "rolled_back":
            return
        if self.world.kinds[record.candidate] == "good":
            raise self.broken(f"{record.candidate}: {record.reason}")


def all_judges() -> list[Judge]:
    return [OneOutcome(), NoKeyGoesBack(), RolledBackStaysAway(), PromotedInTime(), NoFalseAlarm()]
