"""What `streaminfer score` keeps up with, and what a million results that wait take, on a real Kafka.

Two runs of the real command with `--once`: pairs of results and labels that come twice, for CPU time per pair; and results
without labels, for memory. The wall clock shares the machine with the broker, so CPU time is the main figure.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

import orjson  # noqa: E402
from confluent_kafka import Producer  # noqa: E402
from stage import kafka_broker  # noqa: E402
from stream import create_topics, unique, write_config  # noqa: E402

PAIRS = 400_000
PENDING = 1_000_000
PARTITIONS = 4
PAIRS_PER_S = 50_000
"""The promise: pairs a process joins in one second of its CPU time."""
PENDING_MIB = 400
MIB = 1 << 20
BODY = (
    '{"id":"digits/%d/%d","source":{"topic":"digits","partition":%d,"offset":%d,"timestamp_ms":1763676000123},'
    '"model":{"name":"digits","version":"3f9c2a71"},"prediction":{"label":"%d","score":0.9934126,"top":[{"label":"%d",'
    '"score":0.9934126},{"label":"1","score":0.0041871}]},"latency_ms":{"broker":1.8,"queue":0.4,"decode":0.2,"wait":0.1,'
    '"infer":0.9,"encode":0.1,"total":3.5}}'
)


def main(say: Callable[[str], None], json_file: Path | None = None) -> int:
    """Measure; 0 when both promises are kept and every pair was counted."""
    with tempfile.TemporaryDirectory(prefix="streaminfer-score-") as folder, kafka_broker() as broker:
        pairs = _pairs(broker.bootstrap, Path(folder), say)
        pending = _pending(broker.bootstrap, Path(folder), say)
    rows = {**pairs, **pending}
    kept = pairs["pairs/s of CPU"] >= PAIRS_PER_S and pending["RSS, MiB"] <= PENDING_MIB
    print(f"| {' | '.join(rows)} |")
    print(f"| {' | '.join('---' for _ in rows)} |")
    print(f"| {' | '.join(f'{value:.6g}' for value in rows.values())} |")
    print(
        f"promised: {PAIRS_PER_S} pairs/s a process, {PENDING} pending in {PENDING_MIB} MiB: {'kept' if kept else 'missed'}"
    )
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")
    return int(not kept)


def _pairs(bootstrap: str, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Results in order; labels shuffled within ten thousand, every tenth twice."""
    config, out, labels = _stage(bootstrap, folder)
    _send(bootstrap, out, _results(PAIRS))
    order = [number for first in range(0, PAIRS, 10_000) for number in _shuffled(first)]
    twice = (number for number in order for _ in range(2 if number % 10 == 0 else 1))
    _send(bootstrap, labels, ((b"%d" % number, b'{"label":"%d"}' % (number % 10)) for number in twice))
    found = _score(config)
    total = found["lines"][-2]
    assert total["labelled"] == PAIRS, f"{total['labelled']} of {PAIRS} pairs were counted"
    assert found["lines"][-1]["counts"] == {"labels_duplicate": PAIRS // 10}
    say(f"{PAIRS} pairs: {found['cpu_s']:.1f} s of CPU, {found['wall_s']:.1f} s")
    work_s = found["cpu_s"] - _score(_stage(bootstrap, folder)[0])["cpu_s"]  # a start without records
    return {"pairs/s of CPU": PAIRS / work_s, "pairs/s of wall time": PAIRS / found["wall_s"]}


def _pending(bootstrap: str, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Results whose labels never come."""
    config, out, _ = _stage(bootstrap, folder)
    _send(bootstrap, out, _results(PENDING))
    found = _score(config)
    assert found["lines"][-1]["waiting"]["results"] == PENDING
    say(f"{PENDING} pending: {found['rss'] / MIB:.0f} MiB")
    return {"pending": PENDING, "RSS, MiB": found["rss"] / MIB}


def _stage(bootstrap: str, folder: Path) -> tuple[Path, str, str]:
    out, labels, metrics = unique("out"), unique("labels"), unique("metrics")
    create_topics(bootstrap, {out: PARTITIONS, labels: PARTITIONS, metrics: 1})
    settings = {
        "name": "digits",
        "input": {"topics": ["digits"], "format": "json"},
        "model": {"path": "model.onnx"},
        "postprocess": {"classification": {}},
        "output": {"topic": out},
        "dead_letter": {"topic": "dead"},
        "metrics": {"topic": metrics, "interval_s": 1},
        "labels": {"topic": labels},
        "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("group")},
    }
    return write_config(folder, settings), out, labels


def _shuffled(first: int) -> list[int]:
    numbers = [*range(first, min(first + 10_000, PAIRS))]
    random.Random(first).shuffle(numbers)
    return numbers


def _results(count: int) -> Iterator[tuple[bytes, bytes]]:
    for number in range(count):
        place, label = number % PARTITIONS, number % 10 if number % 7 else 3
        yield b"%d" % number, (BODY % (place, number, place, number, label, label)).encode()


def _send(bootstrap: str, topic: str, records: Iterator[tuple[bytes, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "partitioner": "murmur2_random"})
    for key, value in records:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    if producer.flush(120):
        raise OSError("the records could not be sent")


def _score(config: Path) -> dict[str, Any]:
    """One run of the command to the end of what is there."""
    command = [sys.executable, "-m", "worker", "score", str(config), "--once", "--json"]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TESTS.parent
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {"lines": [orjson.loads(line) for line in printed.splitlines()], **_used(usage, began)}


def _used(usage: resource.struct_rusage, began: float) -> dict[str, float]:
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"cpu_s": cpu_s, "wall_s": time.monotonic() - began, "rss": usage.ru_maxrss * 1024}
