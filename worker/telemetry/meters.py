"""The counters, owned by the conductor's thread: plain numbers, no locks, one call per batch.

Other threads only see a :class:`Snapshot`, an independent copy made between two turns of the loop. Therefore
``in = ok + dead_letter + dropped + in flight`` holds in every number that the worker shows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from worker.batch import Batch, Partition, Run
from worker.telemetry.configured import Configured
from worker.telemetry.histogram import Histogram
from worker.telemetry.names import LOOP_SECTIONS, METRIC_STAGES, VERSIONS_KEPT
from worker.telemetry.observer import Microseconds
from worker.telemetry.part_counts import StepCounts, VersionCounts
from worker.telemetry.rss import rss_bytes


def _items_of(run: Run) -> tuple[int, ...]:
    """Items of the model run; nothing where none took place."""
    if run.fragments is not None:
        return ()
    return (len(run.rows) if run.counts is None else sum(run.counts),)


class ModelLabel(NamedTuple):
    """The model of a pipeline, as the metrics name it."""

    name: str
    version: str
    provider: str


class PartitionState(NamedTuple):
    """The worker's progress in one partition, as offsets of the next record; None = not known yet."""

    position: int | None
    committed: int | None
    end: int | None
    unreadable: int = 0
    """Offsets from ``position`` on that hold no record."""
    age_s: float = 0.0
    """Seconds since the broker last confirmed ``end``."""
    drain_s: float | None = None
    """Seconds until there is no lag, at the rate of the last minute; infinite where nothing moved."""

    @property
    def done(self) -> int | None:
        """Where another owner of the partition would begin."""
        return self.position if self.committed is None else self.committed

    @property
    def lag(self) -> int | None:
        """Records that exist and are not committed: another owner of the partition would have to process these."""
        done = self.done
        if self.end is None or done is None:
            return None
        return max(0, self.end - done - (self.unreadable if done == self.position else 0))


@dataclass(frozen=True, slots=True)
class KafkaState:
    """The worker's view of its brokers and its group."""

    available: bool = False
    """Whether any broker can be reached."""
    assigned: int = 0
    """Partitions assigned to this process."""
    errors: Counter[str] = field(default_factory=Counter)
    """Name of librdkafka's error code -> errors of the clients since the start."""
    outside: bool = True
    """Whether everyone outside for whom records wait, such as a store, can be reached."""
    throttled_s: float = 0.0
    """Seconds for which brokers have held back answers to the consumer, because of a quota."""


