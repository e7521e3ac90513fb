"""What one replica does about the versions of one pipeline's model. Pure: no Kafka, no clock, no model.

A :class:`Keeper` is shown what there is (:class:`View`) and the records of the control topic, and says what to do next. The
topic alone decides: a replica that wants something writes it, and acts when it reads it back, as every other replica does.
The one exception is a sick candidate, which is taken back at once where it was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from worker.serving.control import CLI, ID_DIGEST, Book, Decision, Seen, State
from worker.serving.limits import FEWEST, Watch, total
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
from worker.serving.rollout import Figures
from worker.settings.rollout import RolloutSettings

RETRY_MS = 10_000
"""After so long without an answer in the topic, a decision is written again."""
PATIENCE_MS = 30_000
"""How long a replica waits for a version that its repository does not have yet."""
AGAIN_MS = 2_000
"""Between two orders of a version that was not there."""
REPORT_MS = 2_000
"""Between two records of a replica's figures."""


Purpose = Literal["swap", "join", "start"]
"""Why a version is needed: everybody answers with it; its rollout runs; its rollout is to begin."""


@dataclass(slots=True)
class _Wish:
    """A record that is to be written, and is not read back."""

    id: str
    state: State
    reason: str
    again_ms: int = 0
    """When it is written next."""


