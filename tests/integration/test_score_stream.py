"""``streaminfer score`` as a process: through kills, with several processes, and what it refuses."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from stream import create_topics, produce, read_all, unique, wait_for, write_config

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker

PARTITIONS = 3


def stage(folder: Path, bootstrap: str, **labels: Any) -> tuple[Path, dict[str, Any]]:
    """A configuration with topics of its own names."""
    settings = {
        "name": "digits",
        "input": {"topics": ["digits"], "format": "json"},
        "model": {"path": "model.onnx"},
        "postprocess": {"classification": {}},
        "output": {"topic": unique("out")},
        "dead_letter": {"topic": "dead"},
        "metrics": {"topic": unique("metrics"), "interval_s": 0.2},
        "labels": {"topic": unique("labels"), **labels},
        "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("group")},
    }
    return write_config(folder, settings), settings


def results(first: int, count: int) -> list[dict[str, Any]]:
    """One in seven says 3."""
    return [
        {
            "key": b"%d" % n,
            "value": orjson.dumps(
                {
                    "id": f"digits/0/{n}",
                    "model": {"name": "digits", "version": "v1"},
                    "prediction": {"label": said(n)},
                }
            ),
        }
        for n in range(first, first + count)
    ]


def said(number: int) -> str:
    return str(number % 10) if number % 7 else "3"


def labels(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"key": b"%d" % n, "value": b'{"label": %d}' % (n % 10)} for n in numbers]


def counted(bootstrap: str, topic: str) -> Counter[tuple[str, str]]:
    """(true, predicted) -> pairs in all windows of all quality records; each result once."""
    found: Counter[tuple[str, str]] = Counter()
    for message in read_all(bootstrap, topic):
        record = orjson.loads(message.value())
        assert record["type"] == "streaminfer.quality"
        for window in record["pipelines"].get("digits", {}).get("v1", {"windows": []})["windows"]:
            found.update({(true, predicted): n for true, predicted, n in window.get("confusion", [])})
    return found


def expected(numbers: range) -> Counter[tuple[str, str]]:
    return Counter((str(n % 10), said(n)) for n in numbers)


def test_figures_go_on_after_a_restart(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one process has counted is in the table of the next one, and in the records once; what waited is counted when its label comes."""
    config, settings = stage(tmp_path, embedded_broker.bootstrap)
    out, late, metrics = (settings[key]["topic"] for key in ("output", "labels", "metrics"))
    for topic in (out, late, metrics):
        embedded_broker.create_topic(topic, 2)
    produce(embedded_broker.bootstrap, out, results(0, 300))
    produce(embedded_broker.bootstrap, late, labels([*range(200)] * 2))
    assert main(["score", str(config), "--once"]) == 0
    assert "waiting: 100 results, 0 labels\nno pair: labels duplicate 200" in capsys.readouterr().out
    produce(embedded_broker.bootstrap, late, labels([*range(200, 300)]))
    assert main(["score", str(config), "--once", "--json"]) == 0
    *_, total, summary = map(orjson.loads, capsys.readouterr().out.splitlines())
    assert (total["labelled"], total["correct"]) == (300, sum(str(n % 10) == said(n) for n in range(300)))
    assert summary == {
        "type": "summary",
        "waiting": {"results": 0, "labels": 0},
        "counts": {"labels_duplicate": 200},
    }
    assert counted(embedded_broker.bootstrap, metrics) == expected(range(300))


def test_partitions_must_be_as_many(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 2 partitions of results and 3 of labels score ends with 3 and says which topics those are; without labels in the file with 2."""
    config, settings = stage(tmp_path, embedded_broker.bootstrap)
    embedded_broker.create_topic(settings["output"]["topic"], 2)
    embedded_broker.create_topic(settings["labels"]["topic"], 3)
    assert main(["score", str(config)]) == 3
    sentence = f"labels.topic: topic {settings['labels']['topic']} has 3 partitions, expected as many"
    assert sentence in capsys.readouterr().err
    del settings["labels"]
    assert main(["score", str(write_config(tmp_path, settings))]) == 2
    assert "labels is required for score" in capsys.readouterr().err


def command(config: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "score", str(config), *arguments],
        stdout=subprocess.DEVNULL if not arguments else subprocess.PIPE,
        stderr=subprocess.PIPE if not arguments else None,
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_pair_is_counted_once_through_kills(kafka: str, tmp_path: Path) -> None:
    """Two processes share the partitions, one after the other is killed with -9 while records flow and labels come twice: each pair is counted once."""
    config, settings = stage(tmp_path, kafka)
    out, late, metrics = (settings[key]["topic"] for key in ("output", "labels", "metrics"))
    create_topics(kafka, {out: PARTITIONS, late: PARTITIONS, metrics: 1})
    logs = [(tmp_path / f"score-{n}.log").open("wb") for n in range(4)]
    running = [start(config, log) for log in logs[:2]]
    try:
        rng = random.Random(7)
        for step, first in enumerate(range(0, 6_000, 1_000)):
            produce(kafka, out, results(first, 1_000))
            late_by = first - 1_000
            if late_by >= 0:
                numbers = [*range(late_by, late_by + 1_000)] * 2
                rng.shuffle(numbers)
                produce(kafka, late, labels(numbers))
                wait_for(
                    lambda least=late_by: counted(kafka, metrics).total() > least * 0.5, "some to be counted"
                )
            if step in (2, 4):
                victim = running.pop(0)
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                running.append(start(config, logs[step // 2 + 1]))
        produce(kafka, late, labels([*range(5_000, 6_000)]))
        wait_for(lambda: counted(kafka, metrics).total() >= 6_000, "all to be counted", 90)
        for process in running:
            process.terminate()
        assert [process.wait(30) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
        for log in logs:
            log.close()
    assert counted(kafka, metrics) == expected(range(6_000))
    last = command(config, "--once", "--json")
    assert last.stdout is not None
    *_, total, summary = map(orjson.loads, last.stdout.read().splitlines())
    last.stdout.close()
    assert last.wait(60) == 0
    assert (total["labelled"], total["unlabelled"]) == (6_000, 0)
    assert summary["waiting"] == {"results": 0, "labels": 0}


def start(config: Path, log: Any) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "worker", "score", str(config)]
    return subprocess.Popen(arguments, stdout=log, stderr=log)


@pytest.mark.slow
def test_its_metrics_are_served(kafka: str, tmp_path: Path) -> None:
    """While score runs, labels.http serves the accuracy as Prometheus text and as JSON, and says when it is ready."""
    config, settings = stage(tmp_path, kafka, http="127.0.0.1:0", window_s=1)
    out, late = settings["output"]["topic"], settings["labels"]["topic"]
    create_topics(kafka, {out: 1, late: 1, settings["metrics"]["topic"]: 1})
    produce(kafka, out, results(0, 10))
    produce(kafka, late, labels([*range(10)]))
    log = tmp_path / "score.log"
    with log.open("wb") as stream:
        process = start(config, stream)
    try:
        port = wait_for(lambda: next(ports(log), None), "the port")
        wait_for(
            lambda: 'quality_accuracy{pipeline="digits",version="v1"} 0.8' in get(port, "metrics"), "figures"
        )
        assert get(port, "readyz") == '{"ready":true}'
        assert any(
            line["type"] == "total" and line["correct"] == 8 for line in orjson.loads(get(port, "quality"))
        )
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert "accuracy 80.000 %" in log.read_text()


def ports(log: Path) -> Iterator[int]:
    for line in log.read_text().splitlines():
        if '"serving metrics and health"' in line:
            yield orjson.loads(line)["port"]


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return str(answer.read().decode())
