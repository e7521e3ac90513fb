"""Payloads by reference through a whole worker: a store with every fault, away for a while, with and without `kill -9`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Message
from fault_stage import MODES, PARTITIONS, Stage
from shop import Shop
from stream import Sent, judge, produce, wait_for

from worker.kafka.broker import EmbeddedBroker

SECRET = "SECRETSECRETSECRET"
SHA256 = "streaminfer.reference.sha256"


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as shop:
        yield shop


class Orders:
    """Records with references, and what must become of each."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.fates: dict[int, str] = {}
        """Number in the record -> ``ok`` or the reason of its dead letter."""

    def record(self, number: int) -> dict[str, Any]:
        """One record; every tenth or so has a fault of its own."""
        shop, body = self.shop, orjson.dumps({"features": [float(number), 0.0, 0.0, 0.0]})
        path, headers = f"/frames/{number}", {"number": b"%d" % number}
        shop.objects[path] = body
        url, fate = f"s3:/{path}", "ok"
        match number % 40:
            case 3:
                del shop.objects[path]
                fate = "reference_missing"
            case 9:
                shop.status[path] = [404]  # it appears in time
            case 13:
                shop.status[path] = [403] * 99  # also to whoever asks again after a crash
                fate = "reference_denied"
            case 17:
                url, fate = "s3://frames/../private/x", "reference_refused"
            case 21:
                shop.objects[path] = b" " * 5_000 + body
                fate = "too_large"
            case 25:
                headers[SHA256] = hashlib.sha256(b"another").hexdigest().encode()
                fate = "reference_mismatch"
            case 29:
                headers[SHA256] = hashlib.sha256(body).hexdigest().encode()
            case 33:
                shop.cut[path] = 1
            case 37:
                shop.status[path] = [503, 500]
        self.fates[number] = fate
        inline = number % 5 == 1
        if inline and fate == "ok":
            return {"value": body, "headers": [("number", b"%d" % number)], "partition": number % PARTITIONS}
        headers["ce_dataref"] = url.encode()
        return {"value": None, "headers": [*headers.items()], "partition": number % PARTITIONS}


def sections(shop: Shop, stage: Stage, **reference: Any) -> dict[str, Any]:
    return {
        "input": {
            "topics": [stage.input],
            "format": "json",
            "max_bytes": 4_096,
            "reference": {
                "allow": ["s3://frames/"],
                "appear_s": 2.0,
                "timeout_s": 3.0,
                "attempts": 2,
                "options": {
                    "endpoint": shop.url,
                    "region": "us-east-1",
                    "access_key_id": "AKIAKEYKEYKEY",
                    "secret_access_key": SECRET,
                },
                **reference,
            },
        },
        "output": {"topic": stage.output, "headers": ["number"]},
        "dead_letter": {"topic": stage.letters, "stop_after": "off"},
    }


def number_of(message: Message) -> int:
    return int(dict(message.headers() or [])["number"])


def check_fates(orders: Orders, sent: list[Sent], outputs: list[Message]) -> None:
    """Each record has what it must have, with its own payload, and times that add up."""
    found: dict[int, str] = {}
    for message in outputs:
        headers = dict(message.headers() or [])
        reason = headers.get("streaminfer.error.reason")
        found[number_of(message)] = reason.decode() if reason else "ok"
        if reason:
            assert headers["ce_dataref"].startswith(b"s3://frames/")  # the letter keeps the reference
            continue
        result = orjson.loads(message.value())
        assert result["prediction"]["outputs"]["y"][0] == number_of(message)
        times = result["latency_ms"]
        assert list(times) == ["broker", "queue", "fetch", "decode", "wait", "infer", "encode", "total"]
        assert abs(sum(times.values()) - 2 * times["total"]) < 0.001
    assert found == orders.fates
    assert len(sent) == len(orders.fates)


@pytest.mark.timeout(90)
def test_a_store_with_every_fault(embedded_broker: EmbeddedBroker, shop: Shop, tmp_path: Path) -> None:
    """400 records: each gets its own payload or the dead letter of its reason, in order, though the store is down meanwhile."""
    stage, orders = Stage(embedded_broker.bootstrap, tmp_path / "stage"), Orders(shop)
    for topic, partitions in (
        (stage.input, PARTITIONS),
        (stage.output, PARTITIONS),
        (stage.letters, 1),
        (stage.metrics, 1),
    ):
        embedded_broker.create_topic(topic, partitions)
    worker = stage.start("at_least_once", **sections(shop, stage))
    worker.wait_ready()
    stage.sent += produce(stage.kafka, stage.input, [orders.record(n) for n in range(200)])
    wait_for(lambda: sum(shop.asked.values()) > 60, "the first requests")
    shop.down = 503
    stage.sent += produce(stage.kafka, stage.input, [orders.record(n) for n in range(200, 400)])
    wait_for(lambda: '"away"' in worker.text(), "the outage in the log")
    down_since = sum(shop.asked.values())
    wait_for(lambda: sum(shop.asked.values()) > down_since + 40, "tries while it is down")
    shop.down = 0
    stage.wait_for_everything()
    assert worker.stop()[0] == 0, stage.logs()
    check_fates(orders, stage.sent, stage.outputs())
    assert '"back"' in worker.text()
    assert SECRET not in worker.text()
    assert shop.most_open <= 32 + 1
    assert not [path for path in shop.asked if "private" in path]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", MODES)
