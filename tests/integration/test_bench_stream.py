"""``streaminfer bench`` on the embedded broker: it finds every answer of a worker, and says when nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from confluent_kafka import Producer
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


def test_a_topic_that_others_send_to_is_left_alone(
    tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """bench names the topic it would write to, and writes nothing where somebody else sends, unless it is told to go on."""
    producer = Producer({"bootstrap.servers": config["kafka"]["bootstrap.servers"]})
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            producer.produce("in", GOOD, partition=1)
            producer.flush(1)
            ended.wait(0.05)

    others = threading.Thread(target=send)
    others.start()
    try:
        code, document = bench(tmp_path, config, [GOOD], "--rate", "5")
    finally:
        ended.set()
        others.join()
    assert (code, document) == (2, None)
    said = capsys.readouterr().err
    assert "bench sends its records to topic in on" in said
    assert "others send to topic in now:" in said
    assert "--yes" in said


@pytest.mark.slow
def test_a_search_writes_what_a_plan_counts_from(
    tmp_path: Path,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search over a running worker writes capacity.json with its CPU per record, and `plan` finds it beside the configuration."""
    config["metrics"] = {"topic": "metrics", "interval_s": 0.5}
    monkeypatch.chdir(tmp_path)
    with EmbeddedBroker({"in": 3, "out": 2, "dead": 1, "metrics": 1}) as broker:
        config["kafka"]["bootstrap.servers"] = broker.bootstrap
        path = write_config(tmp_path, config)
        worker = Worker.start(path)
        try:
            worker.wait_ready()
            code, document = bench(
                tmp_path, config, [GOOD], "--search", "--p99-ms", "2000", "--duration", "0.5"
            )
            assert code == 0
            shown = capsys.readouterr().err
            assert worker.stop()[0] == 0, worker.text()
        finally:
            worker.kill()
        if document["noisy"]:
            assert "Too noisy here" in shown
            assert not (tmp_path / "capacity.json").exists()
            return
        written = orjson.loads((tmp_path / "capacity.json").read_bytes())
        assert written == document["capacity"]
        assert written["records_per_s"] == document["best"]["wanted_per_s"]
        assert written["cpu_us_per_record"] > 0
        assert written["group"] == {
            "records_per_s": written["records_per_s"], "replicas": 1, "replicas_known": True, "partitions": 3,
        }  # fmt: skip
        rate = written["records_per_s"]
        assert main(["plan", str(path), "--rate", str(rate), "--p99-ms", "2000"]) == 0
        text = capsys.readouterr().out
    assert "replicas    2   one keeps" in text
    assert "partitions  3 in in: 1 or 2 for each replica" in text
    assert "note" not in text.replace("note        the load generator of the search was late", "")
