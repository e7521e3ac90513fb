"""What is compared with what, and what is promised of it."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cascade
import drift
import limits
import spans
import versions
import vision
from payloads import ENCRYPTION, library_us
from peers import ANCHORS, PEERS
from repeats import CACHE, half_repeated
from report import Measured, Paced, Report
from stage import Broker, CpuWatch, Round, Running, Subject, busy_cores
from swap import swap
from workloads import WORKLOADS, Workload

HOP = Path(__file__).with_name("hop.py")
RTT_MS = 1
LATENCY_PER_S = (1000, 5000, 20_000)
LATENCY_PROMISED_PER_S = 5000
LATENCY_S = 6
AUTO_SWEEPS: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("json", (16, 64, 256, 1024), (0, 2)),
    ("wide", (1, 16, 64, 256), (0, 2)),
    ("jpeg", (1, 4, 16), (1, 2)),
    ("resnet", (1, 4), (1, 2)),
)
"""Workload, batch sizes and threads: from a model that takes microseconds to one that takes tens of milliseconds."""
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
        if "java" in found:
            add.at_most(group, "CPU over Java by hand", worker.cpu_us / found["java"].cpu_us, 1.0)

    def paths(self) -> None:
        """Fields inside objects, and fields of the record in the result, against a list of the same numbers."""
        plain, nested = self._workload("json"), self._workload("paths")

        def shaped(**output: Any) -> Workload:
            return replace(nested, settings={**nested.settings, "output": {"format": "json", **output}})

        found = self._compare(
            nested.name,
            [
                self._worker(plain, "a list"),
                self._worker(nested),
                self._worker(shaped(copy=["id", "reading.values.n0"]), "copy"),
                self._worker(shaped(body={"id": "record.id", "label": "prediction.label"}), "body"),
            ],
        )
        add, group, base = self.report, nested.name, found["a list"].cpu_us
        add.at_most(group, "CPU, dotted paths over a list", found["worker"].cpu_us / base, 1.25)
        add.at_most(group, "CPU, output.copy over a list", found["copy"].cpu_us / base, 3.0)
        add.at_most(group, "CPU, output.body over a list", found["body"].cpu_us / base, 4.5)

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

    def avro(self) -> None:
        """Avro records of 20 fields: against the quickest kept decoder, the run and the bare loop."""
        work = self._workload("avro")
        found = self._compare(work.name, [self._worker(work), self._loop(work, "bare")], work)
        floor = found["limit"].cpu_us + found["bare"].cpu_us
        ratio = found["worker"].cpu_us / floor
        self.report.at_most(work.name, "CPU over decoder, run and bare loop", ratio, 1.3)

    def frames(self) -> None:
        """Raw frames of 150 KB: fetching, joining and letting go of them is nearly all there is."""
        work = self._workload("frames")
        found = self._compare(work.name, [self._worker(work), self._loop(work, "bare")])
        worker, bare = found["worker"], found["bare"]
        self.report.at_most(work.name, "CPU over the bare loop", worker.cpu_us / bare.cpu_us, 1.5)
        self.report.at_least(work.name, "frames/s over the bare loop", worker.per_s / bare.per_s, 0.7)

    def references(self) -> None:
        """The same frames in a store, 32 asked for at once: against a client by hand that only fetches and answers."""
        port = self.folder / "shelf.port"
        port.unlink(missing_ok=True)
        shelf = subprocess.Popen([sys.executable, str(Path(__file__).with_name("shelf.py")), str(port)])
        try:
            while not port.exists() or not port.read_text():
                time.sleep(0.05)
            work = self._workload("references")
            found = self._compare(work.name, [self._worker(work), self._loop(work, "bare")])
        finally:
            shelf.kill()
            shelf.wait()
        worker, bare = found["worker"], found["bare"]
        self.report.at_most(work.name, "CPU over a client by hand", worker.cpu_us / bare.cpu_us, 1.25)
        self.report.at_least(work.name, "frames/s over a client by hand", worker.per_s / bare.per_s, 0.85)

    def jpeg(self) -> None:
        """Frames through a network of SqueezeNet's size, on one thread and on two."""
        self._frames("jpeg")

    def video(self) -> None:
        """Clips, of which one picture a second goes through a network of SqueezeNet's size."""
        work = self._workload("video")
        one = self._worker(work, "worker, 1 thread", model={**work.settings["model"], "threads": 1})
        found = self._compare(work.name, [one], work)
        ratio = found[one.name].cpu_us / found["limit"].cpu_us
        self.report.at_most(work.name, "CPU over decode + preprocess + run", ratio, 1.1)

    def audio(self) -> None:
        """Clips of 5 s through mel features and a small network."""
        work = self._workload("audio")
        one = self._worker(work, model={**work.settings["model"], "threads": 1})
        found = self._compare(work.name, [one], work)
        ratio = found["worker"].cpu_us / found["limit"].cpu_us
        self.report.at_most(work.name, "CPU over decode + features + run", ratio, 1.1)

    def resnet(self) -> None:
        """Frames through a network of ResNet-50's size."""
        self._frames("resnet")

    def text(self) -> None:
        """Texts through a sentence encoder: tokenizing, padding and runs of like length against the same by hand."""
        work = self._workload("text")
        # messaging costs a thousandth of a run here: the bare loop is left out
        found = self._compare(work.name, [self._worker(work), self._loop(work, "one_by_one")], work)
        worker = found["worker"]
        self.report.at_most(work.name, "CPU over compute limit", worker.cpu_us / found["limit"].cpu_us, 1.1)
        self.report.at_least(
            work.name, "records/s over one by one", worker.per_s / found["one_by_one"].per_s, 3.0
        )

    def int8(self) -> None:
        """INT8 that reads the camera's bytes against the usual loop over the float model."""
        work, plain = self._workload("int8"), self._workload("jpeg")
        two = {**work.settings["model"], "threads": 2}
        ways = [self._worker(work, "worker, 2 threads", model=two), self._loop(plain, "one_by_one")]
        found = self._compare(work.name, ways)
        ratio = found["worker, 2 threads"].per_s / found["one_by_one"].per_s
        self.report.at_least(work.name, "frames/s over one by one", ratio, 3.0)

    def vision(self) -> None:
        """Boxes, masks and classes of pixels from a model's outputs, against the usual way with OpenCV."""
        for name, ours, usual in vision.ways():
            found = [Measured("vision", f"{name}, worker"), Measured("vision", f"{name}, usual way")]
            for number in range(self.rounds + 1):
                for measured, way in zip(found, (ours, usual), strict=True):
                    us = vision.us_per_item(way)
                    if number:  # the first round warms up
                        measured.rounds.append(Round(us, 1e6 / us))
            self.report.measured += found
            ratio = found[0].cpu_us / found[1].cpu_us
            # the worker also looks for NaN in all of the candidates, which takes as long as reading them
            self.report.at_most(
                "vision", f"CPU of {name} over the usual way", ratio, 4.0 if name == "boxes" else 0.6
            )

    def cascade(self) -> None:
        """A small network for every frame and a large one for a fifth, against a pipeline for each on its part of the frames."""
        small, large = self._workload("jpeg"), self._workload("resnet")
        work, chosen, share = cascade.joined(small, large)
        self.report.titles[work.name] = work.title
        found = self._compare(
            work.name, [self._worker(work), self._worker(small, "small"), self._worker(chosen, "large")]
        )
        alone = found["small"].cpu_us + share * found["large"].cpu_us
        self.report.at_most(
            work.name, "CPU over small on all + large on its part", found["worker"].cpu_us / alone, 1.05
        )

    def auto(self) -> None:
        """What `auto` picks against the best of a sweep, for four very different models."""
        for name, sizes, threads in AUTO_SWEEPS:
            work = self._workload(name)
            subjects = [self._tuned(work, "auto", "auto")]
            subjects += [self._tuned(work, size, count) for size in sizes for count in threads]
            group = f"auto, {name}"
            found = self._compare(group, subjects)
            auto = found.pop("auto x auto").per_s
            best = max(found.values(), key=lambda measured: measured.per_s)
            self.report.at_least(group, f"records/s, auto over best ({best.name})", auto / best.per_s, 0.9)

    def _tuned(self, work: Workload, size: int | str, threads: int | str) -> Subject:
        return self._worker(
            work,
            f"{size} x {threads}",
            model={**work.settings["model"], "threads": threads},
            batching={"max_size": size},
        )

    def delivery(self) -> None:
        """Exactly once against at least once."""
        work = self._workload("json")
        both = [
            self._worker(work, "at least once", counts_records=True),
            self._worker(work, "exactly once", counts_records=True, delivery="exactly_once"),
        ]
        if self.broker.kind != "embedded":
            for subject in both:
                subject.records *= (
                    3  # a round ends with the commit of its last transaction: a wait, not a rate
                )
        found = self._compare("delivery", both)
        once, least = found["exactly once"], found["at least once"]
        self.report.at_most("delivery", "CPU, exactly over at least once", once.cpu_us / least.cpu_us, 1.0)
        self.report.at_least("delivery", "records/s, exactly over at least", once.per_s / least.per_s, 0.95)

    def rtt(self) -> None:
        """A broker one millisecond away."""
        work = self._workload("json")
        title = f"{RTT_MS} ms broker round trip"
        with self.broker.far_away(RTT_MS) as address:
            ways = [
                self._worker(work),
                self._worker(work, "worker, exactly once", counts_records=True, delivery="exactly_once"),
                self._loop(work, "one_by_one"),
                self._loop(work, "improved"),
            ]
            ways[2].records = 400
            for subject in ways:
                subject.bootstrap = address
            found = self._compare(title, ways)
        ratio = found["worker"].per_s / found["one_by_one"].per_s
        self.report.at_least(title, "records/s over one by one", ratio, 600)

    def telemetry(self) -> None:
        """Metrics topic and HTTP on against off; then with traces of 1 % besides."""
        work = self._workload("json")
        with spans.collector() as address:
            on = self._worker(work, "on")
            traced = self._worker(work, "on, traces", tracing={"otlp": address, "sample": 0.01})
            on.metrics = traced.metrics = True
            found = self._compare("telemetry", [self._worker(work, "off"), on, traced])
        for name in ("on", "on, traces"):
            ratio = found[name].cpu_us / found["off"].cpu_us
            self.report.at_most("telemetry", f"CPU, {name} over off", ratio, 1.05)

    def traces(self) -> None:
        """Traces on against off, in the loop without a broker: the dearest case there is, as for a rollout."""
        work = self._workload("json")
        for case, off, on in spans.measure(work, self.folder, self.rounds):
            for way, times in (("off", off), ("on", on)):
                rounds = [Round(us, 1e6 / us) for us in times]
                self.report.measured.append(Measured("traces", f"{case.name}, {way}", rounds))
            ratio = statistics.median(with_us / us for us, with_us in zip(off, on, strict=True))
            self.report.at_most("traces", f"CPU, {case.name}, on over off", ratio, case.bound)

    def drift(self) -> None:
        """Records compared with a profile against the same without one: the smallest network there is, and pictures."""
        for name in ("json", "jpeg"):
            work = self._workload(name)
            one = {"model": {**work.settings["model"], "threads": 1}} if name == "jpeg" else {}
            compared = self._worker(work, "drift", **one, **drift.settings_of(work, self.folder))
            found = self._compare(f"drift, {name}", [self._worker(work, "off", **one), compared])
            ratio = found["drift"].cpu_us / found["off"].cpu_us
            self.report.at_most(f"drift, {name}", "CPU, drift over off", ratio, 1.02)

    def rollout(self) -> None:
        """A canary at 10 % and a shadow against one version alone, in the loop without a broker: the dearest case there is.

        These records cost 2 us in all, so a hash and a list index per record can be seen.
        """
        work = self._workload("json")
        found = versions.measure(work, self.folder, self.rounds)
        for mode, bound in (("canary", 1.03), ("shadow", 1.05)):
            self.report.at_most("rollout", f"CPU, {mode} over one version", found[mode], bound)  # type: ignore[index]

    def payloads(self) -> None:
        """Wrapped values against the plain ones and the library's own call to unwrap them."""
        self._wrapped("payloads", ["gzip", "zstd"])
        self._wrapped("frames", ["aes-256-gcm"])

    def _wrapped(self, name: str, filters: Sequence[str]) -> None:
        """The same records plain, with a header that is read as well, and in each of these filters."""
        work, group = self._workload(name), f"{name}, wrapped"
        plain = self._worker(work, "plain")
        plain.headers = [("x-kind", b"a header as long as that of an encrypted value, which is read as well")]
        subjects, alone = [plain], {}
        for each in filters:
            alone[each] = library_us(work.values, each)
            unwraps = {**work.settings["input"], "unwrap": [each]}
            inside = replace(work, wrap=(each,), settings={**work.settings, "input": unwraps})
            keys = {"encryption": ENCRYPTION} if each == "aes-256-gcm" else {}
            subjects.append(self._worker(inside, each, **keys))
        found = self._compare(group, subjects)
        for each, library in alone.items():
            ratio = found[each].cpu_us / (found["plain"].cpu_us + library)
            self.report.at_most(group, f"CPU, {each} over plain + the library's call", ratio, 1.1)

    def cache(self) -> None:
        """Half of the records repeat earlier ones: with a cache and without, where a run is dear and where it is not."""
        for name, bound in (("jpeg", 0.6), ("json", 2.0)):
            plain = half_repeated(self._workload(name))
            group = f"{name}, half of it repeats"
            subjects = [
                self._worker(plain, "without cache"),
                self._worker(plain, "with cache", cache=CACHE[name]),
            ]
            for subject in subjects:
                subject.partitions = 1  # every partition is filled with the same values
                if self.broker.kind == "embedded":
                    subject.records = min(subject.records, 15_000)
            found = self._compare(group, subjects)
            ratio = found["with cache"].cpu_us / found["without cache"].cpu_us
            self.report.at_most(group, "CPU, with a cache over without", ratio, bound)

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
            running.round(300_000)  # what is fetched ahead has been at its limit once
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
        """At fixed rates, measured by `streaminfer bench`: both guarantees, and two loops where they can follow.

        And one way through the broker by itself, of which everything else needs two.
        """
        work = self._workload("json")
        ways = [
            self._worker(work, "at least once"),
            self._worker(work, "exactly once", delivery="exactly_once"),
            self._loop(work, "improved"),
            self._loop(work, "one_by_one"),
        ]
        if self.broker.kind == "embedded":
            del ways[1]  # it does not hide what is not committed yet
        source = self.folder / "records.jsonl"
        source.write_bytes(b"\n".join(work.values))
        self.report.paced += [self._hop(per_s, source) for per_s in LATENCY_PER_S]
        for subject in ways:
            running = subject.start(self.folder)
            try:
                for per_s in LATENCY_PER_S:
                    self.report.paced.append(self._paced(running, per_s, source))
                    if not self.report.paced[-1].held:
                        break
            finally:
                running.stop()
        promised = next(
            p for p in self.report.paced if p.name == "at least once" and p.per_s == LATENCY_PROMISED_PER_S
        )
        for name, bound in (("p50", 5.0), ("p99", 8.0)):
            self.report.at_most(promised.group, f"{name} ms", promised.latency_ms.get(name, math.inf), bound)
        self.report.at_most(promised.group, "share of a core", promised.cores, 0.12)

    def swap(self) -> None:
        """Latency around a change of the model's version."""
        self._wait_for_quiet("swap")
        swap(self.broker, self.folder, self.report, self.rounds, _say)

    def _hop(self, per_s: int, source: Path) -> Paced:
        wait_ms = 2 if self.broker.kind == "embedded" else 500  # as the reader of `streaminfer bench`
        trials = []
        for number in range(self.rounds):
            _say(f"latency: one hop, {per_s}/s, round {number + 1} of {self.rounds}")
            topic = f"hop-{uuid.uuid4().hex[:8]}"
            self.broker.create({topic: self.partitions})
            self._wait_for_quiet("latency")
            arguments = (self.broker.bootstrap, topic, self.partitions, per_s, LATENCY_S, source, wait_ms)
            command = [sys.executable, str(HOP), *map(str, arguments)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{HOP.name} ended with {done.returncode}")
            trials.append(json.loads(done.stdout))
            self.broker.delete([topic])
        return Paced.of("one hop, no worker", per_s, trials, 0.0)

    def _paced(self, running: Running, per_s: int, source: Path) -> Paced:
        """Some trials at one rate; the medians."""
        written = self.folder / "latency.json"
        trials, cores = [], []
        for number in range(self.rounds):
            _say(f"latency: {running.subject.name}, {per_s}/s, round {number + 1} of {self.rounds}")
            self._wait_for_quiet("latency")
            running.thawed()
            used = CpuWatch(running)
            try:
                _streaminfer("bench", running.config, "--rate", per_s, "--duration", LATENCY_S, "--source", source,
                             "--json", written)  # fmt: skip
            finally:
                cores.append(used.stop())
                running.frozen()
            trials.append(json.loads(written.read_bytes()))
            if not Paced.keeps_up(trials[-1]):
                break
        return Paced.of(running.subject.name, per_s, trials, statistics.median(cores))

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
            name,
            work,
            self._round_of(work),
            self.broker,
            self.partitions,
            settings=settings,
            counts_records=counts_records,
        )

    def _round_of(self, work: Workload) -> int:
        """Records of a round: short ones measure how soon a thawed process is in its stride."""
        return work.records if self.broker.kind == "embedded" else work.long_records

    def _loop(self, work: Workload, way: str) -> Subject:
        batching = way == "bare" or way in ANCHORS
        records = (
            self._round_of(work) if batching else work.single_records * (1 if way == "one_by_one" else 5)
        )
        return Subject(way, work, records, self.broker, self.partitions, way=way)

    def _peers(self, work: Workload) -> list[Subject]:
        """Those that are there (scripts/bench --peers and --anchors make them)."""
        subjects = []
        for way, peer in PEERS.items():
            if peer.there and not (peer.only_kafka and self.broker.kind == "embedded"):
                subject = self._loop(work, way)
                subject.warm_up = peer.warm_up
                subjects.append(subject)
        return subjects

    def _compare(
        self, group: str, subjects: Sequence[Subject], limit_of: Workload | None = None
    ) -> dict[str, Measured]:
        """Interleaved rounds of all subjects, each round begun by another: whoever comes first finds everything cold."""
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
                for name in _from(number, [*running]):
                    self._wait_for_quiet(group)
                    found[name].rounds.append(running[name].round())
                if limit_of is not None:
                    found["limit"].rounds.append(Round(limits.measure(limit_of), 0.0))
        finally:
            for subject in running.values():
                subject.stop()
        self.report.measured += found.values()
        return found