@dataclass(slots=True)
class PipelineCounts:
    """Counts of the records of one pipeline; ``model`` is None for records that no pipeline takes."""

    model: ModelLabel | None = None
    taken: int = 0
    ok: int = 0
    dead_letter: int = 0
    dropped: int = 0
    skipped: int = 0
    """Of the dropped ones, those that ``input.keep`` left out."""
    in_flight: int = 0
    items: int = 0
    batches: int = 0
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Failed records by (reason, stage)."""
    stages_us: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in METRIC_STAGES}
    )
    batch_size: Histogram = field(default_factory=Histogram)
    truncated: int = 0
    """Records of whose text a part was left out."""
    run_items: int = 0
    """Most items in one model run, at the last batch; 0 before the first one."""
    cache: Counter[str] = field(default_factory=Counter)
    """Records that were looked for in the cache, by result: hit, miss. Empty where there is none."""
    swaps: int = 0
    """How often another version of the model took over."""
    refused: Counter[str] = field(default_factory=Counter)
    """Versions of the model that were not taken over, by reason."""
    rollouts: Counter[str] = field(default_factory=Counter)
    """Rollouts that began (running) or ended here, by what became of them."""
    rollout_share: float = 0.0
    """Of the keys, those that a canary answers now."""
    drift: dict[str, float] = field(default_factory=dict)
    """Population stability index by feature, of the last window; empty where it is not known."""
    drift_measured: int = 0
    """Records that were measured to be compared with a profile."""
    steps: dict[str, StepCounts] = field(default_factory=dict)
    """By step, where there are several."""
    versions: dict[str, VersionCounts] = field(default_factory=dict)
    """Of what is counted above, the part of each of the last ``VERSIONS_KEPT`` model versions."""

    def of_version(self, version: str) -> VersionCounts:
        """The counts of one version; the one that was idle for longest goes when there are too many."""
        counts = self.versions.pop(version, None) or VersionCounts()
        if len(self.versions) >= VERSIONS_KEPT:
            del self.versions[next(iter(self.versions))]
        self.versions[version] = counts
        return counts

    def copy(self) -> PipelineCounts:
        return replace(
            self,
            errors=self.errors.copy(),
            refused=self.refused.copy(),
            cache=self.cache.copy(),
            rollouts=self.rollouts.copy(),
            stages_us={stage: histogram.copy() for stage, histogram in self.stages_us.items()},
            batch_size=self.batch_size.copy(),
            steps={name: step.copy() for name, step in self.steps.items()},
            versions={version: counts.copy() for version, counts in self.versions.items()},
        )

    def since(self, earlier: PipelineCounts) -> PipelineCounts:
        """The counters since ``earlier``; ``in_flight`` is a state and stays as it is."""
        return replace(
            self,
            taken=self.taken - earlier.taken,
            ok=self.ok - earlier.ok,
            dead_letter=self.dead_letter - earlier.dead_letter,
            dropped=self.dropped - earlier.dropped,
            skipped=self.skipped - earlier.skipped,
            items=self.items - earlier.items,
            batches=self.batches - earlier.batches,
            truncated=self.truncated - earlier.truncated,
            errors=self.errors - earlier.errors,
            swaps=self.swaps - earlier.swaps,
            refused=self.refused - earlier.refused,
            cache=Counter({result: n - earlier.cache[result] for result, n in self.cache.items()}),
            rollouts=self.rollouts - earlier.rollouts,
            drift_measured=self.drift_measured - earlier.drift_measured,
            stages_us={
                stage: now.since(earlier.stages_us.get(stage, Histogram()))
                for stage, now in self.stages_us.items()
            },
            batch_size=self.batch_size.since(earlier.batch_size),
            steps={
                name: now.since(earlier.steps.get(name, StepCounts())) for name, now in self.steps.items()
            },
            versions={
                version: now.since(earlier.versions.get(version, VersionCounts()))
                for version, now in self.versions.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All figures of the worker at one moment; counters cover the last ``interval_s``."""

    time_ms: int
    """Unix milliseconds."""
    clock_s: float
    """The meters' monotonic clock at the same moment."""
    interval_s: float
    pipelines: dict[str, PipelineCounts]
    partitions: dict[Partition, PartitionState]
    bytes_in: int
    bytes_out: int
    bytes_in_flight: int
    cpu_s: float
    rss_bytes: int
    rebalances: int
    transactions: Counter[str]
    rewinds: Counter[str]
    loop_s: dict[str, float]
    kafka: KafkaState = KafkaState()
    configured: Configured = field(default_factory=Configured)
    spans: Counter[str] = field(default_factory=Counter)
    """Spans of traces since the start, by what became of them; empty where nothing is traced."""

    def since(self, earlier: Snapshot) -> Snapshot:
        """The same moment, with the counters since ``earlier``."""
        nothing = PipelineCounts()
        return replace(
            self,
            interval_s=self.clock_s - earlier.clock_s,
            pipelines={
                name: now.since(earlier.pipelines.get(name, nothing)) for name, now in self.pipelines.items()
            },
            bytes_in=self.bytes_in - earlier.bytes_in,
            bytes_out=self.bytes_out - earlier.bytes_out,
            cpu_s=self.cpu_s - earlier.cpu_s,
            rebalances=self.rebalances - earlier.rebalances,
            transactions=self.transactions - earlier.transactions,
            rewinds=self.rewinds - earlier.rewinds,
            loop_s={section: spent - earlier.loop_s[section] for section, spent in self.loop_s.items()},
        )


