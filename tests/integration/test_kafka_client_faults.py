"""What only a real Kafka does to a client: it fences members, takes any header name, and forgets topics."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from fault_stage import Stage
from kafka_support import produce_raw_headers
from stream import Sent, Worker, create_topics, judge, place_of, produce, read_all, wait_for
from test_process_rules import get, port_of, samples

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

GOOD = orjson.dumps({"features": [1.0, 2.0, 3.0, 4.0]})


@pytest.fixture
def stage(kafka: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(kafka, tmp_path)
    made.topics()
    yield made
    for worker in made.workers:
        worker.kill()


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1]


def command(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """One finished command."""
    line = [sys.executable, "-m", "worker", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, timeout=60)


def test_a_member_whose_instance_id_another_uses_ends_with_6(stage: Stage) -> None:
    """The group fences the first of two members with one group.instance.id: it exits with 6 and says why."""
    static = {"group.instance.id": "the-only-one", "session.timeout.ms": 6000}
    first = stage.start("at_least_once", static)
    first.wait_ready()
    second = stage.start("at_least_once", static)
    assert first.process.wait(60) == 6, first.text()
    assert "fenced" in last_line(first.text())
    second.wait_ready()
    stage.send(10)
    stage.workers.remove(first)
    stage.wait_for_everything()


def test_an_assignor_that_the_broker_does_not_know_ends_with_6(stage: Stage) -> None:
    """With the consumer protocol the broker refuses the member for good: exit 6, not a worker that waits for ever."""
    worker = stage.start(
        "at_least_once", {"group.protocol": "consumer", "group.remote.assignor": "no-such-assignor"}
    )
    assert worker.process.wait(60) == 6, worker.text()
    assert "assignor" in last_line(worker.text())


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_header_name_that_is_not_utf_8_is_one_dead_letter(stage: Stage, delivery: str) -> None:
    """The records around it are answered; `dlq` and `tail` show the letter, and its replay is answered."""
    stage.sent += produce(stage.kafka, stage.input, [{"value": GOOD, "partition": 0}])
    produce_raw_headers(stage.kafka, stage.input, GOOD, [(b"ok", b"1"), (b"caf\xe9", b"2")])
    stage.sent.append(Sent(0, 1, None, GOOD, []))
    stage.sent += produce(stage.kafka, stage.input, [{"value": GOOD, "partition": 0}])
    stage.start(delivery)
    stage.wait_for_everything()
    (letter,) = read_all(stage.kafka, stage.letters)
    headers: list[tuple[str, bytes]] = letter.headers()
    assert letter.value() == GOOD
    assert headers[:3] == [("streaminfer.headers.renamed", b"2"), ("ok", b"1"), ("caf\ufffd", b"2")]
    assert dict(headers)["streaminfer.error.reason"] == b"invalid"
    assert dict(headers)["__connect.errors.stage"] == b"decode"
    assert (
        dict(headers)["__connect.errors.exception.message"]
        == b"expected header names in UTF-8, other bytes in header 2"
    )
    config = next(stage.folder.glob("*.y*ml"))
    assert command("dlq", "replay", config).returncode == 0
    stage.sent.append(Sent(0, 3, None, GOOD, []))
    stage.wait_for_everything()
    assert len(read_all(stage.kafka, stage.letters)) == 1


def test_tools_read_header_names_that_are_not_utf_8(stage: Stage) -> None:
    """`tail` and `dlq` show such a record with readable names, also one that is no dead letter of a worker."""
    produce_raw_headers(stage.kafka, stage.letters, b"value", [(b"\xff\xfe", b"1"), (b"ok", b"2")])
    config = stage.config("at_least_once")
    tailed = command("tail", config, "--what", "dead-letter", "--count", "1", "--timeout", "20", "--json")
    assert tailed.returncode == 0, tailed.stderr
    assert json.loads(tailed.stdout)["headers"] == {"\ufffd\ufffd": "1", "ok": "2"}
    for action in ("list", "show"):
        shown = command("dlq", action, config, "--json")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout
    assert b'"replayed": 0' in command("dlq", "replay", config, "--json").stdout


def test_an_input_topic_made_anew_with_records_in_it_ends_with_6(stage: Stage) -> None:
    """The new topic has fewer records than were read of the old one: exit 6 and one sentence, within 10 s."""
    worker = stage.start("at_least_once")
    worker.wait_ready()
    stage.send(200)
    stage.wait_for_everything()
    admin = AdminClient({"bootstrap.servers": stage.kafka})
    for future in admin.delete_topics([stage.input]).values():
        future.result(10)
    wait_for(lambda: stage.input not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topics(stage.kafka, {stage.input: 4})
    produce(stage.kafka, stage.input, [{"value": GOOD, "partition": n % 4} for n in range(20)])
    assert worker.process.wait(15) == 6, worker.text()
    assert "Traceback" not in worker.text()
    sentence = f"streaminfer: input.topics: topic {stage.input} was deleted and made anew"
    assert last_line(worker.text()).startswith(sentence)


def test_lag_is_the_brokers_while_a_slow_model_holds_fetching_back(stage: Stage) -> None:
    """Every figure is one that the broker's own ends had within the last seconds, however long nothing is fetched."""
    (stage.folder / "own_slow.py").write_text(
        "def slow(value, headers):\n"
        "    import time\n    import numpy as np\n    time.sleep(0.05)\n    return {'x': np.zeros(4, np.float32)}\n"
    )
    worker = stage.start(
        "at_least_once",
        {"queued.max.messages.kbytes": 1, "fetch.message.max.bytes": 1000},
        input={"topics": [stage.input], "format": "own_slow:slow"},
        metrics={"topic": stage.metrics, "interval_s": 1, "http": "127.0.0.1:0"},
        limits={"prefetch_bytes": 2048},
    )
    worker.wait_ready()
    places = [TopicPartition(stage.input, number) for number in range(4)]
    asking = Consumer({"bootstrap.servers": stage.kafka, "group.id": stage.group})
    truths: list[tuple[float, int]] = []
    try:

        def true_lag() -> int:
            ends = sum(asking.get_watermark_offsets(place, timeout=10)[1] for place in places)
            done = sum(max(tp.offset, 0) for tp in asking.committed(places, timeout=10))
            return ends - done

        def told() -> tuple[int, float]:
            found = samples(get(port_of(worker), "/metrics")[1])
            lags = [v for k, v in found.items() if k.startswith("consumer_lag_records{")]
            ages = [v for k, v in found.items() if k.startswith("consumer_lag_age_seconds{")]
            assert len(lags) == len(ages) == 4
            return int(sum(lags)), max(ages)

        for _ in range(6):
            stage.sent += produce(
                stage.kafka, stage.input, [{"value": bytes(400), "partition": n % 4} for n in range(100)]
            )
            sent_at = time.monotonic()
            while time.monotonic() < sent_at + 3:
                truths.append((time.monotonic(), true_lag()))
                lag, age_s = told()
                assert age_s < 4, "an end this old counts as not known"
                since = time.monotonic() - 4
                recent = [truth for at, truth in truths if at >= since]
                assert min(recent) - 30 <= lag <= max(recent) + 30, (lag, recent)
                time.sleep(0.1)
            # nothing was sent for 3 s, longer than an end may be old: only what is answered meanwhile may differ
            lag, _ = told()
            assert abs(lag - true_lag()) <= 40
        assert true_lag() > 200, "the model was too fast to say anything of back-pressure"
    finally:
        asking.close()
    assert not re.search(r"Traceback", worker.text())


