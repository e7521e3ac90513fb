"""The worker as a process: what it serves, counts, logs and hides, and how it ends."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
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

from worker.telemetry import names

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

SECRET = "correct-horse-battery"
FAMILIES = {
    "records",
    "records_in",
    "records_in_flight",
    "errors",
    "items",
    "batches",
    "stage_duration_seconds",
    "batch_size",
    "in_flight_bytes",
    "consumer_lag_records",
    "rebalances",
    "transactions",
    "rewinds",
    "model_info",
    "assigned_partitions",
    "broker_available",
    "kafka_errors",
    "log_lines_dropped",
}


class Stage:
    """Topics, a configuration and the workers of one test."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.input, self.output, self.letters, self.metrics = map(unique, ("in", "out", "dead", "metrics"))
        self.group = unique("group")
        create_topics(kafka, {self.input: 4, self.output: 4, self.letters: 1, self.metrics: 1})
        models.write(folder, models.identity(), "same.onnx")
        models.write(folder, models.slow(steps=100), "slow.onnx")
        self.workers: list[Worker] = []

    def start(self, *arguments: str, env: dict[str, str] | None = None, **sections: Any) -> Worker:
        config = {
            "input": {"topics": [self.input], "format": "json"},
            "model": {"path": "same.onnx", "threads": 1},
            "output": {"topic": self.output},
            "dead_letter": {"topic": self.letters},
            **sections,
        }
        config["kafka"] = {
            "bootstrap.servers": self.kafka,
            "group.id": self.group,
            **sections.get("kafka", {}),
        }
        worker = Worker.start(write_config(self.folder, config), *arguments, env=env)
        self.workers.append(worker)
        return worker

    def outputs(self) -> list[Any]:
        return [*read_all(self.kafka, self.output), *read_all(self.kafka, self.letters)]


