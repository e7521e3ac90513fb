"""Records that kill or hang the process cost one dead letter each; the topic gets past them without a hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
    write_config,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

OWN_CODE = """
import os, signal, time
import numpy as np

def decode(value, headers):
    if value == b"kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    while value == b"hang":
        time.sleep(0.05)
    return {"x": np.full(4, len(value), np.float32)}
"""


@pytest.fixture
def worker(kafka: str, tmp_path: Path) -> Iterator[Any]:
    started: list[Worker] = []

    def start(
        poison: bytes, delivery: str, replicas: int, session_ms: int = 6000, **kafka_properties: str
    ) -> tuple[list[Any], list[Any], Worker]:
        source, output, letters = unique("in"), unique("out"), unique("dead")
        create_topics(kafka, {source: 2, output: 2, letters: 1})
        models.write(tmp_path, models.identity())
        (tmp_path / "own_poison.py").write_text(OWN_CODE)
        config = write_config(
            tmp_path,
            {
                "input": {"topics": [source], "format": "own_poison:decode"},
                "model": {"path": "model.onnx", "threads": 1},
                "batching": {"max_size": 8},
                "output": {"topic": output},
                "dead_letter": {"topic": letters},
                "delivery": delivery,
                "limits": {"batch_timeout_s": 1},
                "kafka": {
                    "bootstrap.servers": kafka,
                    "group.id": unique("group"),
                    **({"session.timeout.ms": session_ms} if session_ms else {}),
                    **kafka_properties,
                },
            },
        )
        values = [b"fine"] * 11 + [poison] + [b"fine"] * 20
        sent = produce(kafka, source, [{"value": v, "partition": i % 2} for i, v in enumerate(values)])
        running = Worker.start(config, "--replicas", str(replicas))
        started.append(running)

        def outputs() -> list[Any]:
            return [*read_all(kafka, output), *read_all(kafka, letters)]

        # the ends of topics say nothing here: what a dead process published may be doubled, or never committed
        wait_for(lambda: not judge(sent, outputs()).lost, f"every record\n{running.text()[-3000:]}", 120)
        return sent, outputs(), running

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize(
    ("poison", "delivery", "replicas"),
    [
        pytest.param(b"kill", "at_least_once", 2, marks=pytest.mark.slow),
        (b"hang", "at_least_once", 1),
        (b"kill", "exactly_once", 2),
    ],
)
def test_the_topic_gets_past_poison(worker: Any, poison: bytes, delivery: str, replicas: int) -> None:
    """The record that kills (or hangs) is the one dead letter, as `crashed`; every other is answered.

    One replica has a supervisor, too, where it is asked for.
    """
    sent, outputs, running = worker(poison, delivery, replicas)
    verdict = judge(sent, outputs)
    assert not verdict.lost, running.text()
    letters = [m for m in outputs if dict(m.headers() or []).get("streaminfer.error.reason")]
    assert [m.value() for m in letters] == [poison], running.text()
    assert dict(letters[0].headers())["streaminfer.error.reason"] == b"crashed"
    assert dict(letters[0].headers())["streaminfer.error.attempts"] == b"3"
    if delivery == "exactly_once":
        assert verdict.clean


@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.slow)])
def test_a_successor_does_not_wait_for_the_session_of_the_process_that_died(
    worker: Any, protocol: str
) -> None:
    """A record that kills the process three times holds its partition up for far less than one session of 45 s."""
    session_ms = (
        45_000 if protocol == "classic" else 0
    )  # with the consumer protocol the broker has 45 s by itself
    began = time.monotonic()
    _sent, outputs, running = worker(b"kill", "at_least_once", 1, session_ms, **{"group.protocol": protocol})
    took_s = time.monotonic() - began
    assert [header for message in outputs for header in message.headers() or () if header[1] == b"crashed"]
    assert running.text().count("left the group for the process that died") >= 2
    assert took_s < 45, running.text()
    print(f"{protocol}: {took_s:.1f} s from the start to the last answer, three deaths among them")