BOMB_BYTES = 400_000_000
LIMIT_BYTES = 700_000_000
"""Of the memory of a worker: its 150 MB and the bomb once, but not twice."""


def start_limited(stage: Stage) -> Worker:
    """A worker with a limit on its memory, as in a container."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, before[1]))
    try:
        return stage.start(
            "at_least_once",
            {"session.timeout.ms": 6000},
            limits={"in_flight_bytes": 67108864, "prefetch_bytes": 4194304},
            input={"topics": [stage.input], "format": "json", "max_bytes": 1000000},
        )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.timeout(240)
def test_a_record_whose_fetch_kills_is_one_dead_letter(stage: Stage) -> None:
    """40 KB of zstd that hold 400 MB end at most two workers; the next one answers everything else."""
    stage.sent += produce(stage.kafka, stage.input, [{"value": GOOD, "partition": n % 4} for n in range(40)])
    producer = Producer(
        {
            "bootstrap.servers": stage.kafka,
            "compression.type": "zstd",
            "message.max.bytes": 1_000_000_000,
            "queue.buffering.max.kbytes": 1_000_000,
        }
    )
    producer.produce(stage.input, bytes(BOMB_BYTES), partition=0)
    assert producer.flush(60) == 0
    del producer
    bomb = (0, 10)
    stage.sent.append(Sent(*bomb, None, None, []))
    stage.sent += produce(stage.kafka, stage.input, [{"value": GOOD, "partition": n % 4} for n in range(40)])

    def answered() -> bool:
        return not judge(stage.sent, stage.outputs()).lost

    deaths = 0
    worker = start_limited(stage)
    while not answered():
        if worker.process.poll() is not None:
            deaths += 1
            assert deaths <= 2, stage.logs()
            worker = start_limited(stage)
        time.sleep(0.5)
    assert deaths, "the bomb was not one: nobody died of it"
    (letter,) = read_all(stage.kafka, stage.letters)
    headers = dict(letter.headers())
    assert place_of(letter) == bomb
    assert (letter.key(), letter.value()) == (None, None)
    assert headers["streaminfer.error.reason"] == b"crashed"
    assert "streaminfer.record.unread" in headers
    assert worker.stop()[0] == 0
    replayed = command("dlq", "replay", stage.config("at_least_once"), "--json")
    assert orjson.loads(replayed.stdout) == {
        "replayed": 0,
        "skipped": {"trimmed": 1, "foreign": 0},
        "dry_run": False,
    }