@dataclass(slots=True)
class Keeper:
    """See the module.

    Args:
        by: who writes: the client id.
        replica: a name of this process alone.
        rules: how a new version is tried; None: nobody starts or promotes one but people.
        answers: the version that answers on this replica.
    """

    pipeline: str
    by: str
    replica: str
    rules: RolloutSettings | None
    answers: str
    book: Book = field(default_factory=Book)
    active: Decision | None = None
    """The rollout that this replica takes part in."""
    held: bool = False
    """New partitions came: nothing is taken until this replica knows what the others know."""
    _waits: str | None = None
    """The version that is loaded and does not answer yet."""
    _ordered: str | None = None
    _refused: Loaded | None = None
    """How the last load of the version that is needed was refused."""
    _missed_ms: int | None = None
    """Since when the version that is needed is not there."""
    _again_ms: int = 0
    """When a version that was refused or not there is ordered again."""
    _out: set[str] = field(default_factory=set)
    """Rollouts that this replica takes no part in any more: the candidate was sick, or was refused."""
    _wish: _Wish | None = None
    _watch: Watch | None = None
    _passed: tuple[str, str] | None = None
    """Version and files that were refused here before a rollout of them began."""
    _reported: Figures | None = None
    _reported_ms: int = 0
    _started: int = 0

    def assigned(self) -> None:
        """New partitions came; the caller holds the pipeline's records back until :class:`Free`."""
        self.held = True

    def sick(self, rollout_id: str, why: str) -> None:
        """The candidate of a rollout turned sick here, and is taken back already."""
        decided = self.book.decided.get(rollout_id)
        if self.active is not None and self.active.id == rollout_id:
            self.active = self._watch = None
        elif decided is not None and decided.state == "promoted":  # and so the promotion came too late here
            self.answers = decided.stable
        self._out.add(rollout_id)
        self._wish = _Wish(rollout_id, "rolled_back", f"sick: {why}")

    def step(self, view: View) -> list[Action]:
        """What to do now. Each action is done before the next call."""
        actions: list[Action] = []
        self._hear(view)
        self._follow(actions)
        self._judge(view, actions)
        self._supply(view, actions)
        self._write(view, actions)
        if self.held and view.caught_up and self._settled():
            self.held = False
            actions.append(Free())
        return actions

    # -- the versions that are needed --------------------------------------------------------------------------

    def _hear(self, view: View) -> None:
        """Take in how a load ended."""
        loaded = view.loaded
        if loaded is None:
            return
        self._ordered = None
        if not loaded.refused:
            self._waits, self._refused, self._missed_ms = loaded.version, None, None
            return
        if loaded.missing:
            self._missed_ms = view.now_ms if self._missed_ms is None else self._missed_ms
            self._again_ms = view.now_ms + AGAIN_MS
            if view.now_ms - self._missed_ms < PATIENCE_MS:
                return
        self._refused, self._missed_ms = loaded, None
        self._again_ms = view.now_ms + PATIENCE_MS

    def _need(self, view: View) -> tuple[Purpose, str] | None:
        """The one version that must be loaded now, and why."""
        book, running = self.book, self.book.running
        if self.active is not None:
            return None
        if book.stable not in (None, self.answers):
            return "swap", book.stable or ""
        if running is not None:
            return ("join", running.candidate) if running.id not in self._out else None
        if view.meant is not None and self._may_start(view, view.meant):
            return "start", view.meant.version
        return None

    def _supply(self, view: View, actions: list[Action]) -> None:
        """Get the version that is needed, and put it to its use."""
        purpose, version = self._need(view) or (None, None)
        if self._waits is not None and self._waits != version:
            actions.append(Drop(self._waits))
            self._waits = None
        if self._refused is not None and self._refused.version != version:
            self._refused = None
        if purpose != "start" and self._wish is not None and self._wish.state == "running":
            self._wish = None
        if purpose is None or version is None:
            return
        if self._waits == version:
            self._use(purpose, version, view, actions)
        elif self._refused is not None and purpose != "swap":
            self._do_without(purpose, self._refused, view)
        elif self._ordered is None and view.now_ms >= self._again_ms:
            self._ordered = version
            actions.append(Order(version))

    def _use(self, purpose: Purpose, version: str, view: View, actions: list[Action]) -> None:
        running = self.book.running
        if purpose == "swap":
            self._waits, self.answers = None, version
            actions.append(Swap(version))
        elif purpose == "join" and running is not None:
            self._waits, self.active = None, running
            self._watch = Watch(self._limits.max, min(self._limits.min_records, FEWEST))
            self._reported, self._reported_ms = None, view.now_ms
            actions.append(Begin(running))
        elif view.meant is not None and self._wish is None:
            self._started += 1
            name = f"{view.meant.digest[:ID_DIGEST]}-{self.replica[:8]}{self._started}"
            self._wish = _Wish(name, "running", "a new version")

    def _do_without(self, purpose: Purpose, refused: Loaded, view: View) -> None:
        """A candidate cannot be loaded here: end its rollout for all, or do not begin one."""
        running = self.book.running
        self._again_ms = 0
        if purpose == "join" and running is not None:
            self._out.add(running.id)
            self._want(running.id, "rolled_back", f"refused: {refused.refused}")
        elif view.meant is not None:
            self._passed = view.meant.version, view.meant.digest

    def _may_start(self, view: View, meant: Meant) -> bool:
        """Whether this replica is to try the version that the settings mean."""
        book = self.book
        if not (view.owner and view.caught_up) or self.rules is None or book.pin is not None:
            return False
        if meant.version == self.answers or self._passed == (meant.version, meant.digest):
            return False
        states: tuple[State, ...] = ("rolled_back", "promoted") if meant.moving else ("rolled_back",)
        return not book.ended(meant.version, meant.digest[:ID_DIGEST], *states)

    # -- what the topic says -----------------------------------------------------------------------------------

    def _follow(self, actions: list[Action]) -> None:
        """Do with the rollout of this replica what the topic says of it."""
        active, running = self.active, self.book.running
        if active is None:
            return
        if running is None or running.id != active.id:
            decision = self.book.decided[active.id]
            if decision.state == "promoted":
                self.answers = active.candidate
            self.active = self._watch = None
            actions.append(Close(decision))
        elif running.share > active.share:
            self.active = running
            actions.append(Grow(running))

    def _settled(self) -> bool:
        """Whether each record would meet here the version that it would meet on any other replica."""
        stable, running = self.book.stable or self.answers, self.book.running
        if self.answers != stable:
            return self._refused is not None
        if running is None or running.mode == "shadow":
            return True
        # one that takes no part waits for the others to end it: elsewhere the candidate still answers its keys
        return self.active is not None

    # -- what this replica thinks of it ------------------------------------------------------------------------

    def _judge(self, view: View, actions: list[Action]) -> None:
        """Roll back what breaks a limit; where this replica decides for all, promote or give up."""
        active, figures, decides = self.active, view.figures, view.owner and view.caught_up
        if self.book.running is not None and decides:
            self._give_up(self.book.running, view)
        if active is None or figures is None or self._watch is None:
            return
        if view.now_ms - self._reported_ms >= REPORT_MS and figures != self._reported:
            self._reported, self._reported_ms = figures, view.now_ms
            actions.append(Write(Seen(self.pipeline, active.id, figures, self.replica, self.by, view.now_ms)))
        broken = self._watch.broken(figures)
        if broken:
            self._want(active.id, "rolled_back", broken)
        elif decides and self.rules is not None and self.rules.then == "promote":
            self._promote(active, figures, self._watch, view)

    def _promote(self, active: Decision, own: Figures, watch: Watch, view: View) -> None:
        """Decide for all once the rollout has lasted, with the figures of all replicas."""
        others = [seen.figures for name, seen in self.book.seen.items() if name != self.replica]
        figures, rules = total([own, *others]), self._limits
        lasted_ms = view.now_ms - active.time_ms
        if lasted_ms < rules.for_s * 1000 or figures.candidate.records < rules.min_records:
            return
        over = watch.over(figures)
        if over:
            self._want(active.id, "rolled_back", over)
        else:
            reason = f"{figures.candidate.records} records in {lasted_ms // 1000} s within the limits"
            self._want(active.id, "promoted", reason)

    def _give_up(self, running: Decision, view: View) -> None:
        """End a rollout that the settings started and do not mean any more."""
        meant = view.meant
        if not running.by.startswith(CLI) and meant is not None and meant.version == running.stable:
            self._want(running.id, "aborted", f"the settings mean {meant.version} again")

    # -- what this replica writes ------------------------------------------------------------------------------

    def _want(self, rollout_id: str, state: State, reason: str) -> None:
        """Have a decision written. The first one that this replica wanted of a rollout stays."""
        if self._wish is None or self._wish.id != rollout_id:
            self._wish = _Wish(rollout_id, state, reason)

    def _write(self, view: View, actions: list[Action]) -> None:
        """Write what is wanted, and write it again while it is not read back."""
        wish, running = self._wish, self.book.running
        if wish is None:
            return
        if wish.id in self.book.decided or (wish.state == "promoted" and not view.owner):
            self._wish = None
            return
        starts = wish.state == "running"
        if starts == (running is not None) or (not starts and running is not None and running.id != wish.id):
            self._wish = None  # it was read back, or another one was first
            return
        if view.now_ms < wish.again_ms:
            return
        wish.again_ms = view.now_ms + RETRY_MS
        if running is None:
            assert view.meant is not None, "a rollout begins with the version that the settings mean"
            rules, version = self._limits, view.meant.version
            running = Decision(
                self.pipeline, wish.id, self.answers, version, rules.mode, rules.share, "running", wish.reason,
                self.by, view.now_ms,
            )  # fmt: skip
        actions.append(
            Write(replace(running, state=wish.state, reason=wish.reason, by=self.by, time_ms=view.now_ms))
        )

    @property
    def _limits(self) -> RolloutSettings:
        return self.rules or RolloutSettings()
