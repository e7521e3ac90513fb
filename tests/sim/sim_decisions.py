"""Several replicas, one control topic and a repository, without Kafka and without models, driven by a seed.

A tick is a tenth of a second. Replicas read the topic late, start late, die between a wish and its writing; partitions move
at any time, partition 0 among them; people use the command line; versions are good, full of errors, slow, sick or refused.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

from worker.serving import assignment
from worker.serving.control import Book, Decision, Pin, Record, Stable
from worker.serving.decisions import Keeper
from worker.serving.moves import (
    Action,
    Begin,
    Close,
    Drop,
    Free,
    Grow,
    Loaded,
    Meant,
    Order,
    Swap,
    View,
    Write,
)
from worker.serving.rollout import Arm, Figures
from worker.settings.rollout import RolloutLimits, RolloutSettings

TICK_MS = 100
TICKS, QUIET_TICKS = 500, 500
PARTITIONS, KEYS = 3, 4
RULES = RolloutSettings(
    share=0.5, min_records=60, for_s=4, max=RolloutLimits(errors=0.05, latency_ratio=3.0, disagreement=0.05)
)
BAD_ERRORS, BAD_SLOWNESS = 0.5, 10.0


class Violation(AssertionError):
    """A promise is broken."""


class Judge:
    """One promise. Told of what happens; raises when the promise is broken."""

    world: World

    def answered(self, who: Replica, key: bytes, version: str) -> None: ...

    def written(self, record: Record, who: Replica | None) -> None:
        """A record is in the topic; ``who`` wrote it, or a person."""

    def quiet(self) -> None:
        """Nothing happens any more, and everybody has had the time to follow."""

    def broken(self, what: str) -> Violation:
        return Violation(f"seed {self.world.seed}, tick {self.world.tick}: {type(self).__name__}: {what}")


@dataclass
class Replica:
    """One process: its keeper, and the place of loader and loop around it."""

    name: str
    keeper: Keeper
    read: int
    """Records of the topic that it has read."""
    stable: str
    owned: set[int] = field(default_factory=set)
    held: bool = False
    news: bool = False
    """New partitions came since the last look."""
    end: int | None = None
    """How far the topic went after the last assignment; None: nothing is to be caught up with."""
    rollout: Decision | None = None
    """The rollout as its loop has it."""
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Records and errors of the stable version, then of the candidate, since the rollout began here."""
    sick: str = ""
    """The rollout whose candidate turned sick here."""
    behind: bool = False
    """It was refused what all others answer with, and goes on with what it has."""
    ordered: tuple[str, int] | None = None
    waiting: str | None = None

    def figures(self, slow: bool) -> Figures:
        records, errors, theirs, wrong = self.counts
        return Figures(
            Arm(records, errors, 10.0 if records else 0.0),
            Arm(theirs, wrong, 10.0 * (BAD_SLOWNESS if slow else 1) if theirs and records else 0.0),
        )


