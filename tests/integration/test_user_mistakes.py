"""A user's mistake is one sentence that names what is wrong, the right exit code, and never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import onnx
import orjson
import pytest
import yaml
from stream import create_topics, unique

from worker.cli.main import main
from worker.telemetry import logs

CONFIG: dict[str, Any] = {
    "input": {"topics": ["in"], "format": "json"},
    "model": {"path": "mlp.onnx"},
    "output": {"topic": "out"},
    "dead_letter": {"topic": "dead"},
    "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
}
SECRET = "correct-horse"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything a configuration may name by mistake."""
    made = tmp_path_factory.mktemp("mistakes")
    models.write(made, models.mlp(), "mlp.onnx")
    models.write(made, models.image(), "image.onnx")
    newer = onnx.load_from_string(models.identity())
    newer.ir_version = 99
    models.write(made, newer.SerializeToString(), "newer.onnx")
    (made / "external").mkdir()
    models.external(made / "external")
    (made / "external" / "b.bin").unlink()
    (made / "noise.onnx").write_bytes(b"not a model")
    (made / "nine.txt").write_text("\n".join("abcdefghi"))
    (made / "nine.dat").write_text("nine")
    (made / "noise.txt").write_bytes(b"\xff\xfe")
    (made / "empty.txt").write_text("")
    (made / "own.py").write_text("number = 3\n")
    (made / "broken.py").write_text("raise RuntimeError('out of\\ncheese')\n")
    (made / "good.json").write_bytes(orjson.dumps({"features": [0.5] * 20}))
    (made / "short.json").write_bytes(orjson.dumps({"features": [0.5] * 3}))
    (made / "frames").mkdir()
    (made / "rows.csv").write_text("a,b\n1,2\n")
    (made / "lines.jsonl").write_text('{"a": 1}\n')
    (made / "noise.mp4").write_bytes(b"not a film")
    return made


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    logs.configure()


