"""Schedules whose records are samples of windows, and the judge of what is in the windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Any

from fakes import DEAD_LETTERS, FakeRollout, FakeSource, Message, NullLog, Record
from sim_world import LARGEST_RECORD, Judge, Replica, Schedule
from world import World

from worker.batch import Partition
from worker.errors import Reject
from worker.loop.budget import Claim
from worker.loop.caution import Caution
from worker.loop.delivery import Annotate
from worker.loop.series import Rules
from worker.loop.series_source import SeriesSource
from worker.loop.window import Window
from worker.topics import ByTopic


class FakeReader:
    """Samples are the values themselves; those that begin with ``bad`` are none."""

    def read(
        self, values: Sequence[bytes], keys: Sequence[bytes | None]
    ) -> list[tuple[Hashable, bytes] | Reject]:
        return [
            Reject("bad record")
            if key is None or value.startswith(b"bad") or len(value) >= LARGEST_RECORD
            else (key, value.partition(b" ")[0])
            for value, key in zip(values, keys, strict=True)
        ]

    def key(self, key: bytes | None) -> Hashable | None:
        return key


class WholeWindows(Judge):
    """Every result has the samples of its window, as a single reader from the first record on would have them."""

    def sent(self, who: Replica, message: Message) -> None:
        assert isinstance(self.schedule, WindowedSchedule)
        if message.topic == DEAD_LETTERS or message.value is None:
            return
        _, _, found = message.value.partition(b" ")
        expected = self.schedule.windows.get((message.source, message.offset))
        if found.startswith(b"huge") or found == b"expired":
            return
        if expected is None or found != b",".join(expected):
            raise self.broken(f"{message.source}/{message.offset}: {found!r}, expected {expected}")


class WindowedSchedule(Schedule):
    """See the module."""

    def __init__(self, seed: int, judges: Iterable[Judge] = (), cases: Counter[str] | None = None) -> None:
        rng = Random(seed + 3_000_000)
        self.rules = Rules(
            size := rng.choice([1, 2, 3, 5]),
            rng.randint(1, size),
            rng.choice([1, 3, 1_000]),
            rng.choice([3, 20, 10_000]),
        )
        self.windows: dict[tuple[Partition, int], list[bytes]] = {}
        self._claims: dict[Window, Claim] = {}
        self._samples: dict[Partition, dict[bytes, list[tuple[int, bytes]]]] = {}
        super().__init__(seed, judges, cases)
        self.limit_bytes = max(self.limit_bytes, 60_000)  # samples are held beside what is in flight
        self._tombstone = "drop"
        self.fetches = False
        self._named = 0

    decides = (0.0,)

    def make_rollouts(self, rng: Random, keeping: Random) -> list[FakeRollout]:
        return [
            FakeRollout(
                "a",
                frozenset(["in"]),
                max_bytes=LARGEST_RECORD - 1,
                tombstone="drop",
                max_size=rng.choice([1, 3, 8]),
                item_nbytes=rng.choice([10, 1_000]),
                slab_records=rng.choice([1, 4, 16]),
                max_wait_s=rng.choice([0.001, 0.004, 0.02]),
            )
        ]

    def _between(self, source: FakeSource) -> Any:
        readers = {"in": (FakeReader(), self.rules)}

        def committed(partitions: list[Partition]) -> dict[Partition, tuple[int | None, str]]:
            notes = self.kafka.notes
            return {p: (self.kafka.committed.get(p), notes.get(p, "")) for p in partitions}

        return SeriesSource(source, readers, {}, 1 << 40, committed, NullLog())

    def _built(self, between: Any, world: World) -> None:
        claim = self._claims[world.window] = world.intakes[0].share.claim()
        between.claims = ByTopic({"in": claim})

    def kept_bytes(self, replica: Replica) -> int:
        return int(self._claims[replica.window].nbytes)

    def _annotated(self, between: Any, caution: Caution) -> Annotate:
        return lambda positions: between.annotated(positions, caution.metadata(positions))

    def _good_record(self, record: Record) -> str:
        super()._good_record(record)
        self._named += 1
        record.value = b"s%d %s" % (self._named, record.value)
        record.key = self.rng.choice([b"a", b"a", b"b", b"c", b"d"])
        return "result"

    def _produce(self) -> None:
        before = {p: len(log) for p, log in self.kafka.logs.items()}
        super()._produce()
        (record,) = [log[-1] for p, log in self.kafka.logs.items() if len(log) > before[p]]
        self._judge_record(record)

    def _judge_record(self, record: Record) -> None:
        """The fate of a record in the hands of one reader that never stops; slow and simple."""
        place = record.partition, record.offset
        series = self._samples.setdefault(record.partition, {})
        fate = self.fates[place]
        if record.value is None:
            record.key = self.rng.choice([b"a", b"b"])
            series.pop(record.key, None)
            self.fates[place] = "dropped"
            return
        if fate in ("invalid", "too_large"):
            return
        expired = any(name == "ce_expirytime" for name, _ in record.headers or ())
        samples = series.get(record.key or b"", [])
        if samples and record.offset - samples[0][0] > self.rules.within:
            samples = []
        open_windows = [
            k for k, each in series.items() if each and record.offset - each[0][0] <= self.rules.within
        ]
        if not samples and len(open_windows) >= self.rules.keys:
            self.cases["too many windows"] += 1
            series.pop(record.key or b"", None)
            if not expired:
                self.fates[place] = "invalid"
            return
        samples = [*samples, (record.offset, record.value.partition(b" ")[0])]
        if len(samples) == self.rules.size:
            self.windows[place] = [sample for _, sample in samples]
            samples = samples[self.rules.hop :]
        elif not expired:
            self.fates[place] = "dropped"
        series[record.key or b""] = samples
