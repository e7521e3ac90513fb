"""The worker as processes on a real Kafka: every answer is the model's own, nothing is lost, doubled or reordered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime as ort
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

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS = 6
OUTPUT_PARTITIONS = 4


class Stage:
    """Topics, a config and the workers of one test; every worker is dead when the test is."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.input, self.output, self.letters = unique("in"), unique("out"), unique("dead")
        self.workers: list[Worker] = []
        create_topics(bootstrap, {self.input: PARTITIONS, self.output: OUTPUT_PARTITIONS, self.letters: 2})
        self.model = models.write(folder, models.mlp())
        (folder / "labels.txt").write_text("\n".join(f"class {i}" for i in range(10)))

    def config(self, **more: Any) -> Path:
        return write_config(
            self.folder,
            {
                "name": "stream",
                "input": {"topics": [self.input], "format": "json"},
                "model": {"path": "model.onnx", "threads": 1},
                "postprocess": {
                    "classification": {"labels": "labels.txt", "top_k": 3, "activation": "softmax"}
                },
                "output": {"topic": self.output},
                "dead_letter": {"topic": self.letters},
                "kafka": {"bootstrap.servers": self.bootstrap, "group.id": unique("group")},
                **more,
            },
        )

    def start(self, config: Path, *arguments: str) -> Worker:
        worker = Worker.start(config, *arguments)
        self.workers.append(worker)
        return worker

    def outputs(self) -> list[Any]:
        return [*read_all(self.bootstrap, self.output), *read_all(self.bootstrap, self.letters)]


