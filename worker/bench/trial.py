"""One trial of an open-loop load: records sent on a schedule, matched with their outputs.

Latency counts from the moment when a record *should* have been sent. If the system stalls for a second, every record
due in that second shows it. A load that waits for results before it sends more would hide the stall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.batch import STAGES

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
LATE_MS = 5.0
"""If the load generator's 99th percentile of lateness exceeds this, the trial measures the generator."""
ACHIEVED = 0.99
"""A trial must reach at least this share of the wanted rate."""
WARM_UP_SHARE, WARM_UP_MAX_S = 0.1, 2.0
OFFSET_BITS = 44


def place_code(partition: int, offset: int) -> int:
    """One number for a record's place in the input topic."""
    return partition << OFFSET_BITS | offset


@dataclass(frozen=True)
class Sent:
    """The records of one trial, in the order they were due; aligned int64 arrays."""

    due_ns: NDArray[np.int64]
    """When each should have been sent; monotonic clock."""
    sent_ns: NDArray[np.int64]
    """When each was given to the Kafka client; monotonic clock."""
    places: NDArray[np.int64]
    """:func:`place_code` of the record's partition and offset; -1: the broker refused it."""


@dataclass(frozen=True)
class Answers:
    """Outputs as they were read; aligned arrays."""

    places: NDArray[np.int64]
    """:func:`place_code` of the input record each belongs to."""
    read_ns: NDArray[np.int64]
    dead: NDArray[np.bool_]
    """Whether it is a dead letter instead of a result."""
    stages_ms: dict[str, NDArray[np.float64]]
    """Per stage of ``latency_ms`` and ``total``; NaN for an output that carries none."""


@dataclass(frozen=True)
class Trial:
    """The figures of one trial."""

    wanted_per_s: float
    sent: int
    sent_per_s: float
    """By the times records were handed to the client."""
    answered_per_s: float
    """Counted records (warm-up left out) over the time in which their answers came."""
    results: int
    dead_letters: int
    lost: int
    duplicates: int
    """Outputs beyond the first for the same record."""
    refused: int
    """Records the broker did not take."""
    latency_ms: dict[str, float]
    """Of results, from due to read: ``p50`` .. ``p99_9`` and ``max``; empty when there were none."""
    stages_ms: dict[str, dict[str, float]]
    """The same percentiles of the stages the results report themselves; empty when they carry none."""
    late_p99_ms: float
    """How late the load generator was itself."""

    @property
    def generator_limited(self) -> bool:
        """Whether the load generator could not keep the schedule, so that the trial says little of the workers."""
        return self.late_p99_ms > LATE_MS or not self.reached

    @property
    def reached(self) -> bool:
        """Whether the load generator sent as many records per second as wanted, each in time or not."""
        return self.sent_per_s >= ACHIEVED * self.wanted_per_s

    def holds(self, p99_ms: float) -> bool:
        """Whether every record was answered, the 99th percentile within ``p99_ms``.

        A load generator that was late at some records does not matter here: latency counts from when they were due.
        """
        complete = self.results > 0 and not (self.lost or self.refused)
        return complete and self.reached and self.latency_ms["p99"] <= p99_ms

    def document(self) -> dict[str, Any]:
        """The trial as JSON."""
        return {
            "wanted_per_s": self.wanted_per_s,
            "sent_per_s": round(self.sent_per_s, 3),
            "answered_per_s": round(self.answered_per_s, 3),
            "records": {
                "sent": self.sent,
                "results": self.results,
                "dead_letters": self.dead_letters,
                "lost": self.lost,
                "duplicates": self.duplicates,
                "refused": self.refused,
            },
            "latency_ms": _rounded(self.latency_ms),
            "stages_ms": {stage: _rounded(values) for stage, values in self.stages_ms.items()},
            "generator": {"late_p99_ms": round(self.late_p99_ms, 3), "limited": self.generator_limited},
        }


def warm_up_s(duration_s: float) -> float:
    """Seconds at the beginning of a trial whose latencies are not counted."""
    return min(WARM_UP_SHARE * duration_s, WARM_UP_MAX_S)


def evaluate(sent: Sent, answers: Answers, wanted_per_s: float, skip_s: float) -> Trial:
    """Match the outputs with the records sent.

    Args:
        skip_s: records due in the first ``skip_s`` seconds count for losses and duplicates, not for latency.
    """
    accepted = np.flatnonzero(sent.places >= 0)
    order = accepted[np.argsort(sent.places[accepted])]
    rows = _rows_of(sent.places[order], order, answers.places)
    ours = np.flatnonzero(rows >= 0)
    rows, first = np.unique(rows[ours], return_index=True)  # the first output of each record
    outputs = ours[first]
    is_result = ~answers.dead[outputs]
    counted = sent.due_ns[rows] >= sent.due_ns[0] + skip_s * 1e9
    timed = is_result & counted
    read_ns = answers.read_ns[outputs]
    latency_ms = (read_ns - sent.due_ns[rows])[timed] / 1e6
    late_ms = np.maximum(sent.sent_ns - sent.due_ns, 0) / 1e6
    return Trial(
        wanted_per_s=wanted_per_s,
        sent=len(sent.due_ns),
        sent_per_s=_per_s(sent.sent_ns),
        answered_per_s=_per_s(read_ns[counted]),
        results=int(is_result.sum()),
        dead_letters=int((~is_result).sum()),
        lost=len(accepted) - len(rows),
        duplicates=len(ours) - len(rows),
        refused=len(sent.due_ns) - len(accepted),
        latency_ms=_percentiles(latency_ms),
        stages_ms={
            stage: found
            for stage in (*STAGES, "total")
            if (found := _percentiles(_known(answers.stages_ms[stage][outputs[timed]])))
        },
        late_p99_ms=float(np.percentile(late_ms, 99)),
    )


def _rows_of(
    sorted_places: NDArray[np.int64], rows: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The row of the record sent to each wanted place; -1 if this trial sent none there."""
    if not len(sorted_places):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(sorted_places.searchsorted(wanted), len(sorted_places) - 1)
    return np.where(sorted_places[at] == wanted, rows[at], -1)


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    found = dict(zip(PERCENTILES, map(float, np.percentile(values, list(PERCENTILES.values()))), strict=True))
    return {**found, "max": float(values.max())}


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _per_s(times_ns: NDArray[np.int64]) -> float:
    """Events per second between the first and the last of them."""
    took_s = float(np.ptp(times_ns)) / 1e9 if len(times_ns) > 1 else 0.0
    return (len(times_ns) - 1) / took_s if took_s else 0.0


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
