"""An incident, told by the log alone: a reader names what happened, when it began and ended, and to which replica."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import models
import orjson
import pytest
from chaos.cluster import Cluster
from confluent_kafka import Producer
from log_reader import Happening, happenings, lines
from stream import Worker, create_topics, unique, wait_for, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

MOST_LINES = 40
CODE = """
import pathlib
import time

import numpy as np

SLOW = pathlib.Path(__file__).with_name("slow")


class Sums:
    inputs = {"features": ("float32", (4,))}

    def load(self, path):
        pass

    def forward(self, items):
        time.sleep(0.3 if SLOW.exists() else 0.003)
        return [{"sum": float(np.sum(item))} for item in items]
"""


@contextmanager
def records(bootstrap: str, topic: str, per_s: float) -> Iterator[list[bytes]]:
    """Sends good records steadily; what is put into the list goes out, too."""
    producer = Producer({"bootstrap.servers": bootstrap, "message.timeout.ms": 120_000})
    others: list[bytes] = []
    ended = threading.Event()

    def send() -> None:
        for number in itertools.count():
            if ended.wait(1 / per_s):
                return
            producer.produce(topic, orjson.dumps({"features": [1.0, 0.0, 0.0, 2.0]}), partition=number % 4)
            while others:
                producer.produce(topic, others.pop())
            producer.poll(0)

    thread = threading.Thread(target=send)
    thread.start()
    yield others
    ended.set()
    thread.join()
    producer.flush(10)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A broker of its own behind a proxy, which can refuse every connection."""
    try:
        made = Cluster(tmp_path / "broker")
    except OSError as error:
        (pytest.fail if os.environ.get("REQUIRE_KAFKA") == "1" else pytest.skip)(f"no broker: {error}")
    yield made
    made.close()


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    """Workers that do not outlive the test."""
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.kill()


def test_the_log_alone_names_every_event_of_an_incident(
    cluster: Cluster, started: list[Worker], tmp_path: Path
) -> None:
    """Broker away, poison, a model 100 times slower, lag, a killed replica, a drain: at most 40 lines beside the heartbeats, all JSON, tell it."""
    source, output, letters = unique("in"), unique("out"), unique("dead")
    create_topics(cluster.direct, {source: 4, output: 4, letters: 1})
    models.write(tmp_path, models.identity())
    (tmp_path / "incident_model.py").write_text(CODE)
    slow = tmp_path / "slow"
    config = {
        "input": {"topics": [source], "format": "json"},
        "batching": {"max_size": 4},
        "model": {"code": "incident_model:Sums", "path": "model.onnx"},
        "output": {"topic": output},
        "dead_letter": {"topic": letters},
        "kafka": {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": unique("group"),
            "session.timeout.ms": 6000,
        },
    }
    worker = Worker.start(write_config(tmp_path, config), "--replicas", "2", env={"LOG_FORMAT": "json"})
    worker.killed = True  # one of its processes is
    started.append(worker)

    def told(event: str, times: int = 1) -> list[Happening]:
        found = [each for each in happenings(lines(worker.text())) if each.what == event]
        return found if len(found) >= times else []

    def over(event: str, times: int = 1) -> bool:
        return sum(each.ended_s is not None for each in told(event)) >= times

    def letters_told() -> int:
        bad = [each.fields for each in told("dead letters")]
        return sum(each.get("undecodable", 0) + each.get("invalid", 0) for each in bad)

    wait_for(lambda: worker.text().count('"assigned"') >= 2, "both replicas to join")
    with records(cluster.direct, source, 80) as others:
        time.sleep(12)  # the usual speed is learned

        away_s = time.time()
        cluster.proxy.gone = True
        cluster.proxy.cut()
        wait_for(lambda: told("broker lost", 2), "the outage in the log")
        cluster.proxy.heal()
        wait_for(lambda: over("broker lost", 2), "the end of the outage in the log")
        back_s = time.time()

        others += [b"poison", b"\xff\x00", b'{"features": [1]}']
        wait_for(lambda: letters_told() == 3, "the poison in the log")

        time.sleep(10)
        slow_s = time.time()
        slow.touch()
        wait_for(lambda: told("model slow", 2) and told("falling behind"), "the slow model in the log")
        slow.unlink()
        quick_s = time.time()
        wait_for(lambda: over("model slow", 2) and over("falling behind"), "its end in the log")

        killed_s = time.time()
        pids = {line["pid"] for line in lines(worker.text())}
        victim = next(line for line in lines(worker.text()) if line["event"] == "replica started")
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda: over("replica died"), "the death in the log")
        wait_for(
            lambda: [e for e in lines(worker.text()) if e["event"] == "assigned" and e["pid"] not in pids],
            "the new replica to have partitions",
        )
        time.sleep(5)
    assert worker.stop()[0] == 0

    log = lines(worker.text())
    print(worker.text())
    seen = happenings(log)
    for what, began, ended in (
        ("broker lost", away_s, back_s),
        ("model slow", slow_s, quick_s),
        ("falling behind", slow_s, quick_s),
    ):
        seen_of = [
            each for each in told(what) if each.began_s < killed_s
        ]  # a dead replica's records lag, too
        assert seen_of, what
        for each in seen_of:
            assert each.replica in (0, 1)
            assert began - 1 < each.began_s < ended + 1, each
            assert each.ended_s is not None, each
            assert ended - 15 < each.ended_s < ended + 40, each
    assert {each.replica for each in told("broker lost")} == {0, 1}
    assert letters_told() == 3
    assert all(each.fields["first"].startswith(f"{source}/") for each in told("dead letters"))
    (died,) = told("replica died")
    assert died.replica == victim["replica"]
    assert killed_s - 1 < died.began_s < killed_s + 5
    assert sorted(str(each.replica) for each in seen if each.what == "drain") == ["0", "1"]
    assert all(each.ended_s is not None for each in seen)
    events = [line["event"] for line in log if line["event"] != "working"]
    assert len(events) <= MOST_LINES, events
