"""How many replicas and partitions a rate takes, counted from what one replica was found to keep. Pure.

The rule: a replica is planned at ``HEADROOM`` of what it keeps, and one replica may be missing (it restarts, or it is
updated) while the others keep the rate. The partitions are divided among replicas as Kafka does it: some have one more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from worker.bench.capacity import Capacity

HEADROOM = 0.7
"""Part of what a replica keeps that is planned for; the rest is for peaks, uneven keys and catching up."""
PARTITIONS_PER_REPLICA = 2
"""So many partitions per replica are advised: room to grow to twice as many replicas."""
BUSY = 0.8
"""From this part of the processors on, they are what limits a replica."""
LOOP = (0.8, 1.3)
"""Cores of a replica whose main loop is busy: Python's lock holds it to little more than one."""
MIB = 1 << 20
GIGABIT = 125_000_000.0
"""Bytes per second."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, and what the configuration says of it."""

    pipeline: str
    topics: tuple[str, ...]
    rate: float
    """Records per second."""
    p99_ms: float
    outage_s: float
    """An outage, after which its backlog is worked off."""
    partitions: int | None
    """Of the input topics together; None: nobody was asked."""
    bound_bytes: int
    """What records may take beside the warm process: the sum that ``check`` shows."""
    drain_s: float
    revoke_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes."""

    wanted: Wanted
    capacity: Capacity
    replicas: int
    """That the rate takes where the partitions allow it."""
    partitions: int
    """That are advised."""
    least_partitions: int
    """With fewer of them the rate cannot be kept."""

    @property
    def enough_partitions(self) -> bool:
        """Whether the topics have as many partitions as the plan has replicas; True where nobody was asked."""
        return self.wanted.partitions is None or self.wanted.partitions >= self.replicas

    @property
    def busiest_per_s(self) -> float:
        """Records/s of the replica with the most partitions, with equally busy partitions."""
        partitions = max(self.wanted.partitions or self.partitions, self.replicas)
        return self.wanted.rate * math.ceil(partitions / self.replicas) / partitions

    @property
    def spare_per_s(self) -> float:
        """What all replicas keep beyond the rate: so fast a backlog goes. Above zero, because one may be missing."""
        return self.replicas * self.capacity.records_per_s - self.wanted.rate

    @property
    def memory_bytes(self) -> int | None:
        """Most of one replica: the process as it was under load, and all that records may take; None where the first is not known."""
        rss = self.capacity.rss_bytes
        return None if rss is None else rss + self.wanted.bound_bytes

    @property
    def cores_per_replica(self) -> float | None:
        """Cores that a replica takes at what it keeps; None where that is not known."""
        cost = self.capacity.cpu_us_per_record
        return None if cost is None else cost * self.capacity.records_per_s / 1e6

    @property
    def grace_s(self) -> float:
        """Seconds that a replica has to end by itself."""
        return self.wanted.drain_s + self.wanted.revoke_s + 10


def plan(capacity: Capacity, wanted: Wanted) -> Plan:
    """Count."""
    keeps = capacity.records_per_s
    least = max(math.ceil(wanted.rate / (HEADROOM * keeps)), math.ceil(wanted.rate / keeps) + 1)
    replicas, advised, there = least, PARTITIONS_PER_REPLICA * least, wanted.partitions
    if there is not None and there >= least:
        advised = max(advised, there)
        # With 10 partitions on 4 replicas one has three of them: as many replicas as make the busiest one fit. With one
        # partition each it does.
        fits = (
            n
            for n in range(least, there + 1)
            if wanted.rate * math.ceil(there / n) / there <= HEADROOM * keeps
        )
        replicas = next(fits, there)
    return Plan(wanted, capacity, replicas, advised, least)


def limit_of(found: Plan) -> tuple[str, str]:
    """What ends the rate of one replica: a word, and the sentence about it."""
    capacity, wanted = found.capacity, found.wanted
    cores = found.cores_per_replica
    if not found.enough_partitions:
        return "partitions", (
            f"a partition keeps its order on one replica, so only {wanted.partitions} of them work"
        )
    hop_ms = _hop_ms(capacity)
    if capacity.generator_limited:
        return "unknown", "the load generator of the search was late: a replica may keep more"
    if cores is not None and capacity.cores and cores * capacity.replicas >= BUSY * capacity.cores:
        return "processors", (
            f"a replica takes {cores:.1f} of the {capacity.cores} processors of its machine"
            f"{_model_share(capacity)}: faster ones, or a smaller model (streaminfer optimize)"
        )
    if cores is not None and LOOP[0] <= cores <= LOOP[1]:
        return "main loop", (
            f"a replica takes {cores:.1f} processors: its main loop runs on one, so replicas help and threads do not"
        )
    if hop_ms is not None and hop_ms >= 0.5 * capacity.found_p99_ms:
        return "broker", (
            f"the way to the broker and back is {hop_ms:,.1f} ms of the {capacity.found_p99_ms:,.1f} ms at the 99th percentile"
        )
    return "latency", (
        f"beyond this rate the 99th percentile is above {capacity.p99_ms:g} ms{_model_share(capacity)}; a larger bound allows more"
    )


def _hop_ms(capacity: Capacity) -> float | None:
    """The part of the 99th percentile that is no stage of the worker's own: to the broker and from it, twice."""
    if "p99" not in capacity.total_ms or "p99" not in capacity.end_to_end_ms:
        return None
    return max(0.0, capacity.end_to_end_ms["p99"] - capacity.total_ms["p99"]) + capacity.broker_ms.get(
        "p99", 0.0
    )