QUICK: Sequence[str] = ("json", "raw")
GROUPS: dict[str, Callable[[Suite], None]] = {
    "audio": Suite.audio,
    "json": Suite.json,
    "paths": Suite.paths,
    "raw": Suite.raw,
    "avro": Suite.avro,
    "frames": Suite.frames,
    "references": Suite.references,
    "jpeg": Suite.jpeg,
    "resnet": Suite.resnet,
    "video": Suite.video,
    "text": Suite.text,
    "int8": Suite.int8,
    "vision": Suite.vision,
    "delivery": Suite.delivery,
    "rtt": Suite.rtt,
    "telemetry": Suite.telemetry,
    "traces": Suite.traces,
    "payloads": Suite.payloads,
    "cache": Suite.cache,
    "partitions": Suite.spread,
    "backlog": Suite.backlog,
    "replicas": Suite.replicas,
    "rollout": Suite.rollout,
    "drift": Suite.drift,
    "latency": Suite.latency,
    "swap": Suite.swap,
    "auto": Suite.auto,
    "cascade": Suite.cascade,
}
"""By the name given on the command line."""
ONLY_ON = {"backlog": "kafka"}
"""The embedded broker keeps no million records."""


def _from(number: int, names: list[str]) -> list[str]:
    """All names once around, beginning at this one."""
    first = number % len(names)
    return names[first:] + names[:first]


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
