"""Drift as its user meets it: a profile of a topic's records, a worker, and digits that get darker."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from stream import Worker, create_topics, produce, read_all, unique, wait_for, write_config

from worker.cli.demo import FOLDER, Digits, png
from worker.cli.main import main
from worker.drift.watch import LEAST_RECORDS

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

WINDOW_S = 12


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


def told(worker: Worker, event: str) -> list[dict[str, Any]]:
    """The log lines of an event."""
    return [json.loads(line) for line in worker.text().splitlines() if f'"event": "{event}"' in line]


def figures(worker: Worker) -> dict[str, float]:
    """The stability index by feature, as Prometheus gets it."""
    (line,) = told(worker, "serving metrics and health")
    with urllib.request.urlopen(f"http://127.0.0.1:{line['port']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^streaminfer_drift_psi\{feature="([^"]+)",pipeline="digits"\} (\S+)$', text, re.M)
    return {feature: float(value) for feature, value in found}


def test_darkened_digits_are_told_once_and_their_end_once(
    kafka: str, tmp_path: Path, started: list[Worker]
) -> None:
    """Digits like those of the profile are silent; darker ones are one warning that names the brightness, in metrics and the
    metrics topic, too; when the light is back, one line says so."""
    topics = {unique("digits"): 2, unique("out"): 2, unique("dead"): 1, unique("metrics"): 1}
    source, results, letters, metrics = topics
    create_topics(kafka, topics)
    digits = Digits.load()
    bright = [{"value": png(frame)} for frame in digits.frames]
    dark = [{"value": png((frame * 0.6).astype(np.uint8))} for frame in digits.frames]
    document = {
        "name": "digits",
        "input": {"topics": [source], "format": "image"},
        "preprocess": {"image": {"size": [28, 28], "color": "gray", "layout": "nchw", "scale": 1 / 255}},
        "model": {"path": str(FOLDER / "digits.onnx"), "threads": 1},
        "postprocess": {"classification": {"labels": str(FOLDER / "digits.txt")}},
        "output": {"topic": results},
        "dead_letter": {"topic": letters},
        "metrics": {"topic": metrics, "interval_s": 1, "http": "127.0.0.1:0"},
        "drift": {"profile": "profile.json", "window_s": WINDOW_S},
        "kafka": {"bootstrap.servers": kafka, "group.id": unique("group")},
    }
    config = write_config(tmp_path, document)
    produce(kafka, source, bright)
    assert (
        main(
            [
                "profile",
                str(config),
                "--from",
                f"topic:{source}@-1h..",
                "--out",
                str(tmp_path / "profile.json"),
            ]
        )
        == 0
    )
    worker = Worker.start(config)
    started.append(worker)
    worker.wait_ready()
    pace = iter(range(0, 10**9, 20))

    def send(records: list[dict[str, bytes]]) -> None:
        first = next(pace) % (len(records) - 20)
        produce(kafka, source, records[first : first + 20])
        time.sleep(0.02)  # a pace, not a wait

    def send_until(records: list[dict[str, bytes]], event: str) -> dict[str, Any]:
        def happened() -> list[dict[str, Any]]:
            send(records)
            return told(worker, event)

        lines: list[dict[str, Any]] = wait_for(happened, event, 90)
        return lines[0]

    ended = time.monotonic() + 2 * WINDOW_S
    while time.monotonic() < ended:
        send(bright)
    wait_for(lambda: figures(worker), f"{LEAST_RECORDS} measured records")
    assert not told(worker, "records differ from the profile")
    assert max(figures(worker).values()) < 0.2
    line = send_until(dark, "records differ from the profile")
    assert line["level"] == "warning"
    assert line["pipeline"] == "digits"
    assert "picture.brightness" in line["psi"]
    assert figures(worker)["picture.brightness"] > 0.2
    assert figures(worker)["picture.size"] < 0.2
    send_until(bright, "records are like the profile again")
    assert worker.stop()[0] == 0, worker.text()
    reported = [orjson.loads(message.value())["pipelines"]["digits"] for message in read_all(kafka, metrics)]
    assert max(each.get("drift", {}).get("picture.brightness", 0) for each in reported) > 0.2
