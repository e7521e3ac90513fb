"""A worker whose seconds pass when the test says so, for what its log says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from worker.batch import Partition
from worker.errors import Rejection
from worker.telemetry.letters_told import LettersTold
from worker.telemetry.meters import ModelLabel, PartitionState, PipelineCounts
from worker.telemetry.story import Scene, Teller

P = Partition("inc", 0)


class Told:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    @property
    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]

    def fields(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, name, fields in self.lines if name == event]


class World:
    """A worker whose second passes when the test says so."""

    def __init__(self, teller: Teller) -> None:
        self.teller = teller
        self.now_s = 1000.0
        self.brokers = True
        self.counts = PipelineCounts(ModelLabel("m", "1", "cpu"))
        self.end = self.done = 0
        self.partitions: Mapping[Partition, PartitionState] | None = None
        self.errors: Counter[str] = Counter()
        self.draining = False
        self.away = ""
        self.last: Scene | None = None

    def seconds(self, count: int) -> Iterator[None]:
        """A look after each of so many seconds; the caller changes what happens in each."""
        for _ in range(count):
            yield
            self.now_s += 1
            state = PartitionState(self.done, self.done, self.end)
            self.last = Scene(
                self.now_s,
                self.brokers,
                {P: state} if self.partitions is None else self.partitions,
                {"inc": self.counts},
                self.errors,
                "1.2.3.4:9092: refused (after 0ms in state CONNECT)",
                self.draining,
                away=self.away,
            )
            self.teller.look(self.last)

    def wait(self, count: int) -> None:
        for _ in self.seconds(count):
            pass

    def traffic(self, count: int, in_per_s: int, out_per_s: int) -> None:
        for _ in self.seconds(count):
            self.end += in_per_s
            self.done = min(self.end, self.done + out_per_s)

    def runs(self, count: int, us: int, items: int = 1, stage: str = "infer") -> None:
        """So many seconds with ten model runs each."""
        for _ in self.seconds(count):
            self.counts.batches += 10
            self.counts.items += 10 * items
            for each in ("infer", "decode", "encode"):
                self.counts.stages_us[each].add(us if each == stage else 100, 10 * items)


def refuse(
    world: World, letters: LettersTold, offset: int, reason: Any = "invalid", calls: tuple[str, ...] = ()
) -> None:
    why = Rejection(reason, "decode", f"bad {offset}", exception_class_name="builtins.KeyError", frames=calls)
    letters.add("inc", None, P, offset, why)
    world.counts.errors[reason, "decode"] += 1
