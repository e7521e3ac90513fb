"""A broker, topics, and the processes that are measured on them.

A subject is one or more processes that turn input records into output records. It is started once and stays, frozen
(SIGSTOP) except in its own rounds: its topic is filled meanwhile, so it meets a backlog, and whoever is not measured
costs nothing. Its CPU clocks and the output topic are read from outside: the same for a worker, a bare loop or
somebody else's framework.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from confluent_kafka import OFFSET_END, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from payloads import wrapped
from peers import PEERS
from workloads import Workload

from worker.batch import Headers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROXIED_DOOR = 3
"""Ports between the broker's first and the one that sends its clients on to the proxy (scripts/kafka)."""
PATIENCE_S = 120.0
POLL_S = 0.004
POLLED = 0.01
"""How often the outputs are counted: as a part of the time it has taken so far, but not more often than the first says.
Asking costs the broker something, and what is measured runs on the same processors."""
EMBEDDED_BYTES_PER_PARTITION = 4_500_000
"""What may wait unread: the embedded broker keeps 5 MB per partition and forgets the oldest beyond that."""


@dataclass
class Broker:
    """Where a run takes place."""

    kind: str
    """``embedded`` or ``kafka``."""
    bootstrap: str
    _commands: IO[str] | None = None
    """Of the embedded broker's process."""
    _far: str = ""
    """Address behind the proxy, where there is one."""
    _distance: IO[str] | None = None
    """Commands of the proxy's process."""
    _admin: AdminClient | None = None

    def create(self, topics: dict[str, int]) -> None:
        if self._commands is not None:
            for name, partitions in topics.items():
                print("topic", name, partitions, file=self._commands, flush=True)
        self._admin = self._admin or AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})
        if self._commands is None:
            for future in self._admin.create_topics(
                [NewTopic(*topic, 1) for topic in topics.items()]
            ).values():
                future.result(30)
        _wait(lambda: self._all_there(topics), f"topics {sorted(topics)}")

    def delete(self, topics: Sequence[str]) -> None:
        """Give the disk back; the embedded broker forgets by itself."""
        if self._commands is None and self._admin is not None:
            self._admin.delete_topics(list(topics))

    @contextmanager
    def far_away(self, ms: float) -> Iterator[str]:
        """The address by which the broker has this round trip meanwhile.

        Raises:
            RuntimeError: it is somebody else's broker.
        """
        commands, address = (
            (self._commands, self.bootstrap) if self._commands else (self._distance, self._far)
        )
        if commands is None:
            raise RuntimeError("a given broker cannot be moved away: unset KAFKA_BOOTSTRAP_SERVERS")
        print("rtt", ms, file=commands, flush=True)
        try:
            yield address
        finally:
            print("rtt", 0, file=commands, flush=True)

    def _all_there(self, topics: dict[str, int]) -> bool:
        assert self._admin is not None
        known = self._admin.list_topics(timeout=10).topics
        return all(
            name in known
            and len(known[name].partitions) == count
            and all(p.leader >= 0 for p in known[name].partitions.values())
            for name, count in topics.items()
        )