def _model_share(capacity: Capacity) -> str:
    infer, total = capacity.infer_ms.get("p50"), capacity.total_ms.get("p50")
    if not infer or not total:
        return ""
    return f", and the model is {min(1.0, infer / total):.0%} of an answer's time"


def notes(found: Plan, digest: str, model: str | None) -> Iterator[str]:
    """What weakens the figures, one sentence each.

    Args:
        digest: of the configuration as it is now. model: ``name@version`` now, where it is known.
    """
    capacity, wanted = found.capacity, found.wanted
    if digest != capacity.digest:
        yield "the configuration is not the one that was measured; measure again"
    if model is not None and capacity.model is not None and model != capacity.model:
        yield f"the model is {model}, {capacity.model} was measured; measure again"
    if capacity.pipeline != wanted.pipeline:
        yield f"pipeline {capacity.pipeline} was measured, not {wanted.pipeline}"
    if wanted.p99_ms > capacity.p99_ms:
        yield f"the search kept {capacity.p99_ms:g} ms; with {wanted.p99_ms:g} ms a replica may keep more"
    if capacity.generator_limited:
        yield "the load generator of the search was late: a replica may keep more"
    if capacity.cpu_us_per_record is None:
        yield "what a record costs in CPU is not known: name metrics.topic, and search again"
    if capacity.replicas > 1:
        yield f"{capacity.replicas} replicas were measured together; one alone on a machine may keep more"


def document_of(found: Plan, said: list[str]) -> dict[str, Any]:
    """The plan as JSON."""
    wanted, capacity = found.wanted, found.capacity
    limit, why = limit_of(found)
    cores = found.cores_per_replica
    backlog = wanted.rate * wanted.outage_s
    return {
        "type": "streaminfer.plan",
        "schema": 1,
        "pipeline": wanted.pipeline,
        "rate": wanted.rate,
        "p99_ms": wanted.p99_ms,
        "replica": {
            "records_per_s": capacity.records_per_s,
            "planned_records_per_s": round(HEADROOM * capacity.records_per_s, 3),
            "headroom": HEADROOM,
            "cores": round(cores, 3) if cores is not None else None,
            "memory_bytes": found.memory_bytes,
            "memory_bound_bytes": wanted.bound_bytes,
        },
        "replicas": found.replicas,
        "partitions": {
            "there": wanted.partitions,
            "needed": found.least_partitions,
            "advised": found.partitions,
            "enough": found.enough_partitions,
        },
        "limit": {"name": limit, "why": why},
        "cores": round(wanted.rate * capacity.cpu_us_per_record / 1e6, 3)
        if capacity.cpu_us_per_record is not None
        else None,
        "network_bytes_per_s": {
            "in": round(wanted.rate * capacity.record_bytes),
            "out": round(wanted.rate * capacity.result_bytes),
        },
        "restart": {
            "grace_s": found.grace_s,
            "others_at": round(_others_at(found), 4),
        },
        "outage": {
            "seconds": wanted.outage_s,
            "backlog_records": round(backlog),
            "seconds_to_drain": round(backlog / found.spare_per_s, 1),
        },
        "keda": keda(found),
        "notes": said,
    }


def _others_at(found: Plan) -> float:
    """How busy the other replicas are while one restarts, as a part of what they keep."""
    return found.wanted.rate / ((found.replicas - 1) * found.capacity.records_per_s)


