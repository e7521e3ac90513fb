"""``streaminfer bench`` on the embedded broker: it finds every answer of a worker, and says when nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from stream import Worker, unique, write_config

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker

GOOD = b'{"features": [1, 2, 3, 4]}'
BAD = b'{"features": "none"}'


@pytest.fixture
def config(tmp_path: Path) -> Iterator[dict[str, Any]]:
    models.write(tmp_path, models.identity())
    with EmbeddedBroker({"in": 3, "out": 2, "dead": 1}) as broker:
        yield {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "model.onnx"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": broker.bootstrap, "group.id": unique("group")},
        }


def bench(folder: Path, config: dict[str, Any], values: list[bytes], *arguments: str) -> tuple[int, Any]:
    """Run the command; its exit code and the document it wrote."""
    source, written = folder / "records.jsonl", folder / "bench.json"
    source.write_bytes(b"\n".join(values))
    path = write_config(folder, config)
    code = main(["bench", str(path), "--source", str(source), "--json", str(written), *arguments])
    return code, orjson.loads(written.read_bytes()) if written.exists() else None


@pytest.mark.parametrize(
    "output", [{"topic": "out"}, {"topic": "out", "format": "oip"}, {"topic": "out", "format": "tensor"}]
)
def test_every_record_of_a_trial_is_accounted_for(
    tmp_path: Path, config: dict[str, Any], output: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the output format, each record is a result or a dead letter, none lost and none twice."""
    config["output"] = output
    worker = Worker.start(write_config(tmp_path, config))
    try:
        worker.wait_ready()
        code, document = bench(tmp_path, config, [GOOD] * 9 + [BAD], "--rate", "500", "--duration", "1")
        shown = capsys.readouterr()
        again, _ = bench(tmp_path, config, [GOOD], "--rate", "500", "--duration", "0.2", "--json", "-")
        assert worker.stop()[0] == 0, worker.text()
    finally:
        worker.kill()
    assert code == again == 0
    assert shown.out == ""
    assert "end to end" in shown.err
    (line,) = capsys.readouterr().out.splitlines()
    assert orjson.loads(line)["records"]["results"] == 100
    records = document["records"]
    assert records["sent"] == 500
    assert records["results"] == 450
    assert records["dead_letters"] == 50
    assert records["lost"] == records["duplicates"] == records["refused"] == 0
    assert 0 < document["latency_ms"]["p50"] <= document["latency_ms"]["p99"]
    assert ("total" in document["stages_ms"]) == ("format" not in output)


def test_no_worker_is_said_before_any_load(
    tmp_path: Path,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an answer to the first record the command ends with exit code 3 and names topic and group."""
    monkeypatch.setattr("worker.bench.load.PATIENCE_S", 1.0)
    code, document = bench(tmp_path, config, [GOOD], "--rate", "500")
    assert (code, document) == (3, None)
    sentence = capsys.readouterr().err
    assert "topic out" in sentence
    assert config["kafka"]["group.id"] in sentence