@contextmanager
def embedded_broker() -> Iterator[Broker]:
    """The development broker in a process of its own, so that its CPU time is nobody else's."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "embedded.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Broker("embedded", process.stdout.readline().strip(), process.stdin)
    finally:
        process.kill()
        process.wait()


@dataclass
class Subject:
    """One process under measurement, with topics of its own."""

    name: str
    workload: Workload
    records: int
    """Per round."""
    broker: Broker
    partitions: int
    bootstrap: str = ""
    """Where it meets the broker, when not at the broker's own address."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys that differ from the workload's configuration, such as ``delivery``."""
    way: str = "worker"
    """``worker``, one of :mod:`loops`, or one of :mod:`peers`."""
    replicas: int = 1
    metrics: bool = False
    """With a metrics topic and an HTTP port."""
    headers: Headers = field(default_factory=list)
    """Of every record."""
    warm_up: int = 0
    """Records before its rounds; 0 = a tenth of a round."""
    counts_records: bool = False
    """Count the outputs by reading them: needed where a topic holds transaction markers too."""

    def start(self, folder: Path) -> Running:
        """Start it, wait until it has its partitions, and let it warm up on a tenth of a round.

        Raises:
            RuntimeError: it ended, or did not answer; with its last words.
        """
        run = f"{re.sub('[^a-z0-9]+', '-', self.name)}-{uuid.uuid4().hex[:6]}"
        topics = {f"{run}.in": self.partitions, f"{run}.out": self.partitions, f"{run}.dead": 1}
        if self.metrics:
            topics[f"{run}.metrics"] = 1
        self.broker.create(topics)
        config = folder / f"{run}.yaml"
        config.write_text(yaml.safe_dump(self._config(run)))
        processes = [self._spawn(run, config, folder, index) for index in range(self.replicas)]
        running = Running(self, run, config, processes, list(topics))
        try:
            if self.way not in PEERS or PEERS[self.way].announces:
                _wait(lambda: all(map(_assigned, processes)), f"{self.name} to join its group")
            running.round(self.warm_up or max(self.records // 10, 20))
        except BaseException:
            running.stop()
            raise
        return running

    def _config(self, run: str) -> dict[str, Any]:
        own = self.workload.settings
        metrics = {"topic": f"{run}.metrics", "interval_s": 1, "http": "127.0.0.1:0"} if self.metrics else {}
        return {
            **own,
            **({"metrics": metrics} if metrics else {}),
            "input": {**own["input"], "topics": [f"{run}.in"]},
            "output": {**own["output"], "topic": f"{run}.out"},
            "dead_letter": {"topic": f"{run}.dead"},
            "limits": {"stall_s": 3600},  # frozen while others are measured: neither a stall nor a death
            "kafka": {
                "bootstrap.servers": self.bootstrap or self.broker.bootstrap,
                "group.id": run,
                "session.timeout.ms": 45_000,
            },
            **self.settings,
        }

    def _spawn(self, run: str, config: Path, folder: Path, index: int) -> Process:
        if self.way == "worker":
            command = [sys.executable, "-m", "worker", "run", str(config)]
        else:
            job = config.with_suffix(".json")
            job.write_text(
                json.dumps(
                    {
                        "way": self.way,
                        "workload": self.workload.name,
                        "folder": str(folder),
                        "model": self.workload.settings["model"]["path"],
                        "config": str(config),
                        "broker": self.broker.kind,
                        "bootstrap": self.bootstrap or self.broker.bootstrap,
                        "group": run,
                        "input": f"{run}.in",
                        "output": f"{run}.out",
                        "outputs": self.partitions,
                        "batch": self.workload.batch,
                    }
                )
            )
            if self.way in PEERS:
                command = PEERS[self.way].command(job)
            else:
                command = [sys.executable, str(HERE / "loops.py"), str(job)]
        log = folder / f"{run}-{index}.log"
        environment = os.environ | (PEERS[self.way].environment if self.way in PEERS else {})
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment
            )
        return Process(process, log)


@dataclass
class Process:
    """A started process, its log and its CPU clock."""

    popen: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """CPU seconds of all its threads, by the kernel's clock of that process: exact to microseconds."""
        return time.clock_gettime((~self.popen.pid << 3) | 2)

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def check(self) -> None:
        if self.popen.poll() is not None:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.log.stem} ended with exit code {self.popen.returncode}:\n{words}")


@dataclass(frozen=True)
class Round:
    """What one subject did in one round."""

    cpu_us: float
    """Per record, all its processes together."""
    per_s: float