def test_killed_during_an_outage_of_the_store(kafka: str, shop: Shop, tmp_path: Path, mode: str) -> None:
    """The store is away for 20 s, workers are killed before, during and after: 0 lost, order kept, 0 doubled in transactions."""
    stage, orders = Stage(kafka, tmp_path / "stage"), Orders(shop)
    stage.topics()
    config = sections(shop, stage)
    first = stage.start(mode, **config)
    first.wait_ready()
    numbers = iter(range(3_000))

    def send(count: int) -> None:
        stage.sent.extend(produce(kafka, stage.input, [orders.record(next(numbers)) for _ in range(count)]))

    def kill_and_replace() -> None:
        victim = stage.workers.pop()
        victim.kill()
        stage.start(mode, **config)

    send(1_000)
    wait_for(lambda: sum(shop.asked.values()) > 300, "the first requests")
    kill_and_replace()
    shop.down = 503
    send(1_000)
    ends = time.monotonic() + 20
    wait_for(lambda: '"away"' in stage.workers[-1].text(), "the outage in the log")
    kill_and_replace()
    while time.monotonic() < ends:
        time.sleep(0.2)
        assert stage.workers[-1].process.poll() is None, stage.logs()
    shop.down = 0
    send(1_000)
    time.sleep(0.5)
    kill_and_replace()
    stage.wait_for_everything()
    assert [worker.stop()[0] for worker in stage.workers] == [0], stage.logs()
    outputs = stage.outputs()
    verdict = judge(stage.sent, outputs, _place(stage.sent))
    assert not [*verdict.lost, *verdict.reordered, *verdict.unknown], (verdict, stage.logs())
    assert mode == "at_least_once" or not verdict.doubled, verdict
    reasons = Counter(orders.fates.values())
    assert min(reasons[reason] for reason in ("reference_missing", "reference_denied", "too_large")) > 10
    check_fates(orders, stage.sent, outputs)


@pytest.mark.timeout(90)
def test_large_results_wait_for_a_store_that_is_away(
    embedded_broker: EmbeddedBroker, shop: Shop, tmp_path: Path
) -> None:
    """300 results of which each is an object: the store is down meanwhile; every one is there, in order, with its digest."""
    stage = Stage(embedded_broker.bootstrap, tmp_path / "stage")
    for topic in (stage.input, stage.output, stage.letters, stage.metrics):
        embedded_broker.create_topic(topic, PARTITIONS)
    options = sections(shop, stage)["input"]["reference"]["options"]
    output = {
        "topic": stage.output,
        "offload": {"to": "s3://results/", "over_bytes": 50, "timeout_s": 3, "options": options},
    }
    worker = stage.start("at_least_once", output=output)
    worker.wait_ready()
    stage.send(100)
    wait_for(lambda: len(shop.objects) > 20, "the first objects")
    shop.down = 503
    stage.send(200, first=2.0)
    wait_for(lambda: '"away"' in worker.text(), "the outage in the log")
    tries = sum(shop.asked.values())
    wait_for(lambda: sum(shop.asked.values()) > tries + 20, "tries while it is down")
    shop.down = 0
    stage.wait_for_everything()
    assert worker.stop()[0] == 0, stage.logs()
    verdict = judge(stage.sent, stage.outputs())
    assert verdict.clean, verdict
    for message in stage.outputs():
        small = orjson.loads(message.value())
        stored = shop.objects["/" + small["dataref"].removeprefix("s3://")]
        assert hashlib.sha256(stored).hexdigest() == small["sha256"]
        assert orjson.loads(stored)["id"] == small["id"]


def _place(sent: list[Sent]) -> Any:
    places = {int(dict(record.headers)["number"]): (record.partition, record.offset) for record in sent}
    return lambda message: places[number_of(message)]


@pytest.mark.timeout(60)
def test_a_drain_does_not_wait_for_a_store_that_is_away(
    embedded_broker: EmbeddedBroker, shop: Shop, tmp_path: Path
) -> None:
    """SIGTERM while the store does not answer: exit 0 at once; the records are read again by whoever comes next."""
    stage, orders = Stage(embedded_broker.bootstrap, tmp_path / "stage"), Orders(shop)
    for topic in (stage.input, stage.output, stage.letters, stage.metrics):
        embedded_broker.create_topic(topic, PARTITIONS)
    stage.sent += produce(stage.kafka, stage.input, [orders.record(n) for n in (0, 2, 4, 5)])
    shop.down = 503
    worker = stage.start("at_least_once", **sections(shop, stage))
    wait_for(lambda: '"away"' in worker.text(), "the outage in the log")
    code, took_s = worker.stop()
    assert (code, stage.workers.pop()) == (0, worker), worker.text()
    assert took_s < 8
    shop.down = 0
    stage.start("at_least_once", **sections(shop, stage))
    stage.wait_for_everything()
    assert threading.active_count() < 50
