"""Which servables answer a route's records: the stable one, and for a while a candidate beside it.

Any thread may ask for a change: another stable version, the begin or the end of a rollout. The loop's thread carries the
changes out between two slabs, in the order in which they were asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from worker.batch import Servable as AnyServable
from worker.errors import SickModel
from worker.serving.route import Route
from worker.serving.servable import Servable
from worker.serving.shadow import Publish, Shadow
from worker.serving.trial import Arm, Figures, Tally, Trial

__all__ = ["Arm", "Figures", "Plan", "Rollout"]

SHADOW_S = 2.0
"""Longest wait at the end of the process for a run of a shadow."""

Swapped = Callable[["Rollout", Servable], None]
"""Called on the loop's thread when another servable answers from now on, with the one that answered before."""
Retired = Callable[["Rollout", Servable], None]
"""Called on the loop's thread with a servable that gets no further batch. Batches may still be pinned to it."""
Sick = Callable[["Rollout", str], None]
"""Called on the loop's thread when the candidate is sick, with what is wrong. It gets no further batch by then."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One rollout: how the candidate takes part."""

    id: str
    """Names the rollout everywhere; decides with a record's key which side the record falls on."""
    mode: Literal["canary", "shadow"]
    """``canary``: the candidate answers ``share`` of the keys. ``shadow``: it answers every record as well, and its
    answers are compared, not published."""
    share: float
    """Part of the keys, 0 to 1; see :mod:`worker.serving.assignment`. A shadow has no use for it."""