@pytest.fixture
def stage(kafka: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(kafka, tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()


def records(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Two thirds keyed, one in ten with a trace; features that survive JSON exactly."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        features = [rng.random() for _ in range(20)]
        record: dict[str, Any] = {"value": orjson.dumps({"features": features})}
        if number % 3:
            record["key"] = f"user-{rng.randrange(500)}".encode()
        else:
            record["partition"] = number % PARTITIONS
        if number % 10 == 0:
            record["headers"] = [("traceparent", f"00-{number:032x}-{number:016x}-01".encode())]
        made.append(record)
    return made


def test_every_answer_is_the_models_own(stage: Stage) -> None:
    """Labels, scores, ids, keys, partitions, order, traces and latency sums of 20,000 records hold."""
    worker = stage.start(stage.config())
    sent = produce(stage.bootstrap, stage.input, records(20_000))
    wait_for_outputs(stage.bootstrap, [stage.output], len(sent), [worker])
    code, _ = worker.stop()
    assert code == 0, worker.text()
    outputs = stage.outputs()
    verdict = judge(sent, outputs)
    assert verdict.clean, verdict

    session = ort.InferenceSession(str(stage.model))
    sent_at = {(s.partition, s.offset): s for s in sent}
    matrix = np.array([orjson.loads(s.value)["features"] for s in sent], np.float32)
    name = session.get_inputs()[0].name
    logits = session.run(None, {name: matrix})[0]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    scores_of = {(s.partition, s.offset): row for s, row in zip(sent, softmax, strict=True)}
    for message in outputs:
        result = orjson.loads(message.value())
        place = place_of(message)
        source = sent_at[place]
        assert result["id"] == f"{stage.input}/{place[0]}/{place[1]}"
        assert message.key() == source.key
        assert message.headers() == (source.headers or None)
        if source.key is None:
            assert message.partition() == place[0] % OUTPUT_PARTITIONS
        else:
            assert message.partition() == murmur2(source.key) % OUTPUT_PARTITIONS
        prediction, scores = result["prediction"], scores_of[place]
        assert prediction["label"] == f"class {int(np.argmax(scores))}"
        assert [top["label"] for top in prediction["top"]] == [f"class {i}" for i in np.argsort(-scores)[:3]]
        assert np.allclose([top["score"] for top in prediction["top"]], np.sort(scores)[::-1][:3], rtol=1e-5)
        latency = result["latency_ms"]
        stages = [latency[stage] for stage in ("broker", "queue", "decode", "wait", "infer", "encode")]
        assert round(sum(stages), 3) == latency["total"]


def murmur2(key: bytes) -> int:
    """The positive 32-bit murmur2 of Kafka's Java client (``org.apache.kafka.common.utils.Utils``)."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for start in range(0, whole, 4):
        k = int.from_bytes(key[start : start + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    rest = key[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


@pytest.mark.parametrize("protocol", [pytest.param("classic", marks=pytest.mark.slow), "consumer"])
def test_replicas_that_come_and_go_lose_double_and_reorder_nothing(stage: Stage, protocol: str) -> None:
    """Three replicas join and leave by SIGTERM under load; each exits with 0 in under 10 s."""
    config = stage.config()
    with_protocol = ["--set", f"kafka.group.protocol={protocol}"]
    rolling(stage, config, with_protocol)
    outputs = stage.outputs()
    verdict = judge(stage.sent, outputs)
    assert verdict.clean, (verdict, [worker.text()[-3000:] for worker in stage.workers])


def rolling(stage: Stage, config: Path, arguments: list[str], count: int = 60_000) -> None:
    """Produce steadily while replicas are replaced one by one."""
    first = stage.start(config, *arguments)
    first.wait_ready()
    chunks = iter(np.array_split(np.arange(count), 8))
    everything = records(count)
    stage.sent = []

    def send() -> None:
        part = next(chunks)
        stage.sent += produce(stage.bootstrap, stage.input, [everything[i] for i in part])

    send()
    replicas = [first]
    for _ in range(2):
        replicas.append(stage.start(config, *arguments))
        send()
    for worker in replicas[1:]:
        worker.wait_ready()
    for leaving in list(replicas):
        send()
        replacement = stage.start(config, *arguments)
        code, took_s = leaving.stop()
        assert code == 0, leaving.text()
        assert took_s < 10
        replacement.wait_ready()
        replicas.append(replacement)
    for _ in range(2):
        send()
    alive = [worker for worker in stage.workers if worker.process.poll() is None]
    wait_for_outputs(stage.bootstrap, [stage.output, stage.letters], count, alive)
    for worker in alive:
        code, _ = worker.stop()
        assert code == 0, worker.text()


def test_the_judge_sees_what_is_wrong(stage: Stage) -> None:
    """A result published twice, one left out and one out of order are each found."""
    worker = stage.start(stage.config())
    sent = produce(stage.bootstrap, stage.input, [{"value": r["value"], "partition": 0} for r in records(50)])
    wait_for_outputs(stage.bootstrap, [stage.output], len(sent), [worker])
    outputs = stage.outputs()
    assert judge(sent, outputs).clean
    assert judge(sent, outputs[:-1]).lost
    again = [{"value": outputs[3].value(), "partition": outputs[3].partition()}]
    produce(stage.bootstrap, stage.output, again)
    assert judge(sent, stage.outputs()).doubled == [place_of(outputs[3])]
    swapped = sorted(sent, key=lambda s: s.offset)
    late = [m for m in outputs if place_of(m)[1] != swapped[0].offset]
    first = next(m for m in outputs if place_of(m)[1] == swapped[0].offset)
    produce(stage.bootstrap, stage.letters, [{"value": first.value(), "partition": 0}])
    moved = [m for m in stage.outputs() if m.topic() == stage.letters]
    assert not judge(sent, [*late, *moved]).lost
    wait_for(lambda: worker.process.poll() is None, "the worker to be alive still")


def test_exactly_once_survives_kill_9(stage: Stage) -> None:
    """Replicas killed at random moments: a read_committed reader sees every input once, in order."""
    config = stage.config(delivery="exactly_once")
    rng = random.Random(3)
    stage.sent = []
    everything = records(15_000)
    workers = [stage.start(config), stage.start(config)]
    for worker in workers:
        worker.wait_ready()
    for part in np.array_split(np.arange(len(everything)), 3):
        stage.sent += produce(stage.bootstrap, stage.input, [everything[i] for i in part])
        victim = rng.choice(workers)
        workers.remove(victim)
        victim.kill()
        workers.append(stage.start(config))
    wait_for_outputs(stage.bootstrap, [stage.output], len(stage.sent), workers, 120)
    wait_for(lambda: not judge(stage.sent, stage.outputs()).lost, "every result to be committed", 60)
    for worker in workers:
        assert worker.stop()[0] == 0, worker.text()
    verdict = judge(stage.sent, stage.outputs())
    assert verdict.clean, (verdict, [worker.text()[-3000:] for worker in stage.workers])
