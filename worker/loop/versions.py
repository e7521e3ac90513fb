"""Batches of routes that two versions answer: what a sick one means, and what a shadow gets. Nothing waits for a shadow."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from worker.batch import Batch, Kept, Shadow, Trial
from worker.loop.admission import Rollout
from worker.loop.again import answered_by, twin_of
from worker.loop.budget import Claim
from worker.loop.intakes import Intakes
from worker.sizes import held_bytes


class Versions:
    """See the module. The loop's thread alone uses it.

    Args:
        submit: gives a batch to the pool.
    """

    def __init__(self, intakes: Intakes, submit: Callable[[Batch], None]) -> None:
        self._intakes = intakes
        self._submit = submit
        self._claims: dict[int, tuple[Batch, Claim]] = {}
        """Bytes of what shadows get, by the identity of the batch that is under way: the stable servable's, then its twin."""
        self._shadows: dict[Shadow, int] = {}
        """How many batches each has."""

    def answer_again(self, batch: Batch, why: str) -> None:
        """A batch comes back with a sick servable: whoever else answers its route gets it.

        Raises:
            SickModel: nobody else does.
        """
        rollout = self._rollout_of(batch)
        rollout.sick(batch.servable, why)
        shadow = _shadow_of(batch)
        if shadow is not None and id(batch) in self._claims:
            shadow.release()
            self._ended(shadow, batch)
        self._submit(answered_by(rollout.choose(), batch))

    def submitted(self, batch: Batch) -> None:
        """A batch is about to go to the stable servable: its shadow gets it afterwards, where it and the budget have room."""
        shadow = _shadow_of(batch)
        if shadow is None:
            return
        share = self._intakes[batch.columns.partitions[0].topic].share
        nbytes = held_bytes(batch.columns) + batch.cost_bytes
        if share.free < 2 * nbytes:  # the next slab must not wait for it
            shadow.pass_by(batch)
        elif shadow.reserve(batch):
            claim = share.claim()
            claim.adjust(nbytes)
            self._claims[id(batch)] = batch, claim
            self._shadows[shadow] = self._shadows.get(shadow, 0) + 1

    def returned(self, batch: Batch) -> None:
        """A batch is back, answered, that was made while a candidate was on trial."""
        cast("Trial", batch.trial).returned(batch)
        shadow = _shadow_of(batch)
        if shadow is None or id(batch) not in self._claims:
            return
        kept, batch.kept = batch.kept, None
        twin = twin_of(cast("Trial", batch.trial).candidate, batch)
        twin.trial = batch.trial
        _, claim = self._claims.pop(id(batch))
        self._claims[id(twin)] = twin, claim
        shadow.start(twin, cast("Kept", kept))

    def collect(self) -> None:
        """Take note of what shadows have done."""
        for shadow in [*self._shadows]:
            for twin, sick in shadow.back():
                self._ended(shadow, twin)
                rollout = self._rollout_of(twin)
                if sick is not None and rollout.trial is twin.trial:  # else it is not on trial any more
                    rollout.sick(twin.servable, sick)

    def _rollout_of(self, batch: Batch) -> Rollout:
        return self._intakes[batch.columns.partitions[0].topic].admission.rollouts[batch.route]

    def _ended(self, shadow: Shadow, batch: Batch) -> None:
        _, claim = self._claims.pop(id(batch))
        claim.free()
        self._shadows[shadow] -= 1
        if not self._shadows[shadow]:
            del self._shadows[shadow]


def _shadow_of(batch: Batch) -> Shadow | None:
    return batch.trial.shadow if batch.trial is not None else None
