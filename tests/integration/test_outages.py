"""What a worker says and does when a part of its cluster is gone: two real brokers, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from stream import Worker, read_all, unique, wait_for, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kafka"
STALL_S = 5.0


class Nodes:
    """Two brokers; every topic has one copy, on the node a test says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bootstrap = self._script("start", "--nodes", "2")
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
        wait_for(lambda: len(self._admin.list_topics(timeout=10).brokers) == 2, "both brokers")

    def topic(self, name: str, node: int) -> str:
        made = NewTopic(unique(name), 1, replica_assignment=[[node]])
        for future in self._admin.create_topics([made]).values():
            future.result(30)
        known = lambda: self._admin.list_topics(timeout=10).topics.get(made.topic)  # noqa: E731
        wait_for(lambda: (topic := known()) and topic.partitions[0].leader == node, made.topic)
        return str(made.topic)

    def signal(self, node: int, number: int) -> None:
        folder = self._folder if node == 1 else self._folder / f"node-{node}"
        os.kill(json.loads((folder / "state.json").read_text())["pid"], number)

    def close(self) -> None:
        for node in (1, 2):
            try:
                self.signal(node, signal.SIGCONT)
            except ProcessLookupError:
                continue
        self._script("stop")

    def _script(self, *arguments: str) -> str:
        command = [sys.executable, str(SCRIPT), *arguments, "--dir", str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(done.stderr) if os.environ.get("REQUIRE_KAFKA") else pytest.skip(done.stderr)
        return done.stdout.strip()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path / "brokers")
    yield made
    made.close()


def start(nodes: Nodes, folder: Path, output: str, **limits: Any) -> tuple[Worker, str]:
    models.write(folder, models.identity(), "same.onnx")
    source = nodes.topic("in", 1)
    config = {
        "input": {"topics": [source], "format": "json"},
        "model": {"path": "same.onnx", "threads": 1},
        "output": {"topic": output},
        "dead_letter": {"topic": nodes.topic("dead", 1)},
        "metrics": {"http": "127.0.0.1:0"},
        "limits": {"stall_s": STALL_S, **limits},
        "kafka": {"bootstrap.servers": nodes.bootstrap, "group.id": unique("group")},
    }
    worker = Worker.start(write_config(folder, config))
    worker.killed = True  # it ends by its watchdog: its last counters are not those of a drain
    worker.wait_ready()
    return worker, source


def ask(worker: Worker, path: str) -> tuple[int, dict[str, Any]]:
    found = re.search(r'"port": (\d+)', worker.text())
    assert found
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_an_output_partition_without_a_leader_ends_the_worker(nodes: Nodes, tmp_path: Path) -> None:
    """The only copy of the output is on a broker that dies: exit 5 soon after stall_s, and /progressz said it before."""
    output = nodes.topic("out", 2)
    worker, source = start(nodes, tmp_path, output)
    producer = Producer({"bootstrap.servers": nodes.bootstrap})

    def send() -> None:
        for _ in range(8):
            producer.produce(source, orjson.dumps({"features": [1, 2, 3, 4]}))
        producer.flush(10)

    send()
    wait_for(lambda: len(read_all(nodes.bootstrap, output)) == 8, "the first results")
    nodes.signal(2, signal.SIGKILL)
    died = time.monotonic()
    stood: dict[str, Any] = {}
    while worker.process.poll() is None and time.monotonic() - died < 60:
        send()
        try:
            status, body = ask(worker, "/progressz")
        except OSError:
            continue
        if status == 503:
            stood = body
        time.sleep(0.5)
    assert worker.process.wait(5) == 5, worker.text()
    assert time.monotonic() - died < STALL_S + 20
    assert f"{source}/0 has stood at 8" in worker.text()
    assert "outputs to be acknowledged" in stood.get("waits", ""), stood
    producer.flush(1)


def test_an_outage_of_every_broker_is_told_and_waited_out(nodes: Nodes, tmp_path: Path) -> None:
    """Longer than stall_s without any broker: alive, not ready with the reason, metric 0; and outage_s ends it with 5."""
    worker, _source = start(nodes, tmp_path, nodes.topic("out", 1), outage_s=25)
    assert ask(worker, "/readyz")[0] == 200
    for node in (1, 2):
        nodes.signal(node, signal.SIGKILL)
    died = time.monotonic()
    wait_for(lambda: "waiting for brokers since" in ask(worker, "/progressz")[1].get("waits", ""), "the word")
    assert ask(worker, "/progressz")[0] == 200
    wait_for(lambda: ask(worker, "/readyz")[1].get("reason") == "brokers unreachable", "not ready", 20)
    assert ask(worker, "/livez")[0] == 200
    assert time.monotonic() - died > STALL_S
    assert worker.process.wait(60) == 5, worker.text()
    assert "limits.outage_s" in worker.text()