@pytest.fixture
def stage(kafka: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(kafka, tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()


def good(count: int, width: int = 4) -> list[dict[str, Any]]:
    return [{"value": orjson.dumps({"features": [n] * width}), "partition": n % 4} for n in range(count)]


def bad(count: int) -> list[dict[str, Any]]:
    return [{"value": b"no JSON", "partition": n % 4} for n in range(count)]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def port_of(worker: Worker) -> int:
    """The port the worker says it serves on."""
    found = wait_for(lambda: re.search(r'"port": (\d+)', worker.text()), "the port in the log")
    return int(found[1])


def two_free_ports() -> int:
    """The first of two ports side by side, below those that outgoing connections take."""
    for port in random.sample(range(15_000, 30_000, 2), 100):
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            return port
    raise AssertionError("no free ports")


def samples(text: str) -> dict[str, float]:
    """Prometheus text as {"name{labels}": value}, our prefix left out."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix("streaminfer_"): float(value) for name, _, value in lines}


def _of_all_versions(now: dict[str, float], family: str, label: str) -> float:
    """The sum of a family's series that have a label."""
    return sum(value for name, value in now.items() if name.startswith(f"{family}{{") and label in name)


def test_http_and_metrics_topic_tell_the_same_truth(stage: Stage) -> None:
    """Counters add up, over HTTP and in the metrics topic; health answers; port 0 is logged; names have defaults."""
    worker = stage.start(metrics={"topic": stage.metrics, "interval_s": 0.3, "http": "127.0.0.1:0"})
    worker.wait_ready()
    port = port_of(worker)
    produce(stage.kafka, stage.input, [*good(900), *bad(50)])
    wait_for_outputs(stage.kafka, [stage.output, stage.letters], 950, [worker])

    def settled() -> dict[str, float] | None:
        now = samples(get(port, "/metrics")[1])
        return now if now.get('records_in_flight{pipeline="same"}') == 0 else None

    now = wait_for(settled, "nothing in flight")
    text = get(port, "/metrics")[1]
    families = {
        line.split()[2].removeprefix("streaminfer_")
        for line in text.splitlines()
        if line.startswith("# TYPE streaminfer_")
    }
    assert families == {metric.name for metric in names.METRICS}
    assert {name.removesuffix("_total") for name in families} >= FAMILIES
    assert "process_resident_memory_bytes" in now
    assert now['records_in_total{pipeline="same"}'] == 950
    assert _of_all_versions(now, "records_total", 'outcome="ok"') == 900
    assert _of_all_versions(now, "records_total", 'outcome="dead_letter"') == 50
    assert _of_all_versions(now, "errors_total", 'reason="undecodable"') == 50
    assert _of_all_versions(now, "items_total", 'pipeline="same"') == 900
    assert now['batch_size_sum{pipeline="same"}'] == 900
    assert now['batch_size_count{pipeline="same"}'] == _of_all_versions(now, "batches_total", "pipeline")
    stages = {"broker", "queue", "decode", "wait", "infer", "encode", "total", "hold", "publish"}
    assert {
        name
        for name in stages
        if _of_all_versions(now, "stage_duration_seconds_count", f'stage="{name}"') > 0
    } == stages
    assert any(name.startswith('model_info{name="same",') and 'provider="cpu"' in name for name in now)
    for path in ("/livez", "/readyz", "/progressz", "/v2/health/live", "/v2/health/ready"):
        assert get(port, path)[0] == 200, path
    assert json.loads(get(port, "/progressz")[1])["type"] == "streaminfer.metrics"
    assert get(port, "/nothing")[0] == 404

    code, _ = worker.stop()
    assert code == 0
    reports = [orjson.loads(message.value()) for message in read_all(stage.kafka, stage.metrics)]
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report["pipelines"]["same"]["records"])
        total.update(report["pipelines"]["same"]["errors"])
        assert set(report["loop_ratio"]) == {"poll", "submit", "publish", "commit", "wait"}
        assert set(report["pipelines"]["same"]["latency_ms"]) == stages
    assert +total == Counter({"in": 950, "out": 900, "dead_letter": 50, "undecodable": 50})
    last, ids = reports[-1], {message.key() for message in read_all(stage.kafka, stage.metrics)}
    assert ids == {last["worker"]["id"].encode()}
    host, pid = socket.gethostname(), worker.process.pid
    assert last["worker"]["id"] == f"same-{host}-{pid}"
    assert (last["worker"]["group"], last["worker"]["host"], last["worker"]["pid"]) == (
        stage.group,
        host,
        pid,
    )
    places = next(report["partitions"] for report in reversed(reports) if report["partitions"])
    assert set(places) == {f"{stage.input}/{number}" for number in range(4)}
    assert sum(place["position"] for place in places.values()) == 950
    assert sum(place["committed"] + place["lag"] for place in places.values()) == 950


def test_a_position_off_the_broker_is_counted(stage: Stage) -> None:
    """Reading goes on from the earliest record, and `rewinds_total` says so."""
    produce(stage.kafka, stage.input, good(40))
    consumer = Consumer({"bootstrap.servers": stage.kafka, "group.id": stage.group})
    consumer.commit(offsets=[TopicPartition(stage.input, 0, 1_000_000)], asynchronous=False)
    consumer.close()
    worker = stage.start(metrics={"http": "127.0.0.1:0"})
    wait_for_outputs(stage.kafka, [stage.output], 40, [worker])
    assert samples(get(port_of(worker), "/metrics")[1])['rewinds_total{cause="out_of_range"}'] == 1
    assert worker.stop()[0] == 0


def test_a_bad_deploy_stops_the_worker(stage: Stage) -> None:
    """At the dead-letter limit the worker exits with code 4. Its one sentence and `dlq list` count the same."""
    produce(stage.kafka, stage.input, bad(400))
    worker = stage.start()
    assert worker.process.wait(60) == 4, worker.text()
    sentence = next(line for line in worker.text().splitlines() if line.startswith("streaminfer: "))
    assert "dead_letter.stop_after" in sentence
    assert "Traceback" not in worker.text()
    letters = read_all(stage.kafka, stage.letters)
    consumer = Consumer({"bootstrap.servers": stage.kafka, "group.id": stage.group})
    positions = consumer.committed([TopicPartition(stage.input, n) for n in range(4)], timeout=10)
    consumer.close()
    committed = sum(max(0, position.offset) for position in positions)
    assert committed < len(letters) <= 400
    counted = int(re.search(r"(\d+) of the last", sentence)[1])  # type: ignore[index]
    assert len(letters) == counted
    assert f": {counted} " in sentence
    assert f"they are in {stage.letters}" in sentence


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_dead_letter_whose_timestamp_is_refused_keeps_it_in_a_header(stage: Stage, delivery: str) -> None:
    """Too old and too far ahead for its topic: of the present, and the worker goes on. Any other one stays as it is."""
    hour_ms = 3_600_000
    anything = {"message.timestamp.after.max.ms": str(1 << 60)}
    source, letters = unique("in"), unique("dead")
    create_topics(stage.kafka, {source: 1}, **anything)
    create_topics(stage.kafka, {letters: 1}, **{"message.timestamp.before.max.ms": str(hour_ms)})
    worker = stage.start(
        input={"topics": [source], "format": "json"}, dead_letter={"topic": letters}, delivery=delivery
    )
    now_ms = int(time.time() * 1000)
    stamps = [now_ms - 2 * hour_ms, now_ms - 1_000, now_ms + 2 * hour_ms]
    values = [b"no JSON", b'{"features": [1, 2, 3, 4]}']
    produce(stage.kafka, source, [{"value": v, "timestamp": stamp} for stamp in stamps for v in values])

    def answered() -> bool:
        assert worker.process.poll() is None, worker.text()
        return all(len(read_all(stage.kafka, topic)) == 3 for topic in (letters, stage.output))

    wait_for(answered, "three letters and three results")
    assert worker.stop()[0] == 0, worker.text()
    found = read_all(stage.kafka, letters)
    kept = [dict(letter.headers()).get("streaminfer.timestamp_ms") for letter in found]
    assert kept == [b"%d" % stamps[0], None, b"%d" % stamps[2]]
    assert found[1].timestamp()[1] == stamps[1]
    for letter in (found[0], found[2]):
        assert now_ms <= letter.timestamp()[1] < now_ms + 60_000
    assert '"rewind"' not in worker.text()


def test_sigterm_under_load_drains_and_says_so(stage: Stage) -> None:
    """While draining it is alive and not ready; it ends with 0 within its budget; a successor loses and doubles nothing."""
    worker = stage.start(
        model={"path": "slow.onnx", "threads": 1},
        batching={"max_size": 32},
        postprocess="embedding",
        metrics={"http": "127.0.0.1:0"},
    )
    worker.wait_ready()
    port = port_of(worker)
    sent = produce(stage.kafka, stage.input, good(1500, 512))
    wait_for_outputs(stage.kafka, [stage.output], 1, [worker])
    worker.process.send_signal(signal.SIGTERM)
    answers = []

    def unready() -> bool:
        try:
            answers.append((get(port, "/readyz")[0], get(port, "/livez")[0]))
        except OSError:  # gone already
            return worker.process.poll() is not None
        return answers[-1] == (503, 200)

    wait_for(unready, "an answer that it drains")
    assert worker.process.wait(30) == 0, worker.text()
    second = stage.start(model={"path": "slow.onnx", "threads": 1}, postprocess="embedding")
    wait_for_outputs(stage.kafka, [stage.output], len(sent), [second])
    assert second.stop()[0] == 0
    verdict = judge(sent, stage.outputs())
    assert verdict.clean, verdict


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(stage: Stage, number: int, code: int) -> None:
    """While the first drains a slow model's batch, the second ends the process with 128 + its number."""
    models.write(stage.folder, models.slow(steps=1000), "slow.onnx")
    worker = stage.start(model={"path": "slow.onnx", "threads": 1}, postprocess="embedding")
    worker.wait_ready()
    produce(stage.kafka, stage.input, good(2000, 512))
    wait_for_outputs(stage.kafka, [stage.output], 1, [worker])
    worker.process.send_signal(number)
    wait_for(lambda: '"drain"' in worker.text(), "the drain in the log")
    worker.process.send_signal(number)
    assert worker.process.wait(10) == code


def test_a_batch_on_the_loops_own_thread_cannot_hold_up_a_drain(stage: Stage) -> None:
    """Not ready from the signal on; past the budget the process ends with 5, whatever the loop does."""
    (stage.folder / "own_slow.py").write_text(
        "import sys\nimport time\n\ndef decode(value, headers):\n"
        "    print('begun', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    )
    worker = stage.start(
        input={"topics": [stage.input], "format": "own_slow:decode"},
        model={"path": "same.onnx", "threads": 0},
        limits={"drain_s": 3},
        metrics={"http": "127.0.0.1:0"},
    )
    worker.wait_ready()
    port = port_of(worker)
    produce(stage.kafka, stage.input, good(1))

    wait_for(lambda: "begun" in worker.text(), "the batch to hold the loop")
    assert get(port, "/readyz")[0] == 200
    worker.process.send_signal(signal.SIGTERM)
    wait_for(lambda: get(port, "/readyz")[0] == 503, "the worker to be draining")
    assert worker.process.wait(10) == 5
    assert "limits.drain_s (3 s)" in worker.text()


def test_replicas_have_numbers_in_names_and_ports(stage: Stage) -> None:
    """Each replica serves HTTP on port + index and calls itself <client.id>-<index>; SIGTERM drains all."""
    port = two_free_ports()
    worker = stage.start(
        "--replicas", "2",
        kafka={"client.id": "edge"},
        metrics={"topic": stage.metrics, "interval_s": 0.3, "http": f"127.0.0.1:{port}"},
    )  # fmt: skip

    def served(port: int) -> bool:
        assert worker.process.poll() is None, worker.text()
        try:
            return get(port, "/readyz")[0] == 200
        except OSError:
            return False

    wait_for(lambda: served(port) and served(port + 1), "both ports")
    sent = produce(stage.kafka, stage.input, good(400))
    wait_for_outputs(stage.kafka, [stage.output], 400, [worker])
    assert worker.stop()[0] == 0, worker.text()
    assert judge(sent, stage.outputs()).clean
    assert {message.key() for message in read_all(stage.kafka, stage.metrics)} == {b"edge-0", b"edge-1"}


def test_secrets_and_formats_of_the_log(stage: Stage) -> None:
    """JSON lines off a terminal, readable ones on request; no line, metric, letter or check shows a secret."""
    kafka = {
        "bootstrap.servers": f"kafka.invalid:9092,{stage.kafka}",
        "sasl.password": SECRET,
        "sasl.username": "worker",
        "ssl.key.password": SECRET[::-1],
    }
    metrics = {"topic": stage.metrics, "interval_s": 0.3}
    worker = stage.start(env={"LOG_LEVEL": "debug"}, kafka=kafka, metrics=metrics)
    worker.wait_ready()
    produce(stage.kafka, stage.input, [{"value": SECRET.encode()}, *good(4)])
    wait_for_outputs(stage.kafka, [stage.output, stage.letters], 5, [worker])
    assert worker.stop()[0] == 0
    lines = [json.loads(line) for line in worker.text().splitlines()]
    warnings = [line for line in lines if line["event"] == "the connection to Kafka is not encrypted"]
    assert [(line["level"], line["hosts"]) for line in warnings] == [("warning", ["kafka.invalid:9092"])], (
        worker.text()
    )
    (letter,) = read_all(stage.kafka, stage.letters)
    shown = [worker.text(), str(letter.headers())]
    shown += [message.value().decode() for message in read_all(stage.kafka, stage.metrics)]
    config = next(stage.folder.glob("config-*.yaml"))
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "worker", "check", str(config), *options]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr
        shown += [checked.stdout, checked.stderr]
    for line in checked.stdout.splitlines():
        assert set(json.loads(line)) == {"check", "ok", "message"}
    assert not [text for text in shown if SECRET in text or SECRET[::-1] in text]

    readable = stage.start(env={"LOG_FORMAT": "console", "NO_COLOR": "1"})
    wait_for(lambda: "assigned" in readable.text(), "the worker to join")
    assert readable.stop()[0] == 0
    assert not [line for line in readable.text().splitlines() if line.startswith("{") or "\x1b" in line]


def test_tail_gives_json_lines(stage: Stage) -> None:
    """Every field of a record, values as JSON where they are, else base64; and nothing else on standard output."""
    produce(
        stage.kafka,
        stage.output,
        [{"value": b'{"a": 1}', "key": b"k", "headers": [("h", b"v")], "partition": 0}],
    )
    produce(
        stage.kafka, stage.output, [{"value": b"\xff\x00", "partition": 0}, {"value": None, "partition": 0}]
    )
    command = [sys.executable, "-m", "worker", "tail", "--topic", stage.output, "--bootstrap", stage.kafka]
    options = ["--from", "earliest", "--count", "3", "--timeout", "30", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert list(first) == ["topic", "partition", "offset", "timestamp_ms", "key", "headers", "value"]
    assert (first["topic"], first["partition"], first["offset"], first["key"]) == (stage.output, 0, 0, "k")
    assert first["value"] == {"a": 1}
    assert second["value"] == {"base64": "/wA="}
    assert third["value"] is None


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_records_without_a_key_do_not_stop_a_worker_with_compacted_topics(
    stage: Stage, delivery: str
) -> None:
    """A compacted topic refuses records without a key: a result becomes a dead letter, a dead letter gets a key."""
    source, output, letters = unique("in"), unique("out"), unique("dead")
    create_topics(stage.kafka, {source: 1})
    create_topics(stage.kafka, {output: 1, letters: 2}, **{"cleanup.policy": "compact,delete"})
    worker = stage.start(
        input={"topics": [source], "format": "json"},
        output={"topic": output},
        dead_letter={"topic": letters},
        delivery=delivery,
    )
    fine = b'{"features": [1, 2, 3, 4]}'
    produce(
        stage.kafka,
        source,
        [{"value": v, "key": k} for k in (b"k", None) for v in (fine, b"no JSON")],
    )

    def answered() -> bool:
        assert worker.process.poll() is None, worker.text()
        return len(read_all(stage.kafka, output)) == 1 and len(read_all(stage.kafka, letters)) == 3

    wait_for(answered, "one result and three dead letters")
    assert worker.stop()[0] == 0, worker.text()
    assert [record.key() for record in read_all(stage.kafka, output)] == [b"k"]
    found = {
        (record.key(), dict(record.headers())["streaminfer.error.reason"], record.value())
        for record in read_all(stage.kafka, letters)
    }
    assert found == {
        (b"k", b"undecodable", b"no JSON"),
        (f"{source}/0/2".encode(), b"invalid", fine),
        (f"{source}/0/3".encode(), b"undecodable", b"no JSON"),
    }
    compacted = [
        line for line in map(json.loads, worker.text().splitlines()) if "is compacted" in line["event"]
    ]
    assert {line["topic"] for line in compacted} >= {output}
    assert '"rewind"' not in worker.text()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_result_above_the_limit_of_the_client_is_a_dead_letter(stage: Stage, delivery: str) -> None:
    """The user's own ``message.max.bytes`` counts as the topic's limit does; the worker goes on."""
    worker = stage.start(delivery=delivery, kafka={"message.max.bytes": "20000"})
    large, small = good(2)
    produce(stage.kafka, stage.input, [{**large, "key": b"k" * 30_000}, small])

    def answered() -> bool:
        assert worker.process.poll() is None, worker.text()
        return (
            len(read_all(stage.kafka, stage.output)) == 1 and len(read_all(stage.kafka, stage.letters)) == 1
        )

    wait_for(answered, "a result and a dead letter")
    assert worker.stop()[0] == 0, worker.text()
    [letter] = read_all(stage.kafka, stage.letters)
    assert dict(letter.headers())["streaminfer.error.reason"] == b"too_large_output"
