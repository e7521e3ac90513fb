"""What a test of one fault is played on: topics, workers, a reckoning of every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from stream import (
    Sent,
    Worker,
    count_records,
    create_topics,
    judge,
    place_of,
    produce,
    read_all,
    unique,
    wait_for,
    write_config,
)

MODES = ["at_least_once", "exactly_once"]
PARTITIONS = 4
OWN_CODE = """
import time


def measured(value, headers):
    '''Takes 2 ms.'''
    import numpy as np
    time.sleep(0.002)
    return {"x": np.full(4, len(value), np.float32)}

def wordy(outputs):
    '''As many letters as the first number says.'''
    return "x" * int(outputs["y"].flat[0])
"""


class Stage:
    """Topics, a configuration and the workers of one test."""

    def __init__(self, kafka: str, folder: Path, copies: int = 1) -> None:
        self.kafka, self.folder, self.copies = kafka, folder, copies
        self.input, self.output, self.letters = unique("in"), unique("out"), unique("dead")
        self.metrics = unique("metrics")
        self.group = unique("group")
        self.sent: list[Sent] = []
        self.place: Callable[[Message], tuple[int, int]] = place_of
        self.workers: list[Worker] = []
        folder.mkdir(exist_ok=True)
        models.write(folder, models.identity())
        (folder / "own_faults.py").write_text(OWN_CODE)

    def topics(self, **output_config: str) -> None:
        others = {self.input: PARTITIONS, self.letters: 1, self.metrics: 1}
        create_topics(self.kafka, others, self.copies)
        create_topics(self.kafka, {self.output: PARTITIONS}, self.copies, **output_config)

    def config(self, delivery: str, kafka: dict[str, Any] | None = None, **sections: Any) -> Path:
        """The file of a worker's configuration."""
        config = {
            "name": "faults",
            "input": {"topics": [self.input], "format": "json"},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": self.output},
            "dead_letter": {"topic": self.letters},
            "metrics": {"topic": self.metrics, "interval_s": 1},
            "delivery": delivery,
            **sections,
            "kafka": {"bootstrap.servers": self.kafka, "group.id": self.group, **(kafka or {})},
        }
        return write_config(self.folder, config)

    def start(self, delivery: str, kafka: dict[str, Any] | None = None, **sections: Any) -> Worker:
        worker = Worker.start(self.config(delivery, kafka, **sections))
        self.workers.append(worker)
        return worker

    def send(self, count: int, first: float = 1.0) -> None:
        """Records whose one way to tell them apart is their place; keys on two thirds."""
        value = orjson.dumps({"features": [first, 0.0, 0.0, 0.0]})
        records = [
            {"value": value, "key": b"user-%d" % (i % 50)}
            if i % 3
            else {"value": value, "partition": i % PARTITIONS}
            for i in range(count)
        ]
        self.sent += produce(self.kafka, self.input, records)

    def outputs(self) -> list[Any]:
        return [*read_all(self.kafka, self.output), *read_all(self.kafka, self.letters)]

    def wait_for_everything(self, timeout_s: float = 90) -> None:
        """Until every record has an answer; a worker that ends meanwhile fails at once."""

        def answered() -> bool:
            ends = [worker.process.poll() for worker in self.workers]
            assert not any(ends), f"workers ended with {ends}:\n{self.logs()}"
            return not judge(self.sent, self.outputs()).lost

        try:
            wait_for(answered, "an answer to every record", timeout_s)
        except AssertionError as error:
            lost = judge(self.sent, self.outputs()).lost
            missing = sorted(Counter(partition for partition, _ in lost).items())
            raise AssertionError(f"{error}; missing by partition: {missing}\n{self.logs()}") from None

    def settle(self, delivery: str) -> None:
        """Everybody leaves with 0; nothing is lost or reordered, or doubled where that is promised; counters agree."""
        wait_for(lambda: self._reported() >= len(self.sent), "the metrics of every record")
        assert [worker.stop()[0] for worker in self.workers] == [0] * len(self.workers), self.logs()
        verdict = judge(self.sent, self.outputs(), self.place)
        assert not [*verdict.lost, *verdict.reordered, *verdict.unknown], (verdict, self.logs())
        assert delivery == "at_least_once" or not verdict.doubled, (verdict, self.logs())
        counts = sum(count_records(self.kafka, self.metrics).values(), Counter())
        answers = counts["out"] + counts["dead_letter"]
        if delivery == "exactly_once":
            assert answers == len(self.sent), (counts, self.logs())
        else:  # an answer that was given and could not be counted as given is given again
            assert answers >= len(self.sent), (counts, self.logs())

    def _reported(self) -> int:
        """Answers told of on the metrics topic; its producer comes back from an outage in its own time."""
        counts = (
            orjson.loads(message.value())["pipelines"]["faults"]
            for message in read_all(self.kafka, self.metrics)
        )
        return sum(each["records"]["out"] + each["records"]["dead_letter"] for each in counts)

    def transactional_ids(self, count: int) -> list[str]:
        """Those that so many workers made for themselves: they begin with the group, which is nobody else's."""
        prefix = f"{self.group}-".encode()
        found: set[bytes] = set()
        topic = "__transaction_state"
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": unique("reader")})
        try:
            partitions = consumer.list_topics(timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])

            def enough() -> bool:
                states = (state for state in consumer.consume(1000, 0.1) if state.error() is None)
                names = {state.key()[4:] for state in states}  # behind a version and a length
                found.update(name for name in names if name.startswith(prefix))
                return len(found) == count

            wait_for(enough, f"{count} transactional ids")
        finally:
            consumer.close()
        return sorted(name.decode() for name in found)

    def logs(self) -> str:
        return "\n".join(worker.text()[-4000:] for worker in self.workers)
