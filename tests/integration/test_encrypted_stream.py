"""Encrypted records on a real Kafka: keys are changed under load, two processes follow, and no record is lost."""

from __future__ import annotations

import base64
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from stream import (
    Sent,
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

HEADER = "streaminfer.encryption"
KEYS = {name: os.urandom(32) for name in ("a", "b")}
PARTITIONS = 4


def cipher(header: bytes) -> AESGCM:
    """By hand, as the documentation says."""
    fields = dict(part.split("=", 1) for part in header.decode().split(";")[1:])
    salt = base64.urlsafe_b64decode(fields["salt"] + "==")
    return AESGCM(HKDF(SHA256(), 32, salt, b"streaminfer").derive(KEYS[fields["kid"]]))


def encrypted(topic: str, kids: str, count: int, first: int) -> Iterator[dict[str, Any]]:
    """Records under these keys in turn, as so many producers would send them; each says its number."""
    headers = {
        kid: f"v1;alg=A256GCM;kid={kid};salt={base64.urlsafe_b64encode(os.urandom(16)).decode()[:22]}".encode()
        for kid in kids
    }
    for number in range(first, first + count):
        header = headers[kids[number % len(kids)]]
        nonce, text = os.urandom(12), orjson.dumps({"features": [number, 0, 0, 0]})
        value = nonce + cipher(header).encrypt(nonce, text, header + b"\n" + topic.encode())
        yield {"value": value, "headers": [(HEADER, header)], "partition": number % PARTITIONS}


@pytest.mark.parametrize("delivery", ["at_least_once", pytest.param("exactly_once", marks=pytest.mark.slow)])
def test_keys_change_under_load(kafka: str, tmp_path: Path, delivery: str) -> None:
    """A key is added and then used for results while records go on: all are answered once, in order, under a key that counted."""
    topics = {unique(name): PARTITIONS for name in ("in", "out", "dead")}
    requests, results, letters = topics
    create_topics(kafka, topics)
    models.write(tmp_path, models.identity())
    for name, key in KEYS.items():
        (tmp_path / f"{name}.key").write_text(base64.b64encode(key).decode())
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [requests], "format": "json", "unwrap": ["aes-256-gcm"]},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": results, "wrap": ["aes-256-gcm"]},
            "dead_letter": {"topic": letters},
            "delivery": delivery,
            "encryption": {"keys": {"a": "file:a.key"}, "use": "a"},
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
        },
    )
    worker = Worker.start(config, "--replicas", "2")
    sent: list[Sent] = []
    try:
        wait_for(lambda: worker.text().count('"assigned"') >= 2, "both replicas")
        sent += produce(kafka, requests, encrypted(requests, "a", 2000, 0))
        wait_for_outputs(kafka, [results, letters], 1, [worker])  # under the first key
        _change(worker, config, {"keys": {"a": "file:a.key", "b": "file:b.key"}, "use": "a"}, 1)
        steady = threading.Thread(
            target=lambda: sent.extend(
                produce(kafka, requests, _paced(encrypted(requests, "ab", 6000, 2000)))
            )
        )
        steady.start()
        time.sleep(0.2)  # so that records are on their way while the key changes
        _change(worker, config, {"keys": {"a": "file:a.key", "b": "file:b.key"}, "use": "b"}, 2)
        steady.join()
        (tmp_path / "a.key").write_text("no key any more")
        worker.process.send_signal(signal.SIGHUP)
        wait_for(lambda: worker.text().count("configuration refused") == 2, "both to keep their keys")
        sent += produce(kafka, requests, encrypted(requests, "ab", 1000, 8000))
        wait_for_outputs(kafka, [results, letters], len(sent), [worker])
        code, _ = worker.stop()
        assert code == 0, worker.text()
    finally:
        worker.kill()
    assert not read_all(kafka, letters)
    answers = {}
    used = set()
    outputs = read_all(kafka, results)
    for message in outputs:
        header = dict(message.headers() or [])[HEADER]
        value = message.value() or b""
        plain = cipher(header).decrypt(value[:12], value[12:], header + b"\n" + results.encode())
        answers[(message.partition(), message.offset())] = orjson.loads(plain)
        used.add(re.search(rb"kid=(\w+)", header)[1])  # type: ignore[index]

    def place(message: Any) -> tuple[int, int]:
        source = answers[(message.partition(), message.offset())]["source"]
        return source["partition"], source["offset"]

    verdict = judge(sent, outputs, place)
    assert verdict.clean, verdict
    numbers = sorted(answer["prediction"]["outputs"]["y"][0] for answer in answers.values())
    assert numbers == list(range(9000))
    assert used == {b"a", b"b"}
    for key in KEYS.values():
        assert base64.b64encode(key).decode() not in worker.text()


def _change(worker: Worker, config: Path, encryption: dict[str, Any], times: int) -> None:
    """Write other keys into the configuration and have both replicas follow."""
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "encryption": encryption}))
    worker.process.send_signal(signal.SIGHUP)
    wait_for(lambda: worker.text().count("keys read again") == 2 * times, "both to read their keys again")


def _paced(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records):
        if number % 100 == 0:
            time.sleep(0.01)
        yield record
