"""What a second version of a model costs: the loop and the engine in this process, without a broker, on keyed JSON records."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import structlog
from workloads import Workload

from worker.batch import Columns, Headers, Partition, Span
from worker.loop.accounts import Accounts
from worker.loop.admission import Admission
from worker.loop.at_least_once import AtLeastOnce
from worker.loop.budget import Budget
from worker.loop.caution import Caution
from worker.loop.conductor import Conductor
from worker.loop.intake import Intake
from worker.loop.intakes import Intakes
from worker.loop.isolation import Isolation
from worker.loop.limit import DeadLetterRate
from worker.loop.membership import Parts
from worker.loop.outbox import Letterhead, Outbox
from worker.loop.pool import InlinePool, Mailbox
from worker.loop.tracing import Tracer
from worker.loop.window import Window
from worker.sending import Sending
from worker.serving.engine import Engine
from worker.serving.load import load, load_servable
from worker.serving.rollout import Plan
from worker.settings import validate
from worker.telemetry.meters import Meters

PARTITIONS = [Partition("in", number) for number in range(4)]
KEYS = [b"camera-%d" % number for number in range(1000)]
RECORDS_MAX = 512
"""In one take."""
ROUND_S = 0.3
"""CPU time of one round."""

Mode = Literal["off", "canary", "shadow"]


class _Source:
    """An endless backlog."""

    fatal = None

    def __init__(self, values: list[bytes], headers: Headers | None) -> None:
        self._values = values
        self._headers = headers
        self._at = 0

    def subscribe(self, listener: Any) -> None:
        listener.on_assign(PARTITIONS)

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        each = max(1, min(most, RECORDS_MAX) // len(PARTITIONS))
        places = [place % len(self._values) for place in range(self._at, self._at + each)]
        columns, spans = Columns(), []
        for partition in PARTITIONS:
            start = len(columns)
            columns.values += [self._values[place] for place in places]
            columns.keys += [KEYS[place % len(KEYS)] for place in places]
            columns.headers += [self._headers and [*self._headers] for _ in range(each)]
            columns.timestamps_ms += [1_700_000_000_000] * each
            columns.offsets += range(self._at, self._at + each)
            columns.partitions += [partition] * each
            spans.append(Span(partition, start, start + each, self._at + each))
        self._at += each
        return columns, spans

    def pause(self, topics: Iterable[str]) -> None: ...

    def resume(self, topics: Iterable[str]) -> None: ...

    def seek(self, positions: dict[Partition, int]) -> None: ...

    def close(self, timeout_s: float) -> None: ...

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]:
        return positions

    def confirmed(self) -> dict[Partition, int]:
        return {}

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        return dict.fromkeys(partitions, (0, ""))


class _Sink:
    """Takes everything and says so at the next poll."""

    def __init__(self) -> None:
        self.rows = 0
        self._sent: list[tuple[Callable[..., None] | None, int]] = []

    def send(self, sending: Sending, on_delivery: Callable[..., None] | None) -> int:
        self.rows += len(sending)
        self._sent.append((on_delivery, len(sending)))
        return len(sending)

    def poll(self, timeout_s: float = 0.0) -> None:
        for told, rows in self._sent:
            if told is not None:
                told(None, None, rows)
        self._sent.clear()

    def max_bytes(self, topic: str) -> int:
        return 1 << 20

    def needs_key(self, topic: str) -> bool:
        return False


class Subject:
    """A replica without a broker, with a second version of the same model or without.

    Args:
        headers: of every record. tracer: told of records that leave.
    """

    def __init__(
        self,
        work: Workload,
        folder: Path,
        mode: Mode,
        headers: Headers | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        given = work.settings
        document = {
            **given,
            "input": {**given["input"], "topics": ["in"]},
            "output": {**given.get("output", {}), "topic": "out"},
            "model": {**given["model"], "threads": 0},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "nobody:9", "group.id": "bench"},
        }
        settings = validate(document, folder)
        (rollout,) = load(settings).values()
        self.candidate_runs_us: Callable[[], float] = lambda: rollout.figures().candidate.infer_us
        if mode != "off":
            candidate = load_servable(settings, rollout.route, time.perf_counter(), like=rollout.stable)
            rollout.begin(Plan("bench", mode, 0.1), candidate)
        source: Any = _Source(work.values, headers)
        self._sink = _Sink()
        window, limits = Window(), settings.limits
        budget, caution = Budget(limits.in_flight_bytes, 1), Caution({"in": 4096}, 3)
        admission = Admission([rollout], None, "dead_letter", limits.in_flight_bytes)
        parts = Parts(
            source,
            Intakes([Intake(admission, budget.shares[0], alone=True)], source),
            budget,
            window,
            Outbox(self._sink, Letterhead("dead", "bench", "bench"), DeadLetterRate(None, 1), tracer),
            self._sink,
            AtLeastOnce(source, self._sink, 0.5, time.monotonic_ns, caution.metadata),
            Isolation(caution, source, window),
            Accounts([Meters({rollout.route.name: None})], "bench", tracer=tracer),
            structlog.get_logger(),
            time.monotonic_ns,
        )
        self._conductor = Conductor(parts, InlinePool(Engine(), Mailbox()), 5.0, 5.0)
        source.subscribe(self._conductor.membership)

    def cpu_us(self) -> float:
        """CPU microseconds of this process per record that is answered, in one round."""
        rows, started_s = self._sink.rows, time.process_time()
        while time.process_time() - started_s < ROUND_S:
            self._conductor.turn()
        return (time.process_time() - started_s) / (self._sink.rows - rows) * 1e6


def measure(work: Workload, folder: Path, rounds: int) -> dict[Mode, float]:
    """CPU per record with a canary at 10 % and with a shadow, over that without a rollout: medians of interleaved rounds.

    The shadow's figure is without the runs of its model.
    """
    modes: tuple[Mode, ...] = ("off", "canary", "shadow")
    subjects = {mode: Subject(work, folder, mode) for mode in modes}
    found: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode, subject in subjects.items():
            found[mode].append(subject.cpu_us())
    runs_us = {"shadow": subjects["shadow"].candidate_runs_us()}
    return {
        mode: statistics.median(
            (us - runs_us.get(mode, 0.0)) / alone_us
            for us, alone_us in zip(found[mode], found["off"], strict=True)
        )
        for mode in modes
    }
