"""`delivery: queue` on a real Kafka: more workers than partitions, each record settled by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from stream import (
    Worker,
    create_topics,
    judge,
    place_of,
    produce,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)

from worker.kafka.share_group import prepare_group
from worker.settings import load

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

MODULE = """
import os
import numpy as np

def read(value, headers):
    if value == b"poison":
        os._exit(1)
    return {"x": np.zeros(4, np.float32)}
"""


class Queue:
    """A topic of one partition, and the configuration of workers that share it."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.input, self.output, self.letters = unique("in"), unique("out"), unique("dead")
        create_topics(bootstrap, {self.input: 1, self.output: 2, self.letters: 1})
        models.write(folder, models.mlp(features=4))

    def config(self, **more: Any) -> Path:
        return write_config(
            self.folder,
            {
                "name": "queue",
                "input": {"topics": [self.input], "format": "json", **more.pop("input", {})},
                "model": {"path": "model.onnx", "threads": 0},
                "output": {"topic": self.output},
                "dead_letter": {"topic": self.letters},
                "metrics": {"http": "127.0.0.1:0"},
                "delivery": "queue",
                "order": "none",
                "kafka": {"bootstrap.servers": self.bootstrap, "group.id": unique("share")},
                **more,
            },
        )

    def send(self, count: int, value: bytes = b'{"features": [1, 2, 3, 4]}') -> list[Any]:
        """Records in small batches of the producer, so that several workers get some."""
        sent: list[Any] = []
        for start in range(0, count, 50):
            sent += produce(self.bootstrap, self.input, [{"value": value}] * min(50, count - start))
        return sent


@pytest.fixture
def queue(kafka: str, tmp_path: Path) -> Queue:
    return Queue(kafka, tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(config: Path, *arguments: str, **env: str) -> Worker:
        workers.append(Worker.start(config, *arguments, env=env))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


@pytest.mark.slow
def test_a_worker_answers_what_a_share_group_lends(queue: Queue, start: Callable[..., Worker]) -> None:
    """A new share group begins where `input.start` says; each record is answered once, a bad one is a dead letter, and a drain ends with 0."""
    sent = [*queue.send(120), *queue.send(1, b"no json")]
    config = queue.config()
    assert prepare_group(load(config)) > 0
    worker = start(config)
    wait_for_outputs(queue.bootstrap, [queue.output, queue.letters], 121, [worker])
    assert worker.stop()[0] == 0, worker.text()
    results, letters = (read_all(queue.bootstrap, topic) for topic in (queue.output, queue.letters))
    assert (len(results), len(letters)) == (120, 1)
    verdict = judge(sent, [*results, *letters])
    assert not [*verdict.lost, *verdict.doubled, *verdict.unknown], verdict
    after = start(config)  # everything is settled: a second worker of the group gets nothing
    more = queue.send(10)
    wait_for_outputs(queue.bootstrap, [queue.output], 130, [after])
    assert after.stop()[0] == 0, after.text()
    verdict = judge([*sent, *more], [*read_all(queue.bootstrap, queue.output), *letters])
    assert not [*verdict.lost, *verdict.doubled, *verdict.unknown], verdict


@pytest.mark.slow
def test_more_workers_than_partitions_share_the_records(queue: Queue, start: Callable[..., Worker]) -> None:
    """Three workers on one partition all answer records, and a killed one loses none: what it had is lent again."""
    config = queue.config(kafka={"bootstrap.servers": queue.bootstrap, "group.id": unique("share")})
    workers = [start(config) for _ in range(3)]
    for worker in workers:
        worker.wait_ready()
    sent = []
    for _ in range(20):
        sent += queue.send(500)
    wait_for(lambda: all('"in-' in w.text() for w in workers), "each worker to get records")
    workers[0].kill()
    sent += queue.send(500)
    expected = {(each.partition, each.offset) for each in sent}

    def answered() -> set[tuple[int, int]]:
        return {place_of(message) for message in read_all(queue.bootstrap, queue.output)}

    wait_for(lambda: answered() == expected, "every record", 120)
    for worker in workers[1:]:
        assert worker.stop()[0] == 0, worker.text()


@pytest.mark.slow
def test_a_record_that_kills_takes_no_other_one_with_it(queue: Queue, start: Callable[..., Worker]) -> None:
    """A record that kills its process again and again becomes a dead letter `crashed`; all others are answered."""
    (queue.folder / "deadly.py").write_text(MODULE)
    config = queue.config(input={"format": "deadly:read"})
    records = [{"value": b"fine"}] * 20 + [{"value": b"poison"}] + [{"value": b"fine"}] * 20
    sent = produce(queue.bootstrap, queue.input, records)
    worker = start(config, "--replicas", "2", PYTHONPATH=str(queue.folder))
    wait_for_outputs(queue.bootstrap, [queue.letters], 1, [worker], timeout_s=150)
    wait_for(
        lambda: len({place_of(m) for m in read_all(queue.bootstrap, queue.output)}) == 40, "the others", 60
    )
    worker.stop()
    (letter,) = read_all(queue.bootstrap, queue.letters)
    headers = dict(letter.headers() or [])
    assert (headers["streaminfer.error.reason"], letter.value()) == (b"crashed", b"poison")
    verdict = judge(sent, [*read_all(queue.bootstrap, queue.output), letter])
    assert not [*verdict.lost, *verdict.unknown], verdict


@pytest.mark.slow
def test_aborted_records_are_not_answered(queue: Queue, start: Callable[..., Worker]) -> None:
    """Records of an aborted transaction are not lent: the worker has the group read committed records."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": queue.bootstrap, "transactional.id": unique("t")})
    producer.init_transactions(30)
    for commit, value in ((False, b'{"features": [9, 9, 9, 9]}'), (True, b'{"features": [1, 1, 1, 1]}')):
        producer.begin_transaction()
        for _ in range(5):
            producer.produce(queue.input, value)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    worker = start(queue.config())
    wait_for_outputs(queue.bootstrap, [queue.output], 5, [worker])
    assert worker.stop()[0] == 0, worker.text()
    found = [orjson.loads(message.value()) for message in read_all(queue.bootstrap, queue.output)]
    assert len(found) == 5
    assert len({orjson.dumps(each["prediction"]) for each in found}) == 1
