"""Topics by pattern on a real Kafka: they appear and vanish while the worker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
import yaml
from confluent_kafka.admin import AdminClient
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

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

GOOD = b'{"features": [1, 2, 3, 4]}'


class Cameras:
    """Topics that begin alike, what is written, and the configuration that reads the pattern."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.begin = unique("cam")
        self.output, self.letters = unique("out"), unique("dead")
        create_topics(bootstrap, {self.output: 2, self.letters: 1})
        models.write(folder, models.mlp(features=4))
        self.sent: dict[str, Any] = {}

    def config(self, protocol: str = "classic", **more: Any) -> Path:
        kafka = {"bootstrap.servers": self.bootstrap, "group.id": unique("group"), "group.protocol": protocol}
        if protocol == "classic":
            kafka["topic.metadata.refresh.interval.ms"] = 500
        return write_config(
            self.folder,
            {
                "name": "cameras",
                "input": {"topics": [f"^{self.begin}-.*"], "format": "json", **more.pop("input", {})},
                "model": {"path": "model.onnx", "threads": 0},
                "output": {"topic": self.output},
                "dead_letter": {"topic": self.letters},
                "kafka": kafka,
                **more,
            },
        )

    def add(self, name: str, count: int, partitions: int = 2) -> str:
        """A new topic with records."""
        topic = f"{self.begin}-{name}"
        create_topics(self.bootstrap, {topic: partitions})
        self.send(topic, count, partitions)
        return topic

    def send(self, topic: str, count: int, partitions: int = 2) -> None:
        rows = [{"value": GOOD, "partition": i % partitions} for i in range(count)]
        self.sent.setdefault(topic, []).extend(produce(self.bootstrap, topic, rows))

    def delete(self, topic: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.delete_topics([topic])[topic].result(30)
        wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic to go")

    def await_results(self, count: int, worker: Worker) -> None:
        wait_for_outputs(self.bootstrap, [self.output, self.letters], count, [worker])

    def assert_each_answered_once_in_order(self) -> None:
        """Every record of every topic has one result, in the order of its partition."""
        results = read_all(self.bootstrap, self.output)
        for topic, sent in self.sent.items():
            mine = [each for each in results if orjson.loads(each.value())["source"]["topic"] == topic]
            verdict = judge(sent, mine)
            assert verdict.clean, (topic, verdict)


@pytest.fixture
def cameras(kafka: str, tmp_path: Path) -> Cameras:
    return Cameras(kafka, tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(config: Path) -> Worker:
        workers.append(Worker.start(config))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.slow)])
def test_topics_join_and_leave_while_the_worker_runs(
    cameras: Cameras, start: Callable[..., Worker], protocol: str
) -> None:
    """A topic that is made later and matches is read from its beginning; one that is deleted ends nothing; each record once, in order."""
    first = cameras.add("a", 40)
    worker = start(cameras.config(protocol))
    cameras.await_results(40, worker)
    later = cameras.add("b", 30, partitions=3)
    cameras.await_results(70, worker)
    cameras.delete(first)
    cameras.send(later, 20)
    cameras.await_results(90, worker)
    assert worker.stop()[0] == 0, worker.text()
    assert len(read_all(cameras.bootstrap, cameras.output)) == 90
    cameras.assert_each_answered_once_in_order()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_no_topic_has_to_be_there_at_start(
    cameras: Cameras, start: Callable[..., Worker], protocol: str
) -> None:
    """With a pattern that matches nothing yet the worker starts and says so; `start: latest` skips nothing of a topic made later."""
    worker = start(cameras.config(protocol, input={"start": "latest"}))
    wait_for(lambda: "no topic matches" in worker.text(), "the warning")
    cameras.add("new", 25)
    cameras.await_results(25, worker)
    assert worker.stop()[0] == 0, worker.text()
    cameras.assert_each_answered_once_in_order()


@pytest.mark.slow
def test_a_topic_that_comes_back_is_read_from_its_beginning(
    cameras: Cameras, start: Callable[..., Worker]
) -> None:
    """A topic that was deleted and is made again under its name counts as a new one."""
    topic = cameras.add("a", 10)
    cameras.add("other", 5)
    worker = start(cameras.config())
    cameras.await_results(15, worker)
    cameras.delete(topic)
    wait_for(
        lambda: '"lost"' in worker.text() or '"revoked"' in worker.text(),
        "the topic's partitions to be taken away",
    )
    cameras.add("a", 30)
    cameras.await_results(45, worker)
    assert worker.stop()[0] == 0, worker.text()


@pytest.mark.slow
def test_pipelines_of_patterns_and_names_keep_apart(cameras: Cameras, start: Callable[..., Worker]) -> None:
    """A topic named by one pipeline and matched by another's pattern goes to the first of them; exactly once holds as well."""
    own = cameras.add("own", 20)
    config = cameras.config(delivery="exactly_once")
    document = yaml.safe_load(config.read_text())
    one = {key: document.pop(key) for key in ("input", "model", "output")}
    document["pipelines"] = {"named": {**one, "input": {**one["input"], "topics": [own]}}, "others": one}
    worker = start(write_config(cameras.folder, document))
    wait_for_outputs(cameras.bootstrap, [cameras.output], 20, [worker])
    cameras.add("b", 30)

    def results() -> list[dict[str, Any]]:
        return [orjson.loads(each.value()) for each in read_all(cameras.bootstrap, cameras.output)]

    wait_for(lambda: len(results()) == 50, "all results")
    assert worker.stop()[0] == 0, worker.text()
    cameras.assert_each_answered_once_in_order()


@pytest.mark.slow
def test_windows_are_of_one_topic_each(cameras: Cameras, start: Callable[..., Worker]) -> None:
    """`input.window` makes windows of each matching topic's records by themselves, of topics made later as well."""
    config = cameras.config(input={"window": {"size": 4, "by": "key"}})
    models.write(cameras.folder, models.identity(shape=("N", 4, 1)))

    def send(topic: str, base: int, count: int) -> None:
        rows = [{"key": b"k", "value": orjson.dumps({"features": [base + i]})} for i in range(count)]
        produce(cameras.bootstrap, topic, rows)

    first = cameras.add("a", 0, partitions=1)
    send(first, 0, 6)
    worker = start(config)
    cameras.await_results(1, worker)
    send(cameras.add("b", 0, partitions=1), 100, 8)
    cameras.await_results(3, worker)
    send(first, 6, 2)
    cameras.await_results(4, worker)
    assert worker.stop()[0] == 0, worker.text()
    results = [orjson.loads(each.value()) for each in read_all(cameras.bootstrap, cameras.output)]
    windows = sorted([row[0] for row in each["prediction"]["outputs"]["y"]] for each in results)
    assert windows == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 101, 102, 103], [104, 105, 106, 107]]
