"""Memory stays inside the configured bound, whichever part of a record is large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from stream import Worker, create_topics, produce, unique, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

MIB = 1 << 20
RECORDS, LARGE = 600, 900_000
LIMITS = {"in_flight_bytes": 64 * MIB, "prefetch_bytes": 8 * MIB, "output_bytes": 16 * MIB}
FETCHED_AHEAD = 20
"""``queued.min.messages``, as the tuning page says for such records: librdkafka's own bound in bytes counts values only."""
SLACK = 3 * FETCHED_AHEAD * LARGE
"""Records fetched ahead, in librdkafka's queue, in the response being read and in the one being parsed."""


@pytest.mark.parametrize("part", ["key", "header"])
def test_large_keys_and_headers_count_as_values_do(kafka: str, tmp_path: Path, part: str) -> None:
    """Of a backlog that is all keys or all headers, a worker holds what its limits allow and a few fetched ahead."""
    source, output, letters = map(unique, ("in", "out", "dead"))
    create_topics(kafka, {source: 1, output: 1, letters: 1})
    value = orjson.dumps({"features": [1.0] * 512})
    large = b"x" * LARGE
    record = {"key": large} if part == "key" else {"headers": [("large", large)]}
    for _ in range(RECORDS // 20):
        produce(kafka, source, [{"value": value, **record}] * 20)
    models.write(tmp_path, models.slow(steps=100), "slow.onnx")
    config: dict[str, Any] = {
        "input": {"topics": [source], "format": "json", "max_bytes": MIB},
        "model": {"path": "slow.onnx", "threads": 1},
        "batching": {"max_size": 8},
        "output": {"topic": output, "headers": "all"},
        "dead_letter": {"topic": letters},
        "limits": LIMITS,
        "kafka": {
            "bootstrap.servers": kafka,
            "group.id": unique("group"),
            "queued.min.messages": FETCHED_AHEAD,
        },
    }
    later = {**config, "input": {**config["input"], "start": "latest"}}
    later["kafka"] = {**config["kafka"], "group.id": unique("group")}
    warm = peak_of(Worker.start(write_config(tmp_path, later)))
    worker = Worker.start(write_config(tmp_path, config))
    try:
        wait_for_outputs(kafka, [output], RECORDS, [worker], 120)
        peak = peak_rss(worker)
        assert worker.stop()[0] == 0, worker.text()
    finally:
        worker.kill()
    assert peak <= warm + sum(LIMITS.values()) + MIB + SLACK, (peak // MIB, warm // MIB)


def peak_of(worker: Worker) -> int:
    """Peak resident bytes of a worker that is ready and has read nothing."""
    try:
        worker.wait_ready()
        return peak_rss(worker)
    finally:
        worker.kill()


def peak_rss(worker: Worker) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