class Meters:
    """The live counters. Every record is `taken` once and `counted` once; the other calls come once per batch.

    Args:
        models: the pipelines in file order with their models; None until the model is known (`model`). Any other
            name, used for records that no pipeline takes, gets its counters with its first record.
        clock, wall: monotonic and Unix seconds.
    """

    def __init__(
        self,
        models: Mapping[str, ModelLabel | None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.configured = Configured()
        self._pipelines = {name: PipelineCounts(model) for name, model in models.items()}
        self._clock = clock
        self._wall = wall
        self._started_s = clock()
        self._bytes_in = 0
        self._bytes_out = 0
        self._rebalances = 0
        self._transactions: Counter[str] = Counter()
        self._rewinds: Counter[str] = Counter()
        self._loop_s = dict.fromkeys(LOOP_SECTIONS, 0.0)
        self.spans: Callable[[], Counter[str]] = Counter
        """Counts the spans of traces; set once, where records are traced."""

    @property
    def live(self) -> Mapping[str, PipelineCounts]:
        """The counters themselves by pipeline, for a reader on this thread who changes nothing."""
        return self._pipelines

    def model(self, pipeline: str, label: ModelLabel) -> None:
        """Set the model that answers for the pipeline from now on."""
        self._of(pipeline).model = label

    def swapped(self, pipeline: str) -> None:
        """Count that another version of its model answers the pipeline."""
        self._of(pipeline).swaps += 1

    def refused(self, pipeline: str, reason: str) -> None:
        """Count a version of the pipeline's model that was not taken over."""
        self._of(pipeline).refused[reason] += 1

    def rollout(self, pipeline: str, state: str | None, share: float) -> None:
        """Count a rollout that began or ended here, unless it only grew; ``share`` of the keys is a canary's from now on."""
        counts = self._of(pipeline)
        if state is not None:
            counts.rollouts[state] += 1
        counts.rollout_share = share

    def drift(self, pipeline: str, psi: dict[str, float], measured: int) -> None:
        """Set the index of each feature; ``measured`` records in all have been looked at since the start."""
        counts = self._of(pipeline)
        counts.drift, counts.drift_measured = psi, measured

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None:
        """Count records that were read from Kafka and are now in flight; ``nbytes`` is the size of their values."""
        counts = self._of(pipeline)
        counts.taken += records
        counts.in_flight += records
        self._bytes_in += nbytes

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None:
        """Count records that are no longer in flight.

        ``ok`` and ``dead_letter`` are acknowledged, and of a model version. ``dropped`` have no output, or were given back
        to Kafka.
        """
        counts = self._of(pipeline)
        counts.ok += ok
        counts.dead_letter += dead_letter
        counts.dropped += dropped
        counts.in_flight -= ok + dead_letter + dropped
        if version:
            its = counts.of_version(version)
            its.ok += ok
            its.dead_letter += dead_letter

    def skipped(self, pipeline: str, records: int) -> None:
        self._of(pipeline).skipped += records

    def sent(self, nbytes: int) -> None:
        """Count bytes of values given to the producer, dead letters included."""
        self._bytes_out += nbytes

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1, version: str = "") -> None:
        counts = self._of(pipeline)
        counts.errors[reason, stage] += records
        if version:
            counts.of_version(version).errors[reason, stage] += records

    def batch(self, pipeline: str, batch: Batch) -> None:
        """Count a batch that the engine returned. The model saw each of its runs as one batch."""
        counts = self._of(pipeline)
        counts.run_items = batch.servable.run_items
        its = counts.of_version(batch.servable.model_version)
        if batch.feed is not None:
            counts.truncated += len(batch.feed.truncated)
        if batch.cache_hits or batch.cache_misses:
            counts.cache["hit"] += batch.cache_hits
            counts.cache["miss"] += batch.cache_misses
        for run in batch.runs:
            for items in run.sizes if run.sizes is not None else _items_of(run):
                counts.items += items
                counts.batches += 1
                its.items += items
                its.batches += 1
                counts.batch_size.add(items)
            for stage, us in run.stages_us.items():
                if stage not in counts.stages_us:  # fetch, where records are fetched
                    counts.stages_us[stage] = Histogram()
                counts.stages_us[stage].add(us, len(run.rows))
                if stage == "infer":
                    its.infer_us.add(us, len(run.rows))
            for name, part in (run.steps or {}).items():
                step = counts.steps.setdefault(name, StepCounts())
                step.items += part.items
                step.runs += part.runs
                step.us.add(part.us, len(run.rows))

    def hold_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None:
        """Add times from finished to released: one number for ``records`` records, or one per record."""
        self._of(pipeline).stages_us["hold"].add(us, records)

    def publish_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None:
        """Add times from released to acknowledged: one number for ``records`` records, or one per record."""
        self._of(pipeline).stages_us["publish"].add(us, records)

    def rebalance(self) -> None:
        self._rebalances += 1

    def transaction(self, result: str) -> None:
        self._transactions[result] += 1

    def rewind(self, cause: str) -> None:
        self._rewinds[cause] += 1

    def loop(self, section: str, seconds: float) -> None:
        """Add time that the conductor's thread spent in one of ``LOOP_SECTIONS``."""
        self._loop_s[section] += seconds

    def snapshot(
        self,
        bytes_in_flight: int = 0,
        partitions: Mapping[Partition, PartitionState] | None = None,
        kafka: KafkaState | None = None,
    ) -> Snapshot:
        """An independent copy of all counters since the start, with the states that the caller passes."""
        now = self._clock()
        return Snapshot(
            time_ms=int(self._wall() * 1000),
            clock_s=now,
            interval_s=now - self._started_s,
            pipelines={name: counts.copy() for name, counts in self._pipelines.items()},
            partitions=dict(partitions or {}),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            bytes_in_flight=bytes_in_flight,
            cpu_s=time.process_time(),
            rss_bytes=rss_bytes(),
            rebalances=self._rebalances,
            transactions=self._transactions.copy(),
            rewinds=self._rewinds.copy(),
            loop_s=self._loop_s.copy(),
            kafka=kafka or KafkaState(),
            configured=self.configured.copy(),
            spans=self.spans(),
        )

    def _of(self, pipeline: str) -> PipelineCounts:
        counts = self._pipelines.get(pipeline)
        return self._pipelines.setdefault(pipeline, PipelineCounts()) if counts is None else counts
