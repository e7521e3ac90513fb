"""What is compared with what, and what is promised of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import limits
from report import Measured, Report
from stage import PEERS, Broker, Round, Running, Subject, busy_cores, peer_python
from workloads import WORKLOADS, Workload

RTT_MS = 1
LATENCY_PER_S = 5000
QUIET_CORES = 0.15
"""Of other people's work beside which a round is taken as undisturbed."""


@dataclass
class Suite:
    """One run on one broker."""

    broker: Broker
    folder: Path
    report: Report
    rounds: int
    partitions: int = 12
    patience_s: float = 5.0
    """How long a round waits for the machine to be quiet."""

    def run(self, name: str) -> None:
        """Measure one group; what keeps it from being measured becomes a note."""
        if ONLY_ON.get(name, self.broker.kind) != self.broker.kind:
            self.report.notes.append(f"{name}: only on the {ONLY_ON[name]} broker")
            return
        try:
            GROUPS[name](self)
        except RuntimeError as error:
            self.report.notes.append(f"{name}: not measured: {str(error).strip().splitlines()[-1][:300]}")

    # -- groups: each compares subjects in interleaved rounds and adds the promises about them ---------------

    def json(self) -> None:
        """JSON records through a small network: against the limits and against ordinary ways."""
        work = self._workload("json")
        found = self._compare(
            work.name,
            [
                self._worker(work),
                self._loop(work, "bare"),
                self._loop(work, "one_by_one"),
                self._loop(work, "improved"),
                *self._peers(work),
            ],
            work,
        )
        worker, bare = found["worker"], found["bare"]
        floor = found["limit"].cpu_us + bare.cpu_us
        add, group = self.report, work.name
        add.at_most(group, "CPU over compute limit + bare loop", worker.cpu_us / floor, 1.3)
        add.at_least(group, "records/s over one by one", worker.per_s / found["one_by_one"].per_s, 60)
        for peer, bound in (("quix", 6.0), ("bytewax", 2.5)):
            if peer in found:
                add.at_least(group, f"records/s over {peer}", worker.per_s / found[peer].per_s, bound)

    def raw(self) -> None:
        """Raw tensors in and out: messaging is nearly all there is."""
        work = self._workload("raw")
        ways = [self._loop(work, way) for way in ("bare", "one_by_one", "improved")]
        found = self._compare(work.name, [self._worker(work), *ways], work)
        worker, bare = found["worker"], found["bare"]
        add, group = self.report, work.name
        add.at_most(group, "CPU over the bare loop", worker.cpu_us / bare.cpu_us, 1.5)
        add.at_least(group, "records/s over the bare loop", worker.per_s / bare.per_s, 0.7)
        add.at_least(group, "records/s over one by one", worker.per_s / found["one_by_one"].per_s, 150)

    def jpeg(self) -> None:
        """Frames through a network of SqueezeNet's size, on one thread and on two."""
        self._frames("jpeg")

    def resnet(self) -> None:
        """Frames through a network of ResNet-50's size."""
        self._frames("resnet")

    def delivery(self) -> None:
        """Exactly once against at least once."""
        work = self._workload("json")
        both = [
            self._worker(work, "at least once", counts_records=True),
            self._worker(work, "exactly once", counts_records=True, delivery="exactly_once"),
        ]
        found = self._compare("delivery", both)
        once, least = found["exactly once"], found["at least once"]
        self.report.at_most("delivery", "CPU, exactly over at least once", once.cpu_us / least.cpu_us, 1.0)
        self.report.at_least("delivery", "records/s, exactly over at least", once.per_s / least.per_s, 0.95)

    def rtt(self) -> None:
        """A broker one millisecond away."""
        work = self._workload("json")
        single = self._loop(work, "one_by_one")
        single.records = 400
        title = f"{RTT_MS} ms broker round trip"
        self.broker.set_rtt(RTT_MS)
        try:
            found = self._compare(title, [self._worker(work), single])
        finally:
            self.broker.set_rtt(0)
        ratio = found["worker"].per_s / found["one_by_one"].per_s
        self.report.at_least(title, "records/s over one by one", ratio, 600)

    def telemetry(self) -> None:
        """Metrics topic and HTTP on against off."""
        work = self._workload("json")
        on = self._worker(work, "on")
        on.metrics = True
        found = self._compare("telemetry", [self._worker(work, "off"), on])
        self.report.at_most("telemetry", "CPU, on over off", found["on"].cpu_us / found["off"].cpu_us, 1.05)

    def spread(self) -> None:
        """The same records over 1, 12 and 100 partitions."""
        work = self._workload("json")
        subjects = []
        for partitions in (1, 12, 100):
            subject = self._worker(work, f"{partitions} partitions")
            subject.partitions = partitions
            if self.broker.kind == "embedded":
                subject.records = 15_000  # as many as one of its partitions keeps
            subjects.append(subject)
        found = self._compare("partitions", subjects)
        one = found["1 partitions"].cpu_us
        for partitions, bound in ((12, 1.05), (100, 1.10)):
            ratio = found[f"{partitions} partitions"].cpu_us / one
            self.report.at_most("partitions", f"CPU, {partitions} over 1", ratio, bound)

    def backlog(self) -> None:
        """A million records waiting against fifty thousand; memory too."""
        work = self._workload("json")
        running = self._worker(work).start(self.folder)
        try:
            short, long = Measured("backlog", "50,000 waiting"), Measured("backlog", "1,000,000 waiting")
            for _ in range(3):
                self._wait_for_quiet("backlog")
                short.rounds.append(running.round(50_000))
            before = running.rss_bytes()
            long.rounds.append(running.round(1_000_000))
            grown = running.rss_bytes() / before
        finally:
            running.stop()
        self.report.measured += [short, long]
        self.report.at_most("backlog", "CPU, 1,000,000 over 50,000 waiting", long.cpu_us / short.cpu_us, 1.10)
        self.report.at_most("backlog", "RSS after over before", grown, 1.10)

    def replicas(self) -> None:
        """Two processes against one, while the broker shares the cores."""
        for name, bound in (("json", 1.4), ("jpeg", 1.8)):
            work = self._workload(name)
            one = self._worker(work, "1 replica", model={**work.settings["model"], "threads": 1})
            two = self._worker(work, "2 replicas", model={**work.settings["model"], "threads": 1})
            two.replicas = 2
            group = f"replicas, {name}"
            found = self._compare(group, [one, two])
            ratio = found["2 replicas"].per_s / found["1 replica"].per_s
            self.report.at_least(group, "records/s, 2 over 1", ratio, bound)

    def latency(self) -> None:
        """Five thousand records a second, measured by `streaminfer bench`; batches wait at most a millisecond."""
        work = self._workload("json")
        source, written = self.folder / "records.jsonl", self.folder / "latency.json"
        source.write_bytes(b"\n".join(work.values))
        running = self._worker(work, batching={"max_size": 256, "max_wait_ms": 1}).start(self.folder)
        cores, percentiles = [], []
        try:
            for number in range(self.rounds):
                _say(f"latency: round {number + 1} of {self.rounds}")
                running.frozen()
                self._wait_for_quiet("latency")
                running.thawed()
                cpu, began = running.cpu_s(), time.perf_counter()
                _streaminfer("bench", running.config, "--rate", LATENCY_PER_S, "--duration", 8, "--source", source,
                             "--json", written)  # fmt: skip
                cores.append((running.cpu_s() - cpu) / (time.perf_counter() - began))
                percentiles.append(json.loads(written.read_bytes()))
        finally:
            running.stop()
        if any(document["generator"]["limited"] for document in percentiles):
            self.report.notes.append("latency: the load generator itself was late in some round")
        group = f"latency at {LATENCY_PER_S} records/s"
        for name, bound in (("p50", 5.0), ("p99", 8.0)):
            value = statistics.median(document["latency_ms"][name] for document in percentiles)
            self.report.at_most(group, f"{name} ms", value, bound)
        self.report.at_most(group, "share of a core", statistics.median(cores), 0.12)

    # -- parts -----------------------------------------------------------------------------------------------

    def _wait_for_quiet(self, group: str) -> None:
        """Wait until nobody else uses the machine; when that does not come, note how busy it was."""
        deadline = time.monotonic() + self.patience_s
        while (busy := busy_cores()) > QUIET_CORES:
            if time.monotonic() > deadline:
                self.report.disturbed[group] = max(busy, self.report.disturbed.get(group, 0.0))
                return

    def _frames(self, name: str) -> None:
        work = self._workload(name)
        subjects = [
            self._worker(work, f"worker, {n} thread", model={**work.settings["model"], "threads": n})
            for n in (1, 2)
        ]
        found = self._compare(work.name, [*subjects, self._loop(work, "one_by_one")], work)
        one, two = found["worker, 1 thread"], found["worker, 2 thread"]
        add, group = self.report, work.name
        add.at_most(group, "CPU over decode + preprocess + run", one.cpu_us / found["limit"].cpu_us, 1.05)
        add.at_least(group, "frames/s, 2 threads over 1", two.per_s / one.per_s, 1.85)

    def _workload(self, name: str) -> Workload:
        work = WORKLOADS[name](self.folder)
        self.report.titles[work.name] = work.title
        return work

    def _worker(
        self, work: Workload, name: str = "worker", counts_records: bool = False, **settings: Any
    ) -> Subject:
        return Subject(
            name, work, work.records, self.broker, self.partitions, settings, counts_records=counts_records
        )

    def _loop(self, work: Workload, way: str) -> Subject:
        records = {"bare": work.records, "one_by_one": work.single_records}.get(way, work.single_records * 5)
        return Subject(way, work, records, self.broker, self.partitions, way=way)

    def _peers(self, work: Workload) -> list[Subject]:
        """The frameworks whose environments are there (scripts/bench --peers makes them)."""
        there = [way for way in PEERS if peer_python(way).exists()]
        return [self._loop(work, way) for way in there]

    def _compare(
        self, group: str, subjects: Sequence[Subject], limit_of: Workload | None = None
    ) -> dict[str, Measured]:
        """Interleaved rounds of all subjects."""
        running: dict[str, Running] = {}
        try:
            for subject in subjects:
                _say(f"{group}: starting {subject.name}")
                running[subject.name] = subject.start(self.folder)
            found = {name: Measured(group, name) for name in running}
            if limit_of is not None:
                found["limit"] = Measured(group, "limit", note=" (by hand, no Kafka)")
            for number in range(self.rounds):
                _say(f"{group}: round {number + 1} of {self.rounds}")
                for name, subject in running.items():
                    self._wait_for_quiet(group)
                    found[name].rounds.append(subject.round())
                if limit_of is not None:
                    found["limit"].rounds.append(Round(limits.measure(limit_of), 0.0))
        finally:
            for subject in running.values():
                subject.stop()
        self.report.measured += found.values()
        return found


QUICK: Sequence[str] = ("json", "raw")
GROUPS: dict[str, Callable[[Suite], None]] = {
    "json": Suite.json,
    "raw": Suite.raw,
    "jpeg": Suite.jpeg,
    "resnet": Suite.resnet,
    "delivery": Suite.delivery,
    "rtt": Suite.rtt,
    "telemetry": Suite.telemetry,
    "partitions": Suite.spread,
    "backlog": Suite.backlog,
    "replicas": Suite.replicas,
    "latency": Suite.latency,
}
"""By the name given on the command line."""
ONLY_ON = {"rtt": "embedded", "backlog": "kafka"}
"""The real broker cannot be slowed down; the embedded one keeps no million records."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _streaminfer(*arguments: object) -> None:
    """One command to its end.

    Raises:
        RuntimeError: it failed; with its last line.
    """
    command = [sys.executable, "-m", "worker", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]}: {done.stderr.strip()}")
