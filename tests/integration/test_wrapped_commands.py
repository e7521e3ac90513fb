"""produce, tail, dlq show and check of a pipeline whose payloads are wrapped, against the embedded broker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import yaml
from kafka_support import Cluster
from stream import read_all

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker

Run = Callable[..., tuple[int, str, str]]
KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """One command line: its exit code, standard output and standard error."""

    def go(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return go


@pytest.fixture
def config(embedded_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cluster = Cluster(embedded_broker.bootstrap, embedded_broker)
    monkeypatch.setenv("PAYLOAD_KEY", KEY)
    models.write(tmp_path, models.identity())
    path = tmp_path / "worker.yaml"
    document = {
        "input": {"topics": [cluster.topic(1)], "format": "json", "unwrap": ["aes-256-gcm", "gzip"]},
        "model": {"path": "model.onnx"},
        "output": {"topic": cluster.topic(1), "wrap": ["zstd", "aes-256-gcm"]},
        "dead_letter": {"topic": cluster.topic(1)},
        "encryption": {"keys": {"a": "${PAYLOAD_KEY}"}, "use": "a"},
        "kafka": {"bootstrap.servers": cluster.bootstrap, "group.id": "wrapped"},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_wrapped_records_go_through_every_command(config: Path, run: Run, tmp_path: Path) -> None:
    """produce wraps as the pipeline expects, tail and dlq show unwrap when asked and never otherwise, check does both."""
    document = yaml.safe_load(config.read_text())
    requests, results = document["input"]["topics"][0], document["output"]["topic"]
    letters = document["dead_letter"]["topic"]
    bootstrap = document["kafka"]["bootstrap.servers"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"features": [1, 2, 3, 4]}\n')

    assert run("produce", rows, "--topic", requests, "--config", config)[0] == 0
    assert run("produce", rows, "--topic", requests, "--config", config, "--as-is")[0] == 0
    wrapped, plain = read_all(bootstrap, requests)
    assert plain.value() == b'{"features": [1, 2, 3, 4]}'
    assert b"features" not in (wrapped.value() or b"")
    assert dict(wrapped.headers() or []).keys() == {"streaminfer.encryption", "content-encoding"}

    _answer_all(config, run)
    code, shown, _ = run("tail", config, "--count", 1, "--timeout", 10, "--json")
    assert code == 0
    assert "base64" in json.loads(shown)["value"]
    code, shown, _ = run("tail", config, "--count", 1, "--timeout", 10, "--json", "--unwrap")
    assert json.loads(shown)["value"]["prediction"]["outputs"]["y"] == [1, 2, 3, 4]
    code, _, said = run("tail", "--topic", results, "--bootstrap", bootstrap, "--unwrap")
    assert (code, "--unwrap: expected CONFIG" in said) == (2, True)

    assert len(read_all(bootstrap, letters)) == 2
    code, shown, _ = run("dlq", "show", config, "--count", 2, "--json")
    assert "secret" not in shown
    code, shown, _ = run("dlq", "show", config, "--count", 2, "--json", "--unwrap")
    values = [json.loads(line)["value"] for line in shown.splitlines()]
    assert {"features": ["secret"]} in values
    assert {"features": [1, 2, 3, 4]} in values, "what cannot be unwrapped is shown as it is"

    sample = tmp_path / "sample.json"
    sample.write_text('{"features": [5, 6, 7, 8]}')
    code, shown, said = run("check", config, "--offline", "--sample", sample, "--json")
    assert code == 0, said
    assert "5.0" in shown
    assert KEY not in shown + said


def _answer_all(config: Path, run: Run) -> None:
    """What a worker makes of the two records and a bad one: a result and two dead letters."""
    document = yaml.safe_load(config.read_text())
    bad = config.parent / "bad.jsonl"
    bad.write_text('{"features": ["secret"]}\n')
    topic, bootstrap = document["input"]["topics"][0], document["kafka"]["bootstrap.servers"]
    assert run("produce", bad, "--topic", topic, "--config", config)[0] == 0
    with subprocess.Popen([sys.executable, "-m", "worker", "run", str(config)]) as worker:
        try:
            deadline = time.monotonic() + 60
            while (
                len(read_all(bootstrap, document["dead_letter"]["topic"])) < 2 and time.monotonic() < deadline
            ):
                time.sleep(0.1)
        finally:
            worker.terminate()
        assert worker.wait(30) == 0