def keda(found: Plan) -> dict[str, Any]:
    """Values of the Helm chart."""
    partitions = found.wanted.partitions if found.enough_partitions else None
    cores = found.cores_per_replica
    memory = found.memory_bytes
    values: dict[str, Any] = {
        "keda": {
            "enabled": True,
            "minReplicas": found.replicas,
            "maxReplicas": max(found.replicas, partitions or found.partitions),
            # the records that a replica works off in 5 s
            "kafka": {"lagThreshold": max(1, round(5 * found.capacity.records_per_s))},
        },
        "terminationGracePeriodSeconds": math.ceil(found.grace_s),
    }
    resources: dict[str, Any] = {}
    if cores is not None:
        resources["requests"] = {"cpu": f"{max(0.1, math.ceil(10 * cores) / 10):g}"}
    if memory is not None:
        mib = f"{64 * math.ceil(memory / MIB / 64)}Mi"
        resources.setdefault("requests", {})["memory"] = mib
        resources["limits"] = {"memory": mib}
    return values | ({"resources": resources} if resources else {})


def lines(found: Plan, said: list[str]) -> Iterator[str]:
    """The plan for people."""
    wanted, capacity = found.wanted, found.capacity
    keeps = capacity.records_per_s
    yield f"{wanted.pipeline}: {wanted.rate:,g} records/s, the 99th percentile within {wanted.p99_ms:g} ms"
    yield ""
    yield _line(
        "replicas",
        f"{found.replicas}   one keeps {keeps:,.0f} records/s; planned at {HEADROOM:.0%} of that, and one may be missing",
    )
    yield from _partition_lines(found)
    limit, why = limit_of(found)
    yield _line("limit", f"{limit}: {why}")
    if (cores := found.cores_per_replica) is not None:
        assert capacity.cpu_us_per_record is not None
        total = wanted.rate * capacity.cpu_us_per_record / 1e6
        yield _line(
            "processors",
            f"{total:.2f} in all, {cores:.2f} for a replica at its limit ({capacity.cpu_us_per_record:,.1f} us for each record)",
        )
    yield _line("memory", _memory(found))
    bytes_in, bytes_out = wanted.rate * capacity.record_bytes, wanted.rate * capacity.result_bytes
    yield _line(
        "network",
        f"{bytes_in / 1e6:,.1f} MB/s in, {bytes_out / 1e6:,.1f} MB/s out: {(bytes_in + bytes_out) / GIGABIT:.0%} of 1 Gbit/s in all",
    )
    yield _line(
        "restart",
        f"a replica has {found.grace_s:g} s to drain and leave; meanwhile the others work at {_others_at(found):.0%} of what they keep",
    )
    yield _line("outage", _outage(found))
    for each in said:
        yield _line("note", each)


def _partition_lines(found: Plan) -> Iterator[str]:
    wanted = found.wanted
    there, topics = wanted.partitions, ", ".join(wanted.topics)
    if there is None:
        yield _line(
            "partitions",
            f"at least {found.least_partitions}, {found.partitions} advised; nobody was asked how many there are",
        )
        return
    if not found.enough_partitions:
        yield _line(
            "partitions",
            f"TOO FEW: {topics} has {there}, {found.least_partitions} are needed and {found.partitions} advised; "
            f"{found.replicas - there} of {found.replicas} replicas would be idle",
        )
        keeps = there * found.capacity.records_per_s
        yield _line("", f"as it is, {keeps:,.0f} records/s are kept at most; the lines below are of the plan")
        return
    most, fewest = math.ceil(there / found.replicas), there // found.replicas
    each = f"{most} for each replica" if most == fewest else f"{fewest} or {most} for each replica"
    yield _line(
        "partitions", f"{there} in {topics}: {each}, the busiest at {_busiest(found):.0%} of what it keeps"
    )


def _busiest(found: Plan) -> float:
    return found.busiest_per_s / found.capacity.records_per_s


def _memory(found: Plan) -> str:
    bound = found.wanted.bound_bytes / MIB
    if found.memory_bytes is None or found.capacity.rss_bytes is None:
        return f"at most {bound:,.0f} MiB for a replica beside the warm process, whose size is not known"
    warm = found.capacity.rss_bytes / MIB
    return (
        f"at most {found.memory_bytes / MIB:,.0f} MiB for a replica: {warm:,.0f} as it was under load, and {bound:,.0f} "
        "that records may take (see check)"
    )


def _outage(found: Plan) -> str:
    wanted = found.wanted
    backlog = wanted.rate * wanted.outage_s
    return (
        f"after {wanted.outage_s:g} s without answers {backlog:,.0f} records wait; they are worked off in "
        f"{backlog / found.spare_per_s:,.0f} s beside what comes in"
    )


def _line(name: str, text: str) -> str:
    return f"  {name:<11} {text}"