@dataclass
class World:
    """One schedule."""

    seed: int
    judges: list[Judge]
    keeper: type[Keeper] = Keeper
    holds: bool = True
    """Planted: False = nobody holds back the records of new partitions."""
    reads_first: bool = True
    """Planted: False = a replica that starts believes the settings."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.tick = 0
        self.log: list[Record] = [Stable("p", "1", "r0", 0)]
        self.flying: list[tuple[int, Record, Replica | None]] = []
        """Records on their way: when they arrive, and whose they are."""
        self.replicas: list[Replica] = []
        self.versions = 1
        self.meant = "1"
        self.kinds = {"1": "good"}
        self.seen: set[str] = set()
        """What happened in this schedule."""
        self.answers: dict[bytes, int] = defaultdict(int)
        self.candidates: dict[str, int] = defaultdict(int)
        """Records that the candidate of a rollout answered, on all replicas."""
        for judge in self.judges:
            judge.world = self

    @property
    def now_ms(self) -> int:
        return self.tick * TICK_MS

    def play(self) -> set[str]:
        """Play the schedule; what happened in it."""
        for _ in range(self.rng.randint(1, 3)):
            self.join()
        while self.tick < TICKS + QUIET_TICKS:
            self.tick += 1
            if self.tick < TICKS:
                self._chance()
            self._arrive()
            for replica in [*self.replicas]:
                self._look(replica)
                self._answer(replica)
        for judge in self.judges:
            judge.quiet()
        return self.seen

    # -- what happens ------------------------------------------------------------------------------------------

    def _chance(self) -> None:
        roll = self.rng.random()
        if roll < 0.012:
            self.versions += 1
            self.meant = str(self.versions)
            self.kinds[self.meant] = self.rng.choice(["good", "good", "errors", "slow", "refused", "sick"])
        elif roll < 0.02 and len(self.replicas) < 4:
            self.join()
        elif roll < 0.028 and len(self.replicas) > 1:
            self._die(self.rng.choice(self.replicas))
        elif roll < 0.05:
            self._share_out()
        elif roll < 0.056:
            self._person()

    def join(self) -> None:
        """A replica starts: it reads the topic, loads what answers, and joins the group."""
        book = Book()
        for record in self.log if self.reads_first else ():
            book.take(record)
        answers = book.stable or self.meant
        name = f"r{self.tick}-{len(self.replicas)}"
        keeper = self.keeper("p", name, name, RULES, answers, book)
        self.replicas.append(Replica(name, keeper, len(self.log), answers))
        if book.running is not None:
            self.seen.add("a start during a rollout")
        self._share_out()

    def _die(self, replica: Replica) -> None:
        """By SIGKILL: what is on its way may be there or not."""
        self.replicas.remove(replica)
        mine = [each for each in self.flying if each[2] is replica]
        for each in mine:
            if self.rng.random() < 0.5:
                self.flying.remove(each)
                self.seen.add("death before a record was written")
            else:
                self.seen.add("death after a record was written")
        self._share_out()

    def _share_out(self) -> None:
        """The group is balanced anew, by chance."""
        for number in range(PARTITIONS):
            owner = self.rng.choice(self.replicas)
            for replica in self.replicas:
                if replica is owner and number not in replica.owned:
                    replica.owned.add(number)
                    replica.held, replica.news = self.holds, True
                    self.seen.add("partition 0 moves" if number == 0 else "partition moves")
                elif replica is not owner:
                    replica.owned.discard(number)

    def _person(self) -> None:
        """Somebody decides at the command line, with what the topic said a moment ago."""
        book = Book()
        for record in self.log[: max(1, len(self.log) - self.rng.randint(0, 1))]:
            book.take(record)
        running, by = book.running, "cli:me@here"
        verb = self.rng.choice(["promote", "rollback", "pin", "unpin", "start", "grow"])
        self.seen.add(verb)
        if verb == "pin":
            if running is not None:
                self.put(_ending(running, "aborted", by, self.now_ms), None)
            self.put(Pin("p", str(self.rng.randint(1, self.versions)), None, by, self.now_ms), None)
        elif verb == "unpin":
            self.put(Pin("p", None, book.pin, by, self.now_ms), None)
        elif verb == "start" and book.stable is not None:
            version = str(self.rng.randint(1, self.versions))
            name = f"{version}-{self.tick}"
            start = Decision("p", name, book.stable, version, "canary", 0.3, "running", "", by, self.now_ms)
            self.put(start, None)
        elif verb == "grow" and running is not None:
            more = min(1.0, running.share + 0.3)
            self.put(replace(running, share=more, by=by, time_ms=self.now_ms), None)
        elif running is not None:
            state = "promoted" if verb == "promote" else "rolled_back"
            self.put(_ending(running, state, by, self.now_ms), None)

    def put(self, record: Record, who: Replica | None) -> None:
        """A record is on its way to the topic; now and then twice."""
        for _ in range(2 if self.rng.random() < 0.05 else 1):
            self.flying.append((self.tick + self.rng.randint(1, 12), record, who))

    def _arrive(self) -> None:
        for each in [each for each in self.flying if each[0] <= self.tick]:
            self.flying.remove(each)
            _, record, who = each
            self.log.append(record)
            for judge in self.judges:
                judge.written(record, who)

    # -- one replica ---------------------------------------------------------------------------------------------

    def _look(self, replica: Replica) -> None:
        """What the steward does: read on, and do what the keeper says."""
        lag = self.rng.choice([0, 0, 1, 3]) if self.tick < TICKS else 0
        if self.rng.random() < 0.2:
            return
        upto = max(replica.read, len(self.log) - lag)
        for record in self.log[replica.read : upto]:
            replica.keeper.book.take(record)
        replica.read = upto
        if replica.news:
            replica.news, replica.end = False, len(self.log)
            if replica.held:
                replica.keeper.assigned()
        loaded = None
        if replica.ordered is not None and replica.ordered[1] <= self.tick:
            loaded, replica.ordered = self._loaded(replica, replica.ordered[0]), None
        slow = replica.rollout is not None and self.kinds[replica.rollout.candidate] == "slow"
        view = View(
            self.now_ms,
            replica.end is None or replica.read >= replica.end,
            0 in replica.owned,
            Meant(self.meant, self.meant, moving=True),
            loaded,
            replica.figures(slow) if replica.keeper.active is not None else None,
        )
        for action in replica.keeper.step(view):
            self._do(replica, action)

    def _loaded(self, replica: Replica, version: str) -> Loaded:
        if self.kinds[version] == "refused" and self.rng.random() < 0.5:
            self.seen.add("a version refused")
            replica.behind = replica.behind or version == replica.keeper.book.stable
            return Loaded(version, "golden: another answer")
        replica.waiting = version
        return Loaded(version)

    def _do(self, replica: Replica, action: Action) -> None:
        match action:
            case Order():
                replica.ordered = action.version, self.tick + self.rng.randint(1, 30)
            case Drop() | Swap() | Begin() if replica.waiting is None:
                raise AssertionError(f"{action} without a version that waits")
            case Drop():
                replica.waiting = None
            case Swap():
                replica.stable, replica.waiting, replica.behind = action.version, None, False
            case Begin():
                assert replica.waiting == action.rollout.candidate
                replica.rollout, replica.waiting, replica.counts = action.rollout, None, [0, 0, 0, 0]
                self.seen.add("a rollout begins")
            case Grow():
                replica.rollout = action.rollout
            case Close():
                self.seen.add(action.decision.state)
                if action.decision.state == "promoted" and replica.rollout is not None:
                    replica.stable = replica.rollout.candidate
                replica.rollout = None
            case Free():
                replica.held = False
                self.seen.add("held and freed")
            case Write():
                self.put(action.record, replica)

    def _answer(self, replica: Replica) -> None:
        """Records of the partitions of a replica are answered."""
        if replica.held:
            return
        for number in sorted(replica.owned):
            key = b"%d/%d" % (number, self.rng.randrange(KEYS))
            rollout, version = replica.rollout, replica.stable
            if rollout is not None:
                slot = assignment.slot_of(assignment.blake2_key(rollout.id), key)
                mine = slot < assignment.slots_below(rollout.share)
                kind = self.kinds[rollout.candidate]
                if mine and kind == "sick" and self.rng.random() < 0.05:
                    self.seen.add("sick")
                    replica.rollout, replica.sick = None, rollout.id
                    replica.keeper.sick(rollout.id, "zeros")
                    mine = False
                if mine:
                    version = rollout.candidate
                    self.candidates[rollout.id] += 1
                wrong = kind == "errors" and mine and self.rng.random() < BAD_ERRORS
                replica.counts[2 if mine else 0] += 1
                replica.counts[3 if mine else 1] += wrong
            for judge in self.judges:
                judge.answered(replica, key, version)


def _ending(running: Decision, state: str, by: str, now_ms: int) -> Decision:
    return replace(running, state=state, reason="", by=by, time_ms=now_ms)  # type: ignore[arg-type]
