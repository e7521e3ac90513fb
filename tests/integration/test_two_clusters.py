"""Results on a second real Kafka: where everything goes, and what happens while that cluster is away."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from stream import (
    Worker,
    create_topics,
    judge,
    produce,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "kafka"
GOOD = b'{"features": [1, 2, 3, 4]}'


class Second:
    """A broker of the test's own that stops and comes back."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.bootstrap = self.start()

    def start(self) -> str:
        return self._run("start").strip()

    def stop(self) -> None:
        self._run("stop")

    def _run(self, verb: str) -> str:
        command = [sys.executable, str(SCRIPT), verb, "--dir", str(self._home)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no second Kafka: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Second]:
    made = Second(tmp_path / "second")
    yield made
    made.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(config: Path) -> Worker:
        workers.append(Worker.start(config))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def test_results_wait_for_their_cluster_in_order(
    kafka: str, second: Second, tmp_path: Path, start: Callable[..., Worker]
) -> None:
    """Results go to the second cluster and all else stays; while it is away nothing is committed, lost or reordered, and nobody calls it a stall."""
    topics = unique("in"), unique("out"), unique("dead"), unique("metrics")
    source, results, letters, metrics = topics
    create_topics(kafka, {source: 2, letters: 1, metrics: 1})
    create_topics(second.bootstrap, {results: 3})
    models.write(tmp_path, models.mlp(features=4))
    config = write_config(
        tmp_path,
        {
            "name": "two",
            "input": {"topics": [source], "format": "json"},
            "model": {"path": "model.onnx", "threads": 0},
            "output": {"topic": results, "kafka": {"bootstrap.servers": second.bootstrap}},
            "dead_letter": {"topic": letters},
            "metrics": {"topic": metrics, "interval_s": 0.5, "http": "127.0.0.1:0"},
            "limits": {"stall_s": 5},
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
        },
    )
    worker = start(config)
    sent = produce(kafka, source, [{"value": GOOD if i % 10 else b"no"} for i in range(200)])
    wait_for_outputs(second.bootstrap, [results], 180, [worker])
    second.stop()
    sent += produce(kafka, source, [{"value": GOOD} for _ in range(300)])
    wait_for(
        lambda: "waiting for brokers of output.kafka" in page(worker, "progressz"), "the outage to be told"
    )
    wait_for(lambda: "streaminfer_broker_available 0" in page(worker, "metrics"), "the metric")
    sent += produce(
        kafka, source, [{"value": GOOD} for _ in range(100)]
    )  # later than stall_s after the first
    assert worker.process.poll() is None, worker.text()
    assert second.start() == second.bootstrap
    wait_for_outputs(second.bootstrap, [results], 580, [worker])
    wait_for(lambda: "streaminfer_broker_available 1" in page(worker, "metrics"), "the end of the outage")
    assert worker.stop()[0] == 0, worker.text()
    answers = [*read_all(second.bootstrap, results), *read_all(kafka, letters)]
    verdict = judge(sent, answers)
    assert verdict.clean, verdict
    assert len(read_all(kafka, letters)) == 20
    assert read_all(kafka, metrics), "metrics stay on the input's cluster"


def page(worker: Worker, name: str) -> str:
    """What the worker's HTTP server says, whatever the status."""
    port = next(
        int(line.split('"port": ')[1].split(",")[0].rstrip("}"))
        for line in worker.text().splitlines()
        if '"port": ' in line
    )
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:
        return refused.read().decode()


def test_a_missing_topic_there_is_told_with_its_cluster(kafka: str, second: Second, tmp_path: Path) -> None:
    """A results topic that is not on the second cluster is exit 3 that names it and its broker; a broker that is away names the setting."""
    source, letters = unique("in"), unique("dead")
    create_topics(kafka, {source: 1, letters: 1})
    models.write(tmp_path, models.mlp(features=4))

    def run(output: dict[str, Any]) -> tuple[int, str]:
        config = write_config(
            tmp_path,
            {
                "name": "two",
                "input": {"topics": [source], "format": "json"},
                "model": {"path": "model.onnx", "threads": 0},
                "output": output,
                "dead_letter": {"topic": letters},
                "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
            },
        )
        command = [sys.executable, "-m", "worker", "run", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr.splitlines()[-1]

    code, said = run({"topic": "nowhere", "kafka": {"bootstrap.servers": second.bootstrap}})
    assert (code, f"topic nowhere does not exist on {second.bootstrap}" in said) == (3, True), said
    code, said = run({"topic": "nowhere", "kafka": {"bootstrap.servers": "127.0.0.1:1"}})
    assert (code, "output.kafka.bootstrap.servers: no broker answers at 127.0.0.1:1" in said) == (3, True), (
        said
    )
