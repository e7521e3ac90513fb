"""A candidate on trial beside the stable version: which records it gets, and what both sides did so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress

from worker.batch import Batch, Columns, Shadow
from worker.serving import assignment
from worker.serving.servable import Servable

KEYS_KNOWN, KNOWN_BYTES_MAX = 100_000, 64
"""How many keys of up to which length are remembered with their side: at most about 20 MB."""
CONTROL_EVERY = 16
"""Slabs between two batches of the stable servable that are made as large as the candidate's."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one side of a rollout did since it began."""

    records: int = 0
    """Records that it worked on."""
    errors: int = 0
    """Of these, the ones that it rejected, for whatever reason."""
    infer_us: float = 0.0
    """Mean microseconds of model runs per record. Only runs of sizes that both sides had count, weighted alike, because a
    record of a large run takes less time than one of a small run. 0 on both sides until there are such runs."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Both sides of a rollout on this replica, counted since it began here."""

    stable: Arm = Arm()
    candidate: Arm = Arm()
    compared: int = 0
    """Records whose two answers were compared; 0 for a canary."""
    disagreed: int = 0
    """Of these, the ones whose answers differ; see :mod:`worker.serving.agreement`."""


@dataclass(slots=True)
class _Side:
    """The counts behind an :class:`Arm`."""

    records: int = 0
    errors: int = 0
    runs: dict[int, tuple[int, int]] = field(default_factory=lambda: defaultdict(lambda: (0, 0)))
    """By size of the run (its number of binary digits): records, microseconds of all their runs."""

    def add(self, batch: Batch) -> None:
        assert batch.outcomes is not None
        self.records += len(batch)
        self.errors += len(batch.outcomes.rejected)
        for run in batch.runs:
            if run.fragments is not None:
                continue  # answered from memory: that says nothing of the model's speed
            size = len(run.rows).bit_length()
            records, us = self.runs[size]
            took_us = max(0, run.ended_ns - run.started_ns) // 1000
            self.runs[size] = records + len(run.rows), us + took_us


def _per_record_us(weights: Mapping[int, float], runs: Mapping[int, tuple[int, int]]) -> float:
    """Mean time of a record, where runs of each size count by their weight."""
    return sum(weight * runs[size][1] / runs[size][0] for size, weight in weights.items()) / sum(
        weights.values()
    )


class Tally:
    """The counts of one rollout. It outlives the trial, and so it must not refer to a servable: that would stay open."""

    def __init__(self) -> None:
        self.figures = Figures()
        """For any thread; replaced whole, never changed in place."""
        self._stable, self._candidate = _Side(), _Side()
        self.passed_by = 0
        """Records that a shadow was too busy for."""
        self._compared = self._disagreed = 0

    def answered(self, batch: Batch, by_candidate: bool) -> None:
        """A batch of one side is back."""
        (self._candidate if by_candidate else self._stable).add(batch)
        self._sum_up()

    def shadowed(self, batch: Batch, compared: int, disagreed: int) -> None:
        """A shadow has answered a batch, and so many of its answers were compared."""
        self._candidate.add(batch)
        self._compared += compared
        self._disagreed += disagreed
        self._sum_up()

    def _sum_up(self) -> None:
        stable, candidate = self._stable, self._candidate
        weights = {size: float(seen[0]) for size, seen in candidate.runs.items() if size in stable.runs}
        arms = [
            Arm(side.records, side.errors, _per_record_us(weights, side.runs) if weights else 0.0)
            for side in (stable, candidate)
        ]
        self.figures = Figures(arms[0], arms[1], self._compared, self._disagreed)


class Trial:
    """See the module. The loop's thread alone uses it, except where something else is said.

    Args:
        rollout_id, share: decide which keys the candidate has; see :mod:`worker.serving.assignment`.
        stable: who answers whatever the candidate does not.
    """

    def __init__(self, rollout_id: str, share: float, stable: Servable, candidate: Servable) -> None:
        self.shadow: Shadow | None = None
        """Set right after the trial is made: from then on the candidate has no rows of its own."""
        self.stable = stable
        self.candidate = candidate
        self.tally = Tally()
        self.doubt: str | None = None
        """See :class:`worker.batch.Trial`."""
        self._below = assignment.slots_below(share)
        self._blake2_key = assignment.blake2_key(rollout_id)
        self._slabs = 0
        self._sides: dict[bytes | None, bool] = {}
        """Keys that were met lately, and whether the candidate has them: hashing costs ten times as much as looking."""

    def grow(self, share: float) -> None:
        """Give the candidate another share of the keys."""
        self._below = assignment.slots_below(share)
        self._sides.clear()

    def rows(self, columns: Columns) -> list[int]:
        """The rows that the candidate answers, in order; none where it is a shadow."""
        if self.shadow is not None or not self._below:
            return []
        sides = list(map(self._sides.get, columns.keys))
        if None in sides:
            self._assign(columns, sides)
        return list(compress(range(len(sides)), sides))

    def _assign(self, columns: Columns, sides: list[bool | None]) -> None:
        """Find the side of every row that has none yet."""
        if len(self._sides) > KEYS_KNOWN:
            self._sides.clear()
        for row, side in enumerate(sides):
            if side is not None:
                continue
            key = columns.keys[row]
            hashed = key
            if hashed is None:
                hashed = assignment.stand_in(columns.partitions[row].number, columns.offsets[row])
            side = sides[row] = assignment.slot_of(self._blake2_key, hashed) < self._below
            if key is not None and len(key) <= KNOWN_BYTES_MAX:
                self._sides[key] = side

    def overdue(self) -> None:
        """See :class:`worker.batch.Trial`."""
        self.doubt = "a batch took longer than limits.batch_timeout_s"

    def control(self) -> bool:
        """See :class:`worker.batch.Trial`: asked for each slab of which the candidate has a part."""
        self._slabs += 1
        return self._slabs % CONTROL_EVERY == 1

    def returned(self, batch: Batch) -> None:
        """A batch is back, answered. One that was answered by neither side counts for neither."""
        if batch.servable is self.candidate:
            self.tally.answered(batch, by_candidate=True)
        elif batch.servable is self.stable:
            self.tally.answered(batch, by_candidate=False)