class Running:
    """A warm subject."""

    def __init__(
        self, subject: Subject, run: str, config: Path, processes: list[Process], topics: list[str]
    ) -> None:
        self.subject = subject
        self.config = config
        self.processes = processes
        self._topics = topics
        self._input, self._output = f"{run}.in", f"{run}.out"
        meter = _RecordMeter if subject.counts_records else _EndMeter
        self._meter = meter(subject.broker.bootstrap, self._output, subject.partitions)
        self._producer = _filler(subject.broker.bootstrap)

    def round(self, records: int | None = None) -> Round:
        """Fill, thaw, time the way to the last output, freeze."""
        count = records or self.subject.records
        self._signal(signal.SIGSTOP)
        target = self._meter.outputs() + count
        self._fill(count)
        cpu, began = self.cpu_s(), time.perf_counter()
        self._signal(signal.SIGCONT)
        try:
            self._await(target, began + PATIENCE_S)
            wall = time.perf_counter() - began
            return Round((self.cpu_s() - cpu) * 1e6 / count, count / wall)
        finally:
            self._signal(signal.SIGSTOP)

    def thawed(self) -> None:
        """Let it run outside of rounds."""
        self._signal(signal.SIGCONT)

    def frozen(self) -> None:
        """Stop it until its next round."""
        self._signal(signal.SIGSTOP)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes now."""
        pages = (int(Path(f"/proc/{p.popen.pid}/statm").read_text().split()[1]) for p in self.processes)
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def _await(self, target: int, deadline: float) -> None:
        began = time.perf_counter()
        while (outputs := self._meter.outputs()) < target:
            self.check()
            if time.perf_counter() > deadline:
                words = self.processes[0].log.read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"{self.subject.name}: {target - outputs} outputs did not come within {PATIENCE_S:.0f} s\n{words}"
                )
            time.sleep(max(POLL_S, (time.perf_counter() - began) * POLLED))

    def check(self) -> None:
        for process in self.processes:
            process.check()

    def stop(self) -> None:
        for process in self.processes:
            process.send(signal.SIGTERM)
            process.send(signal.SIGCONT)
        for process in self.processes:
            try:
                process.popen.wait(20)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._meter.close()
        self.subject.broker.delete(self._topics)

    def _fill(self, count: int) -> None:
        subject, values = self.subject, self.subject.workload.values
        headers = subject.headers
        if subject.workload.wrap:
            values, needed = wrapped(values, subject.workload.wrap, self._input)
            headers = headers or needed
        if subject.broker.kind == "embedded":
            waiting = sum(map(len, values)) / len(values) * count / subject.partitions
            assert waiting < EMBEDDED_BYTES_PER_PARTITION, (
                f"{subject.name}: the embedded broker would forget records"
            )
        share = -(-count // subject.partitions)
        rows = [{"value": value} for value in values]
        rows = (rows * (share // len(rows) + 1))[:share]
        left = count
        for partition in range(subject.partitions):
            part = rows[: min(share, left)]
            left -= len(part)
            if headers:  # which a batch cannot have
                self._fill_one_by_one(part, partition, headers)
                continue
            for start in range(0, len(part), 1000):
                chunk, sent = part[start : start + 1000], 0
                while (sent := sent + self._producer.produce_batch(self._input, chunk[sent:], partition=partition)) < len(chunk):  # fmt: skip
                    self._producer.poll(0.01)
        if self._producer.flush(60):
            raise RuntimeError(f"{subject.name}: its input topic could not be filled")

    def _fill_one_by_one(self, part: list[dict[str, bytes]], partition: int, headers: Headers) -> None:
        for row in part:
            while True:
                try:
                    self._producer.produce(self._input, row["value"], partition=partition, headers=headers)
                    break
                except BufferError:
                    self._producer.poll(0.01)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes together."""
        return sum(process.cpu_s() for process in self.processes)

    def _signal(self, number: int) -> None:
        for process in self.processes:
            process.send(number)


