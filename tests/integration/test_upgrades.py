"""What may be mixed in one group: versions of the worker, configurations, group protocols, delivery guarantees, partitions.

Workers are replaced one by one under a stream, and every record is held to what became of it. ``UPGRADE_FROM`` names the
commit or tag of the version before; without it that is the commit before this one.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import pytest
import stream
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from stream import (
    SENT,
    Sent,
    Verdict,
    Worker,
    create_topics,
    judge,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS, KEYS, REPLICAS = 8, 100, 3
BURST, PAUSE_S = 60, 0.02
"""Up to 3,000 records a second."""


@dataclass
class Kind:
    """One of two kinds of worker in a group."""

    sections: dict[str, Any] = field(default_factory=dict)
    kafka: dict[str, str] = field(default_factory=dict)
    old: bool = False
    """The version before."""


class Group:
    """A group under a stream, whose workers are replaced by others."""

    def __init__(self, bootstrap: str, folder: Path, old: Path | None = None) -> None:
        self.bootstrap, self.folder, self.old = bootstrap, folder, old
        self.source, self.results, self.letters = (unique(name) for name in ("up-in", "up-out", "up-dead"))
        self.group = unique("upgrade")
        create_topics(bootstrap, {self.source: PARTITIONS, self.results: PARTITIONS, self.letters: 1})
        models.write(folder, models.identity())
        self.sent = 0
        self.workers: list[Worker] = []
        self._stop = threading.Event()
        self._producer = threading.Thread(target=self._produce)

    def start(self, kind: Kind, plant: str | None = None) -> Worker:
        """Start a worker of this kind, and wait until it is in the group.

        Args:
            plant: Python that the process runs at its start: a bug.
        """
        worker = self.launch(kind, plant)
        worker.wait_ready()
        self.workers.append(worker)
        return worker

    def launch(self, kind: Kind, plant: str | None = None) -> Worker:
        """Start a worker of this kind."""
        config = write_config(
            self.folder,
            {
                "name": "upgrade",
                "input": {"topics": [self.source], "format": "json"},
                "model": {"path": "model.onnx"},
                "output": {"topic": self.results},
                "dead_letter": {"topic": self.letters},
                **kind.sections,
                "kafka": {
                    "bootstrap.servers": self.bootstrap,
                    "group.id": self.group,
                    "topic.metadata.refresh.interval.ms": "2000",
                    **kind.kafka,
                },
            },
        )
        env = {}
        if kind.old:
            assert self.old is not None
            env = {"PYTHONPATH": str(self.old), "PYTHONSAFEPATH": "1"}
        if plant is not None:
            (self.folder / "planted").mkdir(exist_ok=True)
            (self.folder / "planted" / "sitecustomize.py").write_text(plant)
            env = {"PYTHONPATH": str(self.folder / "planted")}
        return Worker.start(config, env=env)

    def stream(self) -> None:
        """Send numbered records from now on."""
        self._producer.start()

    def _produce(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "topic.metadata.refresh.interval.ms": 1000,
            }
        )
        while not self._stop.wait(PAUSE_S):
            for _ in range(BURST):
                value = b'{"features": [%d, 0, 0, 0]}' % self.sent
                producer.produce(self.source, value, b"k%d" % (self.sent % KEYS))
                self.sent += 1
            producer.poll(0)
        assert producer.flush(30) == 0
        SENT[self.source] += self.sent

    def more(self, records: int = 1500) -> None:
        """Wait until so many more were sent."""
        before = self.sent
        wait_for(lambda: self.sent >= before + records, "records to be sent")

    def replace(self, kind: Kind, kill: bool = False, plant: str | None = None) -> None:
        """Every worker by one of this kind, one at a time."""
        for leaving in [*self.workers]:
            self.more()
            self.start(kind, plant)
            self.more()
            self.workers.remove(leaving)
            if kill:
                leaving.kill()
                continue
            code, _ = leaving.stop()
            assert code == 0, leaving.text()

    def finish(self) -> Verdict:
        """End the stream and the workers; what became of every record."""
        self.more()
        self.stop()
        # a worker of either kind answers what is left, however long a dead one's transaction blocks it
        wait_for_outputs(self.bootstrap, [self.results], self.sent, self.workers)
        wait_for(lambda: self.lag() == 0, f"every record to be answered:\n{self.workers[0].text()[-3000:]}")
        for worker in self.workers:
            code, _ = worker.stop()
            assert code == 0, worker.text()
        assert read_all(self.bootstrap, self.letters) == []
        sent = [Sent(m.partition(), m.offset(), m.key(), m.value(), []) for m in self.read()]
        assert len(sent) == self.sent
        return judge(sent, read_all(self.bootstrap, self.results))

    def read(self) -> list[Any]:
        return read_all(self.bootstrap, self.source)

    def lag(self) -> int:
        """Records that no worker has committed yet."""
        from confluent_kafka import Consumer, TopicPartition

        from worker.kafka.tools import range_of

        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.group})
        try:
            partitions = consumer.list_topics(timeout=10).topics[self.source].partitions
            asked = [TopicPartition(self.source, number) for number in partitions]
            done = consumer.committed(asked, timeout=10)
            return sum(range_of(consumer, place, 30)[1] - max(0, place.offset) for place in done)
        finally:
            consumer.close()

    def stop(self) -> None:
        self._stop.set()
        if self._producer.is_alive():
            self._producer.join()

    def close(self) -> None:
        self.stop()
        for worker in self.workers:
            worker.kill()


@pytest.fixture
def group(kafka: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Group]:
    old = request.getfixturevalue("version_before") if "version_before" in request.fixturenames else None
    made = Group(kafka, tmp_path, old)
    yield made
    made.close()


@pytest.fixture(scope="session")
def version_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the version before, as a checkout has it."""
    commit = os.environ.get("UPGRADE_FROM", "HEAD~1")
    found = subprocess.run(["git", "archive", commit, "worker"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"no version before: git archive {commit}: {found.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    for built in (ROOT / "worker" / "native").glob("*.so"):
        same = subprocess.run(
            ["git", "diff", "--quiet", commit, "HEAD", "--", "worker/native", "setup.py"], cwd=ROOT
        )
        if same.returncode == 0:
            (folder / "worker" / "native" / built.name).write_bytes(built.read_bytes())
    said = subprocess.run(
        [sys.executable, "-P", "-c", "import worker; print(worker.__file__)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert said.stdout.startswith(str(folder)), "the version before is not what would run"
    return folder


NOW = Kind()
BEFORE = Kind(old=True)


def in_both(delivery: str) -> Callable[[Kind], Kind]:
    """The same kind with this delivery guarantee."""
    return lambda kind: Kind({**kind.sections, "delivery": delivery}, kind.kafka, kind.old)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("way", ["upgrade", "roll back"])
def test_two_versions_share_a_group(version_before: Path, group: Group, delivery: str, way: str) -> None:
    """Three workers of the version before are replaced by this one under a stream, and the other way round: 0 lost, 0 doubled, 0
    reordered."""
    before, now = map(in_both(delivery), (BEFORE, NOW))
    first, then = (before, now) if way == "upgrade" else (now, before)
    group.stream()
    for _ in range(REPLICAS):
        group.start(first)
    group.replace(then)
    verdict = group.finish()
    assert verdict.clean, verdict


def test_a_version_that_is_killed_in_the_middle_of_an_upgrade_doubles_nothing(
    version_before: Path, group: Group
) -> None:
    """Exactly once, each old worker killed instead of drained: its transactions are undone, its records are answered by the new."""
    before, now = map(in_both("exactly_once"), (BEFORE, NOW))
    group.stream()
    for _ in range(REPLICAS):
        group.start(before)
    group.replace(now, kill=True)
    verdict = group.finish()
    assert verdict.clean, verdict


OTHER = Kind(
    {
        "batching": {"max_size": 7, "max_wait_ms": 20},
        "model": {"path": "model.onnx", "threads": 2},
        "limits": {"in_flight_bytes": 64 << 20, "prefetch_bytes": 2 << 20},
    }
)
CONSUMER = {"group.protocol": "consumer"}
MIXED: dict[str, tuple[Kind, Kind]] = {
    "two configurations": (NOW, OTHER),
    "consumer to classic protocol": (Kind(kafka=CONSUMER), NOW),
}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("name", MIXED)
def test_two_kinds_of_workers_share_a_group(group: Group, delivery: str, name: str) -> None:
    """Configurations and group protocols change worker by worker: 0 lost, 0 doubled, 0 reordered."""
    first, then = map(in_both(delivery), MIXED[name])
    group.stream()
    for _ in range(2):
        group.start(first)
    group.replace(then)
    verdict = group.finish()
    assert verdict.clean, verdict


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_the_consumer_protocol_needs_a_group_that_is_empty_once(group: Group, delivery: str) -> None:
    """A worker with the consumer protocol does not start beside those with the classic one, which go on; when they have drained, it
    does. Nothing is lost, doubled or reordered on the way."""
    classic, consumer = map(in_both(delivery), (NOW, Kind(kafka=CONSUMER)))
    group.stream()
    for _ in range(2):
        group.start(classic)
    group.more()
    refused = group.launch(consumer)
    assert refused.process.wait(60) == 3, refused.text()
    assert "kafka.group.protocol: members of the group use the classic protocol" in refused.text()
    stream.STARTED.remove(refused)  # it counted nothing
    group.more()
    for leaving in group.workers:
        assert leaving.stop()[0] == 0, leaving.text()
    group.workers.clear()
    for _ in range(2):
        group.start(consumer)
    verdict = group.finish()
    assert verdict.clean, verdict


@pytest.mark.parametrize("way", ["at least once to exactly once", "and back"])
def test_the_delivery_guarantee_changes_worker_by_worker(group: Group, way: str) -> None:
    """While both are in the group nothing is lost or reordered; as every worker drains, nothing is doubled either."""
    kinds = in_both("at_least_once")(NOW), in_both("exactly_once")(NOW)
    first, then = kinds if way.endswith("exactly once") else reversed(kinds)
    group.stream()
    for _ in range(2):
        group.start(first)
    group.replace(then)
    verdict = group.finish()
    stream.STARTED.clear()  # the accounts know one guarantee for a group
    assert verdict.clean, verdict


@pytest.mark.parametrize(("delivery", "start"), [("at_least_once", "earliest"), ("exactly_once", "latest")])
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_partitions_are_added_while_workers_run(
    group: Group, delivery: str, start: str, protocol: str
) -> None:
    """New partitions of input and output are found and read from their first record, whatever `input.start`: 0 lost, 0 doubled,
    and the records of each input partition keep their order."""
    kind = Kind(
        {
            "input": {"topics": [group.source], "format": "json", "start": start},
            "delivery": delivery,
        },
        {"group.protocol": protocol},
    )
    for _ in range(2):
        group.start(kind)
    group.stream()
    group.more()
    admin = AdminClient({"bootstrap.servers": group.bootstrap})
    wanted = [NewPartitions(topic, PARTITIONS + 4) for topic in (group.results, group.source)]
    for future in admin.create_partitions(wanted).values():
        future.result(30)
    wait_for(
        lambda: sum(f"{group.source}/{PARTITIONS + 3}" in worker.text() for worker in group.workers),
        "the new partitions to be read",
    )
    group.more(3000)
    verdict = group.finish()
    assert verdict.clean, verdict
    assert {message.partition() for message in group.read()} == {*range(PARTITIONS + 4)}


PLANTED = """
import worker.loop.window as window
honest = window.Window.committable
window.Window.committable = lambda self: {{p: max(0, at + {by}) for p, at in honest(self).items()}}
"""


@pytest.mark.parametrize(("by", "what"), [(1, "lost"), (-1, "doubled")])
def test_a_version_that_commits_wrong_is_found(group: Group, by: int, what: str) -> None:
    """A planted bug: a version whose positions are one off loses or doubles a record at each partition that it hands over."""
    group.stream()
    for _ in range(2):
        group.start(NOW, plant=PLANTED.format(by=by))
    group.replace(NOW)
    group.more()
    group.stop()
    wait_for(lambda: group.lag() == 0, "the group to be done")
    for worker in group.workers:
        worker.stop()
    sent = [Sent(m.partition(), m.offset(), m.key(), m.value(), []) for m in group.read()]
    verdict = judge(sent, read_all(group.bootstrap, group.results))
    stream.STARTED.clear()
    assert getattr(verdict, what), verdict
    assert not verdict.clean