class Rollout:
    """A route with the servables that answer it.

    :meth:`offer`, :meth:`begin`, :meth:`grow`, :meth:`promote`, :meth:`end`, :meth:`hold` and :meth:`figures` are for any
    thread. A change counts from the next slab on; while the worker is idle, from the loop's next look at it.

    Args:
        stable: answers every record that no candidate answers.
    """

    def __init__(self, route: Route, stable: Servable) -> None:
        self.route = route
        self.on_swap: Swapped = lambda _rollout, _before: None
        self.on_retire: Retired = lambda _rollout, _servable: None
        self.on_sick: Sick = lambda _rollout, _why: None
        self.ended: Plan | None = None
        """The rollout that ended last; for the loop's thread."""
        self.publish: Publish | None = None
        """Gets what a shadow answers, on the shadow's thread; None: nobody wants it."""
        self.make_shadow: Callable[[Trial], Shadow] = lambda trial: Shadow(trial, self.publish)
        self.held = False
        """The route's intake takes nothing; see :meth:`hold`."""
        self._stable = stable
        self._candidate: Servable | None = None
        self._plan: Plan | None = None
        self._trial: Trial | None = None
        self._shadow: Shadow | None = None
        self._tally = Tally()
        """Of the rollout that runs, or else of the last one."""
        self._orders: deque[Callable[[], None]] = deque()
        """Changes that were asked for and are not carried out."""
        self._unborn: set[Servable] = set()
        """Servables that wait in an order; they are nobody's yet."""
        self._asked = self._begun = 0
        """Rollouts that were asked for, and those that the loop has begun."""

    # -- for any thread ------------------------------------------------------------------------------------

    @property
    def stable(self) -> Servable:
        """Who answers whatever no candidate answers."""
        return self._stable

    @property
    def candidate(self) -> Servable | None:
        """Who is on trial beside it; None while no rollout runs."""
        return self._candidate

    @property
    def plan(self) -> Plan | None:
        """The rollout that runs; None while none does."""
        return self._plan

    @property
    def waiting(self) -> bool:
        """Whether a change was asked for that does not count yet."""
        return bool(self._orders)

    def offer(self, servable: Servable) -> None:
        """Let another servable be the stable one. It is warm and fits the route."""
        self._ask(lambda: self._take_over(servable), servable)

    def begin(self, plan: Plan, candidate: Servable) -> None:
        """Put a candidate on trial. It is warm and fits the route. A rollout that runs ends first."""
        self._asked += 1
        self._ask(lambda: self._begin(plan, candidate), candidate)

    def grow(self, share: float) -> None:
        """Change the share of a canary. Keys that the candidate has stay with it as long as the share only grows."""
        self._ask(lambda: self._grow(share))

    def promote(self) -> None:
        """Let the candidate be the stable one. Without a rollout this does nothing."""
        self._ask(self._promote)

    def end(self) -> None:
        """Take the candidate back: the stable one answers everything again. Without a rollout this does nothing."""
        self._ask(self._end)

    def hold(self, on: bool) -> None:
        """While on, the route's intake takes nothing, and neither do routes that share its topics.

        Records that are not submitted yet wait; nothing is lost, and the group is not left. The watchdog does not take that
        for a stall for ``HELD_EXCUSED_S`` of :mod:`worker.loop.intakes`.
        """
        self.held = on

    def figures(self) -> Figures:
        """What both sides did since :meth:`begin`; after the end of a rollout, what they had done by then."""
        return self._tally.figures if self._asked == self._begun else Figures()

    # -- for the loop's thread -----------------------------------------------------------------------------

    @property
    def trial(self) -> Trial | None:
        """What the loop must know of the rollout that runs; None while none does."""
        return self._trial

    def choose(self) -> Servable:
        """Who answers the records of the slab that is being closed. Asked once for each slab, never within one."""
        while self._orders:
            self._orders.popleft()()
        return self._stable

    def sick(self, servable: AnyServable, why: str) -> None:
        """Decide what a sick servable means.

        A candidate that is sick, or was one, is ended here; its batch is to be answered again, by the stable one.

        Raises:
            SickModel: it is the stable one. No other one can answer, so the process must end.
        """
        if servable is self._candidate:
            self._end()
            self.on_sick(self, why)
        if servable is self._stable:
            raise SickModel(
                f"model {servable.model_name} is sick: {why}; nothing of this batch was committed or dead-lettered"
            )

    def close(self) -> None:
        """Close every servable of the route. No batch may be in the pool any more."""
        self._close_shadow(SHADOW_S)
        for servable in {self._stable, self._candidate, *self._unborn} - {None}:
            assert servable is not None
            servable.close()

    # -- changes, on the loop's thread -----------------------------------------------------------------------

    def _ask(self, order: Callable[[], None], servable: Servable | None = None) -> None:
        if servable is not None:
            self._unborn.add(servable)
        self._orders.append(order)

    def _take_over(self, servable: Servable) -> None:
        self._unborn.discard(servable)
        before, self._stable = self._stable, servable
        if self._trial is not None:
            self._trial.stable = servable
        self.on_swap(self, before)
        self.on_retire(self, before)

    def _begin(self, plan: Plan, candidate: Servable) -> None:
        self._end()
        self._unborn.discard(candidate)
        self._begun += 1
        self._candidate, self._plan = candidate, plan
        self._trial = Trial(plan.id, plan.share, self._stable, candidate)
        if plan.mode == "shadow":
            self._trial.shadow = self._shadow = self.make_shadow(self._trial)
        self._tally = self._trial.tally

    def _grow(self, share: float) -> None:
        if self._trial is not None and self._plan is not None:
            self._trial.grow(share)
            self._plan = replace(self._plan, share=share)

    def _promote(self) -> None:
        if (candidate := self._leave()) is not None:
            self._take_over(candidate)

    def _end(self) -> None:
        if (candidate := self._leave()) is not None:
            self.on_retire(self, candidate)

    def _leave(self) -> Servable | None:
        """The rollout that runs is over; who was its candidate, if one runs."""
        candidate = self._candidate
        if candidate is not None:
            self.ended = self._plan
        self._candidate = self._plan = self._trial = None
        self._close_shadow(0.0)
        return candidate

    def _close_shadow(self, timeout_s: float) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.close(timeout_s)