class CpuWatch:
    """How much of a core a subject uses while the middle of its load lasts, seen from a thread of its own.

    Only the busiest stretch counts: a load generator takes seconds to start and to reckon.
    """

    STRETCH_S = 0.5

    def __init__(self, running: Running) -> None:
        self._running = running
        self._shares: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The median over the stretches in which it had work."""
        self._ended.set()
        self._thread.join()
        busy = [share for share in self._shares if share > max(self._shares) / 2]
        return statistics.median(busy) if busy else 0.0

    def _watch(self) -> None:
        before, began = self._running.cpu_s(), time.perf_counter()
        while not self._ended.wait(self.STRETCH_S):
            now, at = self._running.cpu_s(), time.perf_counter()
            self._shares.append((now - before) / (at - began))
            before, began = now, at


class _EndMeter:
    """Reads how many records a topic has had, without consuming any."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "log_level": 2})
        self._places = [TopicPartition(topic, number, OFFSET_END) for number in range(partitions)]
        self._last = 0

    def outputs(self) -> int:
        with suppress(KafkaException):  # the leader of a new topic may not know yet that it is
            ends = self._consumer.offsets_for_times(
                self._places, timeout=10
            )  # one request for all partitions
            if not any(end.error for end in ends):
                self._last = sum(max(0, end.offset) for end in ends)
        return self._last

    def close(self) -> None:
        self._consumer.close()


class _RecordMeter:
    """Counts records as a consumer sees them that reads committed ones only."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "unused",
                "log_level": 2,
                "isolation.level": "read_committed",
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 5,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        self._seen = 0

    def outputs(self) -> int:
        while messages := self._consumer.consume(10_000, 0.001):
            self._seen += sum(message.error() is None for message in messages)
        return self._seen

    def close(self) -> None:
        self._consumer.close()


def _filler(bootstrap: str) -> Producer:
    """Large message sets, as a busy topic has them: small ones would make reading dearer for everyone."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "log_level": 2,
            "batch.num.messages": 1000,
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": 262_144,
        }
    )


def busy_cores(over_s: float = 0.2) -> float:
    """How many cores this machine keeps busy right now; with every subject frozen, that is other people's work."""
    before, began = _busy_s(), time.perf_counter()
    time.sleep(over_s)
    return (_busy_s() - before) / (time.perf_counter() - began)


def _busy_s() -> float:
    """CPU seconds of everybody since boot: the first line of /proc/stat without idle and iowait."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _assigned(process: Process) -> bool:
    process.check()
    return '"assigned"' in process.log.read_text(errors="replace")


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {PATIENCE_S:.0f} s in vain for {what}")
        time.sleep(0.05)


@contextmanager
def kafka_broker() -> Iterator[Broker]:
    """A real one: KAFKA_BOOTSTRAP_SERVERS, else one of scripts/kafka for this run, with a proxy before its third door."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield Broker("kafka", given)
        return
    home = ROOT / ".kafka" / "bench"
    script = [sys.executable, str(ROOT / "scripts" / "kafka")]
    proxy = subprocess.Popen(
        [sys.executable, str(HERE / "distance.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert proxy.stdin is not None
    assert proxy.stdout is not None
    port = proxy.stdout.readline().strip()
    try:
        subprocess.run([*script, "stop", "--dir", str(home)], check=True)  # it would not know this proxy
        start = [*script, "start", "--dir", str(home), "--proxy", port]
        found = subprocess.run(start, check=True, stdout=subprocess.PIPE, text=True)
        bootstrap = found.stdout.split()[-1]
        print("upstream", int(bootstrap.rpartition(":")[2]) + PROXIED_DOOR, file=proxy.stdin, flush=True)
        yield Broker("kafka", bootstrap, None, f"127.0.0.1:{port}", proxy.stdin)
    finally:
        subprocess.run([*script, "stop", "--dir", str(home)], check=False)
        proxy.kill()
        proxy.wait()