def config(folder: Path, changes: dict[str, Any] | None = None) -> str:
    """A configuration file with some settings changed; keys are paths, None takes a setting away."""
    document: dict[str, Any] = orjson.loads(orjson.dumps(CONFIG))
    for key, value in (changes or {}).items():
        section, *rest = key.split(".", 1) if not key.startswith("kafka.") else ("kafka", key[6:])
        if not rest:
            document[section] = value
        elif value is None:
            del document[section][rest[0]]
        else:
            document.setdefault(section, {})[rest[0]] = value
    path = folder / f"{unique('config')}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return str(path)


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    streams = capfd.readouterr()
    assert "Traceback" not in streams.out + streams.err
    assert SECRET not in streams.out + streams.err
    sentences = [line for line in streams.err.splitlines() if line.startswith("streaminfer: ")]
    assert len(sentences) == 1, streams.err
    return sentences[0]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"batching": {"max_sise": 8}}, 2, "batching.max_sise batching.max_size"),
        ({"kafkaa": {}}, 2, "kafkaa kafka"),
        ({"model.path": "nope.onnx"}, 3, "model.path nope.onnx exist"),
        ({"model.path": "frames"}, 3, "model.path frames directory"),
        ({"model.path": "noise.onnx"}, 3, "model.path noise.onnx"),
        ({"model.path": "newer.onnx"}, 3, "model.path newer.onnx IR 99"),
        ({"model.path": "external/model.onnx"}, 3, "model.path b.bin"),
        ({"model.sha256": "0" * 64}, 3, "model.sha256 mlp.onnx"),
        ({"model.sha256": "xyz"}, 2, "model.sha256 64"),
        ({"model.providers": ["gpu"]}, 2, "model.providers gpu cuda"),
        ({"model.providers": ["tensorrt"]}, 3, "model.providers tensorrt"),
        ({"postprocess": {"classification": {"labels": "nine.txt"}}}, 2, "labels 9 10"),
        ({"postprocess": {"classification": {"labels": "no.txt"}}}, 2, "classification.labels no.txt exist"),
        (
            {"postprocess": {"classification": {"labels": "frames"}}},
            2,
            "classification.labels frames directory",
        ),
        (
            {"postprocess": {"classification": {"labels": "noise.txt"}}},
            2,
            "classification.labels noise.txt UTF-8",
        ),
        ({"postprocess": {"classification": {"labels": "empty.txt"}}}, 2, "classification.labels empty.txt"),
        ({"postprocess": {"raw": {}, "regression": {}}}, 2, "postprocess raw regression one"),
        ({"postprocess": "detection"}, 2, "postprocess.detection matrix"),
        ({"postprocess": "own:number"}, 2, "own:number call"),
        ({"postprocess": "broken:f"}, 2, "broken:f cheese"),
        ({"input.format": "xml"}, 2, "input.format xml json"),
        ({"input.format": "nowhere:f"}, 2, "nowhere:f"),
        ({"input.format": "own:f"}, 2, "own:f attribute"),
        ({"input.format": "image"}, 2, "preprocess.image [?, 20]"),
        (
            {"input.format": "image", "model.path": "image.onnx", "preprocess": {"image": {"color": "gray"}}},
            2,
            "color",
        ),
        (
            {"input.format": "image", "model.path": "image.onnx", "preprocess": {"image": {"size": [8, 9]}}},
            2,
            "size",
        ),
        ({"input.fields": ["a", "b"]}, 2, "input.fields 2 20"),
        ({"input.topics": []}, 2, "input.topics"),
        ({"input.topics": None}, 2, "input.topics required"),
        ({"input.max_bytes": -1}, 2, "input.max_bytes -1"),
        ({"preprocess": {"numeric": {"mean": [1, 2, 3]}}}, 2, "preprocess.numeric.mean 3 20"),
        ({"preprocess": {"inputs": {"zz": {"from": "a"}}}}, 2, "preprocess.inputs zz x"),
        ({"output.topic": "in"}, 2, "output.topic in"),
        ({"output.topic": "o p"}, 2, "output.topic 'o p'"),
        ({"output.format": "oip", "postprocess": "regression"}, 2, "output.format oip raw"),
        ({"dead_letter.topic": "in"}, 2, "dead_letter.topic in"),
        ({"dead_letter.stop_after": {"ratio": 2}}, 2, "dead_letter.stop_after.ratio 2 1"),
        ({"batching": {"max_size": 0}}, 2, "batching.max_size 0 auto"),
        ({"batching": {"max_size": 10**30}}, 2, "batching.max_size"),
        ({"batching": {"max_wait_ms": -1}}, 2, "batching.max_wait_ms -1"),
        ({"limits": {"in_flight_bytes": 1000}}, 2, "limits.in_flight_bytes 1000"),
        ({"metrics": {"http": "9464"}}, 2, "metrics.http 9464 host:port"),
        ({"metrics": {"http": "http://127.0.0.1:9464"}}, 2, "metrics.http http://127.0.0.1:9464 host:port"),
        ({"limits": {"drain_s": 1e12}}, 2, "limits.drain_s 1000000"),
        ({"limits": {"image_pixels": 2**64}}, 2, "limits.image_pixels"),
        ({"kafka.delivery.report.only.error": True}, 2, "kafka.delivery.report.only.error acknowledged"),
        ({"name": "${NOT_SET_ANYWHERE}"}, 2, "name NOT_SET_ANYWHERE"),
        ({"kafka": None}, 2, "kafka.bootstrap.servers"),
        ({"kafka.group.id": ""}, 2, "kafka.group.id"),
        ({"kafka.partitioner": "random"}, 2, "kafka.partitioner output.partition"),
        ({"kafka.transactional.id": "t"}, 2, "kafka.transactional.id"),
        ({"kafka.ssl.engine.location": "x"}, 2, "kafka.ssl.engine.location"),
        ({"kafka.linger.msx": 3}, 2, "kafka.linger.msx kafka.linger.ms"),
        ({"kafka.linger.ms": "soon"}, 2, "kafka.linger.ms"),
        ({"kafka.sasl.password": [SECRET]}, 2, "sasl.password"),
        ({"kafka.acks": 0}, 2, "acks"),
        ({"kafka.group.protocol": "consumer", "kafka.session.timeout.ms": 9000}, 2, "session.timeout.ms"),
        (
            {
                "kafka.bootstrap.servers": "kafka.example.com:9092",
                "kafka.security.protocol": "SASL_PLAINTEXT",
                "kafka.sasl.mechanisms": "PLAIN",
                "kafka.sasl.password": SECRET,
            },
            2,
            "kafka.example.com:9092 security.allow_plaintext",
        ),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(
    changes: dict[str, Any], code: int, words: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`check --offline` ends with one sentence that has the key, what was there and what would be right."""
    assert main(["check", config(folder, changes), "--offline"]) == code
    sentence = said(capfd)
    assert not [word for word in words.split() if word not in sentence], sentence


def test_a_good_configuration_is_checked_without_log_lines(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal they would stand in the middle of the report; with LOG_LEVEL they can be had."""
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    path = config(folder)
    assert main(["check", path, "--offline"]) == 0
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("LOG_LEVEL", "info")
    assert main(["check", path, "--offline"]) == 0
    assert "model ready" in capfd.readouterr().err


def test_what_custom_code_prints_is_not_in_the_report(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output of `check --json` holds the report alone; what custom code prints, imported or called, is on standard error."""
    (folder / "custom_loud.py").write_text(
        "print('imported')\n\ndef f(outputs):\n    print('called')\n    return 1\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    path = config(folder, {"postprocess": "custom_loud:f"})
    assert main(["check", path, "--offline", "--json", "--sample", str(folder / "good.json")]) == 0
    out, err = capfd.readouterr()
    checks = [json.loads(line) for line in out.splitlines()]
    assert all(check.keys() == {"check", "ok", "message"} for check in checks)
    assert "sample" in {check["check"] for check in checks}
    assert {"imported", "called"} <= set(err.split())


def test_run_names_the_mistake_that_check_names(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of two, the misspelt property comes first: it is said before a model is loaded."""
    path = config(folder, {"kafka.group.idd": "g", "model.path": "nope.onnx"})
    for arguments in (["check", path, "--offline"], ["run", path]):
        assert main(arguments) == 2
        assert "kafka.group.idd" in said(capfd)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input: [a\nb: {", "line 2 YAML"),
        ("input:\n\ttopics: [a]\n", "line 2 YAML"),
        ("- a\n", "mapping list"),
        ("", "mapping nothing"),
        ("name: a\nname: b\n", "line 2 name twice"),
        ("pipelines: [a]\n", "pipelines: [a] names"),
        ("password: *correct-horse\n", "YAML line 1"),
        ("a: !!python/object/apply:os.system [true]\n", "YAML line 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(
    text: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Broken YAML gives the file, the line and what was expected, and shows nothing of the file's values."""
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    for command in (["run"], ["check", "--offline"]):
        assert main([*command, str(path)]) == 2
        sentence = said(capfd)
        assert not [word for word in ("broken.yaml", *words.split()) if word not in sentence], sentence


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", 2, "COMMAND"),
        ("rum {config}", 2, "rum run"),
        ("run", 2, "CONFIG"),
        ("run {folder}/nope.yaml", 2, "nope.yaml no such file"),
        ("run {folder}", 2, "directory"),
        ("run {folder}/mlp.onnx", 2, "mlp.onnx YAML"),
        ("run {config} --frobnicate", 2, "--frobnicate"),
        ("run {config} --replicas 0", 2, "--replicas 0"),
        (
            "run {config} --replicas 2 --set kafka.group.instance.id=a",
            2,
            "kafka.group.instance.id --replicas",
        ),
        ("check {config} --set batching.max_size", 2, "--set batching.max_size key=value"),
        ("check {config} --set batchin.max_size=3", 2, "batchin batching"),
        ("check {config} --set batching.max_size=[", 2, "--set batching.max_size YAML"),
        ("check {config} --offline --sample {folder}/nope.json", 2, "--sample nope.json"),
        ("check {config} --offline --sample {folder}", 2, "--sample directory"),
        ("check {config} --offline --sample {folder}/short.json", 2, "--sample invalid 20 3"),
        ("check {config} --offline --sample {folder}/noise.onnx", 2, "--sample undecodable JSON"),
        ("produce {folder}/nope.jsonl --topic t --bootstrap b:1", 2, "nope.jsonl"),
        ("produce {folder}/frames --topic t --bootstrap b:1", 2, "frames images"),
        ("produce {folder}/noise.mp4 --topic t --bootstrap b:1", 2, "noise.mp4 video"),
        ("produce {folder}/nine.dat --topic t --bootstrap b:1", 2, "nine.dat .csv"),
        ("produce {folder}/rows.csv --topic t --bootstrap b:1 --key z", 2, "--key z a, b"),
        ("produce {folder}/lines.jsonl --topic t", 2, "--bootstrap --config"),
        ("produce {folder}/lines.jsonl --topic t --bootstrap b:1 --rate -1", 2, "--rate -1"),
        ("produce {folder}/lines.jsonl --topic t --bootstrap b:1 --count 0", 2, "--count 0"),
        ("produce {folder}/lines.jsonl --topic t --bootstrap b:1 --header x", 2, "--header x"),
        ("produce {folder}/lines.jsonl --topic t --bootstrap b:1 -X linger.msx=1", 2, "linger.msx linger.ms"),
        ("tail", 2, "CONFIG --topic --bootstrap"),
        ("tail {config} --what metrics", 2, "metrics.topic"),
        ("tail {config} --timeout -1", 2, "--timeout -1"),
        ("broker --port 99999", 2, "--port 99999"),
        ("broker --topic digits", 2, "--topic digits NAME:PARTITIONS"),
        ("demo --seconds -1", 2, "--seconds -1"),
        ("demo --replicas 0", 2, "--replicas 0"),
        ("dlq replay {config} --rate -1", 2, "--rate -1"),
        ("dlq list {config} --where x", 2, "--where x reason="),
    ],
)
def test_a_wrong_command_line_is_named(
    line: str, code: int, words: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command names the argument, the file or the record it cannot use."""
    names = {"config": config(folder), "folder": folder}
    assert main([part.format(**names) for part in line.split()]) == code
    sentence = said(capfd)
    assert not [word for word in words.split() if word not in sentence], sentence


def test_the_embedded_broker_names_a_port_in_use() -> None:
    """Exit code 3 and the option."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "worker", "broker", "--port", str(port)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 3
    assert (
        process.stderr
        == f"streaminfer: --port {port}: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input.topics": ["nope"]}, "input.topics nope exist"),
        ({"output.topic": "nope"}, "output.topic nope exist"),
        ({"dead_letter.topic": "nope"}, "dead_letter.topic nope exist"),
        ({"metrics": {"topic": "nope"}}, "metrics.topic nope exist"),
        ({"output.partition": "input"}, "output.partition"),
        ({"output": {"topic": "nope", "create": {"partitions": 1, "replication": 7}}}, "output.topic nope created"),
        ({"metrics": {"http": "127.0.0.1:{busy}"}}, "metrics.http {busy} in use"),
        ({"kafka.security.protocol": "SASL_PLAINTEXT", "kafka.sasl.mechanisms": "PLAIN", "kafka.sasl.username": "u", "kafka.sasl.password": SECRET}, "authentication {kafka}"),
        ({"kafka.bootstrap.servers": "127.0.0.1:1"}, "kafka.bootstrap.servers 127.0.0.1:1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_broker_would_refuse_is_named(
    changes: dict[str, Any], words: str, folder: Path, kafka: str, broker_topics: dict[str, Any]
) -> None:
    """`run` ends with exit code 3 and one sentence before it takes a record, within 15 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        names = {"busy": busy.getsockname()[1], "kafka": kafka}
        if "http" in changes.get("metrics", {}):
            changes = {"metrics": {"http": changes["metrics"]["http"].format(**names)}}
        path = config(folder, {**broker_topics, **changes})
        started = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "worker", "run", path],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ,
        )
        took_s = time.monotonic() - started
    assert process.returncode == 3, process.stderr
    assert took_s < 15 or os.getloadavg()[0] > (os.cpu_count() or 1)
    assert "Traceback" not in process.stderr
    assert SECRET not in process.stderr
    (sentence,) = (line for line in process.stderr.splitlines() if line.startswith("streaminfer: "))
    assert not [word for word in words.format(**names).split() if word not in sentence], sentence


@pytest.fixture(scope="module")
def broker_topics(kafka: str) -> dict[str, Any]:
    """Settings with topics that are there; the output has fewer partitions than the input."""
    source, results, letters = (unique(name) for name in ("in", "out", "dead"))
    create_topics(kafka, {source: 2, results: 1, letters: 1})
    return {
        "input.topics": [source],
        "output.topic": results,
        "dead_letter.topic": letters,
        "kafka.bootstrap.servers": kafka,
    }
