"""Carries out on one replica what the control topic says of its models' versions, and writes there what the replica finds.

On a thread of its own: the loop never waits for the topic, and a load on the loader's thread does not keep the topic from
being read. What to do is decided by :mod:`worker.serving.decisions`; here it is done.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from worker.batch import Partition
from worker.errors import StartError
from worker.serving.control import Book, Decision, Record, Stable, State, decoded, encoded
from worker.serving.decisions import Keeper
from worker.serving.loader import Loader
from worker.serving.moves import Action, Begin, Close, Drop, Free, Grow, Order, Swap, View, Write
from worker.serving.rollout import Plan, Rollout
from worker.serving.servable import Servable
from worker.settings import Settings
from worker.settings.rollout import RolloutSettings

READ_S = 0.05
"""Longest wait for the next record of the topic: so soon a replica also looks at its own figures."""
FENCE_S = 10.0
"""After so long without an answer about the topic's end, new partitions are read with what is known."""
START_S = 20.0
"""Longest wait for the control topic at start."""
CLOSE_S = 2.0
AFTER_BUG_S = 1.0

log = structlog.get_logger()


class Log(Protocol):
    """The control topic; see :class:`worker.kafka.control.ControlTopic`."""

    @property
    def by(self) -> str: ...

    def read(self, timeout_s: float) -> list[bytes | None]: ...

    def end(self) -> int | None: ...

    def reached(self, end: int) -> bool: ...

    def write(self, key: str, value: bytes) -> None: ...

    def close(self, budget_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Turned:
    """A rollout began, grew or ended on this replica."""

    pipeline: str
    state: State | None
    """None: it goes on."""
    share: float
    """Of the keys that the candidate answers from now on."""


def nonce() -> str:
    """What no other record's key has."""
    return uuid.uuid4().hex[:12]


def read_books(control: Log, names: Iterable[str]) -> dict[str, Book]:
    """What the topic says of each pipeline now.

    Raises:
        StartError: it cannot be read.
    """
    books = {name: Book() for name in names}
    deadline_s = time.monotonic() + START_S
    end = control.end()
    while end is None or not control.reached(end):
        if time.monotonic() > deadline_s:
            raise StartError("control.topic: it cannot be read to its end; expected a broker that answers")
        _take(books, control.read(READ_S))
        end = control.end() if end is None else end
    return books


def agree(control: Log, books: Mapping[str, Book], found: Mapping[str, str]) -> dict[str, str]:
    """The version that answers each pipeline at start: what the topic says, else what the settings mean.

    Where the topic says nothing, this replica writes the version there first: of several replicas that start at once with
    different files, the first one counts for all.

    Raises:
        StartError: the topic cannot be written.
    """
    deadline_s = time.monotonic() + START_S
    for name, version in found.items():
        if books[name].stable is None:
            record = Stable(name, version, control.by, int(time.time() * 1000))
            control.write(record.key(nonce()), encoded(record))
    while any(books[name].stable is None for name in found):
        if time.monotonic() > deadline_s:
            raise StartError("control.topic: it cannot be written; expected a broker that takes a record")
        _take(books, control.read(READ_S))
    return {name: books[name].stable or version for name, version in found.items()}


def _take(books: Mapping[str, Book], values: Iterable[bytes | None]) -> None:
    for value in values:
        record = decoded(value)
        if record is not None and record.pipeline in books:
            books[record.pipeline].take(record)


class Steward:
    """See the module.

    Args:
        control: read to its end, with ``books`` as what it says.
        loader: loads what is ordered.
        rollouts: by pipeline; those without a book are left alone.
    """

    def __init__(
        self,
        settings: Settings,
        control: Log,
        books: Mapping[str, Book],
        loader: Loader,
        rollouts: Mapping[str, Rollout],
    ) -> None:
        self.owned: Callable[[], Collection[Partition]] = tuple
        """The partitions of this replica."""
        self._control = control
        self._loader = loader
        self._rollouts = {name: rollouts[name] for name in books}
        replica = uuid.uuid4().hex
        self._keepers = {
            name: Keeper(
                name,
                control.by,
                replica,
                settings.pipelines[name].rollout,
                rollouts[name].stable.model_version,
                book,
            )
            for name, book in books.items()
        }
        self._topics = {name: settings.pipelines[name].input.names for name in books}
        self._first = {name: Partition(settings.pipelines[name].input.topics[0], 0) for name in books}
        self._rules: dict[str, RolloutSettings | None] = {}
        """Of pipelines, how new versions are tried from the next look on."""
        self._waiting: dict[str, Servable] = {}
        """Servables that are loaded and in no rollout yet."""
        self._heard: deque[tuple[str, str, str]] = deque()
        """Sick candidates: pipeline, rollout, why."""
        self._events: deque[Turned] = deque()
        self._lock = threading.Lock()
        """Guards the two numbers: an assignment must not fall between a look at them and the end of a hold."""
        self._assigned = 0
        self._known = 0
        """Assignments, and how many of them the keepers know."""
        self._end: int | None = None
        """The topic's end, looked up after the last assignment; None: not known yet."""
        self._asked_s: float | None = None
        self._caught_up = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        for rollout in self._rollouts.values():
            rollout.on_sick = self._sick

    # -- for the main thread and the loop's ---------------------------------------------------------------------

    def prepare(self) -> None:
        """Take part in the rollouts that run, before the group is joined; the loader's thread does not run yet."""
        settled = False
        while not settled:
            settled = not any(self._step(name, keeper) for name, keeper in self._keepers.items())
            self._loader.look()

    def start(self) -> None:
        """Follow the topic from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and send what is written."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._control.close(CLOSE_S)

    def assigned(self, partitions: Collection[Partition]) -> None:
        """New partitions are ours; on the loop's thread, before a record of them is taken.

        Their last owner may have known more of the topic. So nothing is taken until it is read as far as it goes now.
        """
        topics = {partition.topic for partition in partitions}
        with self._lock:
            self._assigned += 1
            for name, rollout in self._rollouts.items():
                if any(topic in self._topics[name] for topic in topics):
                    rollout.hold(True)

    def turn(self) -> list[Turned]:
        """What happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def follow(self, settings: Settings) -> None:
        """Try new versions by these settings from the next look on. A rollout that runs keeps to the limits with which it began."""
        self._rules = {name: settings.pipelines[name].rollout for name in self._keepers}

    def _sick(self, rollout: Rollout, why: str) -> None:
        """The candidate was taken back, and the loop says so."""
        if rollout.ended is not None:
            self._heard.append((rollout.route.name, rollout.ended.id, why))

    # -- on the thread of its own -------------------------------------------------------------------------------

    def look(self, wait_s: float = READ_S) -> None:
        """Read on, and do what is to be done."""
        while self._rules:
            name, rules = self._rules.popitem()
            self._keepers[name].rules = rules
        self._take(self._control.read(wait_s))
        self._catch_up()
        while self._heard:
            name, rollout_id, why = self._heard.popleft()
            self._keepers[name].sick(rollout_id, why)
        for name, keeper in self._keepers.items():
            self._step(name, keeper)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as error:  # records go on being answered by the versions that are there
                log.error("bug", exc_info=error)
                for rollout in self._rollouts.values():
                    rollout.hold(False)
                self._stop.wait(AFTER_BUG_S)

    def _take(self, values: Iterable[bytes | None]) -> None:
        _take({name: keeper.book for name, keeper in self._keepers.items()}, values)

    def _catch_up(self) -> None:
        """After an assignment, find out how far the topic goes, and whether that much was read."""
        with self._lock:
            news, self._known = self._assigned - self._known, self._assigned
        now_s = time.monotonic()
        if news:
            self._caught_up, self._end, self._asked_s = False, None, now_s
            for name, keeper in self._keepers.items():
                if self._rollouts[name].held:
                    keeper.assigned()
        if self._caught_up or self._asked_s is None:
            return
        if self._end is None:
            self._end = self._control.end()
        if self._end is not None and self._control.reached(self._end):
            self._caught_up = True
        elif now_s - self._asked_s > FENCE_S:
            self._caught_up = True
            log.warning(
                "the control topic cannot be read to its end: new partitions are read with what is known"
            )

    def _step(self, name: str, keeper: Keeper) -> list[Action]:
        loaded = None
        delivery = self._loader.delivered(name)
        if delivery is not None:
            loaded = delivery.loaded
            if delivery.servable is not None:
                self._waiting[name] = delivery.servable
        view = View(
            int(time.time() * 1000),
            self._caught_up,
            self._first[name] in self.owned(),
            self._loader.meant(name),
            loaded,
            self._rollouts[name].figures() if keeper.active is not None else None,
        )
        actions = keeper.step(view)
        for action in actions:
            self._do(name, self._rollouts[name], action)
        return actions

    def _do(self, name: str, rollout: Rollout, action: Action) -> None:
        match action:
            case Order():
                self._loader.order(name, action.version)
            case Drop():
                self._waiting.pop(name).close()
            case Swap():
                rollout.offer(self._waiting.pop(name))
            case Begin():
                decision = action.rollout
                rollout.begin(Plan(decision.id, decision.mode, decision.share), self._waiting.pop(name))
                self._tell("rollout begins", decision, decision.state)
            case Grow():
                rollout.grow(action.rollout.share)
                self._tell("rollout grows", action.rollout, None)
            case Close():
                if action.decision.state == "promoted":
                    rollout.promote()
                else:
                    rollout.end()
                self._tell("rollout ended", action.decision, action.decision.state)
            case Free():
                with self._lock:
                    if self._assigned == self._known:
                        rollout.hold(False)
            case Write():
                self._write(action.record)

    def _write(self, record: Record) -> None:
        self._control.write(record.key(nonce()), encoded(record))
        if isinstance(record, Decision):
            _say("rollout decided", record)

    def _tell(self, what: str, decision: Decision, state: State | None) -> None:
        """One log line, and the event for the metrics."""
        runs = decision.state == "running" and decision.mode == "canary"
        self._events.append(Turned(decision.pipeline, state, decision.share if runs else 0.0))
        _say(what, decision)


def _say(what: str, decision: Decision) -> None:
    log.info(
        what,
        pipeline=decision.pipeline,
        id=decision.id,
        stable=decision.stable,
        candidate=decision.candidate,
        mode=decision.mode,
        share=decision.share,
        state=decision.state,
        reason=decision.reason,
        by=decision.by,
    )
