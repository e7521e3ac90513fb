"""produce, tail and broker as commands, against the embedded broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kafka_support import Cluster
from stream import read_all

from worker.cli import produce
from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster(embedded_broker: EmbeddedBroker) -> Cluster:
    return Cluster(embedded_broker.bootstrap, embedded_broker)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """One command line: its exit code, standard output and standard error."""

    def go(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return go


def sent(cluster: Cluster, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(message.key(), message.value()) for message in read_all(cluster.bootstrap, topic)]


def write_images(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((4, 4, 3), shade, np.uint8))


def test_csv_rows_become_json_objects(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """Numbers stay numbers digit for digit, text is text, an empty cell is null; a column becomes the key."""
    topic, source = cluster.topic(1), tmp_path / "rows.csv"
    source.write_text('id,x,name\n7,0.10,"a, ""b"""\n08,1e-3,\n')
    code, out, _ = run(
        "produce",
        source,
        "--topic",
        topic,
        "--bootstrap",
        cluster.bootstrap,
        "--key",
        "id",
        "--header",
        "a=b=c",
    )
    assert (code, out) == (0, f"2 records sent to {topic}\n")
    assert sent(cluster, topic) == [
        (b"7", b'{"id": 7, "x": 0.10, "name": "a, \\"b\\""}'),
        (b"08", b'{"id": "08", "x": 1e-3, "name": null}'),
    ]
    assert [m.headers() for m in read_all(cluster.bootstrap, topic)] == [[("a", b"b=c")]] * 2


def test_lines_go_as_they_are(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """JSONL lines are sent unchanged, with the key from a field; the source is repeated to make up the count."""
    topic, source = cluster.topic(1), tmp_path / "rows.jsonl"
    lines = [b'{ "id": 1 }', b'{"id":"b", "x": 2}', b'{"id":null}']
    source.write_bytes(b"\n".join(lines) + b"\r\n\n")
    code, _, _ = run(
        "produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap, "--key", "id", "--count", 5
    )
    assert code == 0
    assert sent(cluster, topic) == [
        (b"1", lines[0]),
        (b"b", lines[1]),
        (None, lines[2]),
        (b"1", lines[0]),
        (b"b", lines[1]),
    ]


def test_images_are_sent_as_they_are(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """A folder's images go in the order of their names; other files are left out."""
    topic = cluster.topic(1)
    write_images(tmp_path, ["b.png", "a.jpg", "c.webp"])
    (tmp_path / "notes.txt").write_text("no image")
    code, _, _ = run(
        "produce",
        tmp_path,
        "--topic",
        topic,
        "--bootstrap",
        cluster.bootstrap,
        "--key",
        "name",
        "--rate",
        1000,
    )
    assert code == 0
    names = ["a.jpg", "b.png", "c.webp"]
    assert sent(cluster, topic) == [(name.encode(), (tmp_path / name).read_bytes()) for name in names]


def test_a_video_is_sent_frame_by_frame(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """Each frame is one JPEG, with its number and its time in headers."""
    topic, source = cluster.topic(1), tmp_path / "film.avi"
    film = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for shade in (0, 100, 200):
        film.write(np.full((16, 32, 3), shade, np.uint8))
    film.release()
    code, _, _ = run("produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap)
    assert code == 0
    frames = [
        cv2.imdecode(np.frombuffer(value or b"", np.uint8), cv2.IMREAD_COLOR)
        for _, value in sent(cluster, topic)
    ]
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * 3
    assert [round(float(frame.mean()), -1) for frame in frames] == [0, 100, 200]
    headers = [dict(message.headers() or []) for message in read_all(cluster.bootstrap, topic)]
    assert [header["streaminfer.frame"] for header in headers] == [b"0", b"1", b"2"]
    assert [float(header["streaminfer.time_ms"]) for header in headers] == [0.0, 100.0, 200.0]


def test_standard_input_goes_line_by_line(cluster: Cluster) -> None:
    """``produce -`` sends the lines of standard input."""
    topic = cluster.topic(1)
    command = [sys.executable, "-m", "worker", "produce", "-", "--topic", topic]
    done = subprocess.run(
        [*command, "--bootstrap", cluster.bootstrap], input=b"one\ntwo\n", capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert sent(cluster, topic) == [(None, b"one"), (None, b"two")]


def test_standard_input_that_ends_early_is_a_mistake(cluster: Cluster) -> None:
    """``produce - --count 5`` with two lines sends the two, says so and exits with 2."""
    topic = cluster.topic(1)
    command = [sys.executable, "-m", "worker", "produce", "-", "--count", "5", "--topic", topic]
    done = subprocess.run(
        [*command, "--bootstrap", cluster.bootstrap], input=b"one\ntwo\n", capture_output=True, timeout=60
    )
    assert done.returncode == 2
    expected = f"standard input: expected 5 records (--count), got 2; 2 records sent to {topic} before that"
    assert expected in done.stderr.decode()
    assert sent(cluster, topic) == [(None, b"one"), (None, b"two")]


def test_a_bad_row_says_what_went_before(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """A row with too few cells ends the command with its line and how many records were sent before it."""
    topic, source = cluster.topic(1), tmp_path / "rows.csv"
    source.write_text("a,b\n1,2\n3,4\n5\n")
    code, out, error = run("produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap)
    assert (code, out) == (2, "")
    assert "line 4: expected 2 cells as in the first line, found 1" in error
    assert f"2 records sent to {topic} before that" in error
    assert [value for _, value in sent(cluster, topic)] == [b'{"a": 1, "b": 2}', b'{"a": 3, "b": 4}']


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_table_may_use_other_delimiters(cluster: Cluster, run: Run, tmp_path: Path, delimiter: str) -> None:
    """The delimiter of a table is the one that its first line has most of."""
    topic, source = cluster.topic(1), tmp_path / "rows.csv"
    source.write_text(f'a{delimiter}"b, c"{delimiter}d\n1{delimiter}2{delimiter}x\n')
    code, _, _ = run("produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap)
    assert code == 0
    assert [value for _, value in sent(cluster, topic)] == [b'{"a": 1, "b, c": 2, "d": "x"}']


@pytest.mark.parametrize("name", ["one.json", "one.npy", "one.png"])
def test_a_file_of_one_record_goes_as_it_is(cluster: Cluster, run: Run, tmp_path: Path, name: str) -> None:
    """A .json, .npy or image file is one record, unchanged."""
    topic, source = cluster.topic(1), tmp_path / name
    source.write_bytes(b'{\n "id": 7\n}\n')
    code, _, _ = run("produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap, "--key", "name")
    assert code == 0
    assert sent(cluster, topic) == [(name.encode(), b'{\n "id": 7\n}\n')]


def test_raw_sends_any_file(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """With --raw every file of a folder, or a single one, is one record as it is."""
    topic = cluster.topic(1)
    for name in ("a.wav", "b.csv", "c"):
        (tmp_path / name).write_bytes(name.encode() + b"\0\n")
    options = ["--topic", topic, "--bootstrap", cluster.bootstrap, "--raw"]
    assert run("produce", tmp_path, *options)[0] == 0
    assert run("produce", tmp_path / "a.wav", *options)[0] == 0
    expected = [b"a.wav\0\n", b"b.csv\0\n", b"c\0\n", b"a.wav\0\n"]
    assert [value for _, value in sent(cluster, topic)] == expected


def test_a_folder_says_what_it_leaves_out(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """A folder's images are sent, and the files that are not are counted by their endings."""
    topic = cluster.topic(1)
    write_images(tmp_path, ["a.png"])
    for name in ("b.gif", "c.gif", "notes"):
        (tmp_path / name).write_bytes(b"?")
    code, out, error = run("produce", tmp_path, "--topic", topic, "--bootstrap", cluster.bootstrap)
    assert (code, out) == (0, f"1 record sent to {topic}\n")
    assert "3 of 4 files left out (.gif 2, no ending 1); --raw sends every file as it is" in error


@pytest.mark.parametrize(
    ("name", "content", "options", "sentence"),
    [
        ("gone.csv", None, [], "gone.csv: no such file or folder"),
        ("rows.dat", "a", [], "expected a folder, - or a file that ends in one of"),
        ("rows.csv", "a,b\n1\n", [], "rows.csv line 2: expected 2 cells as in the first line, found 1"),
        ("rows.csv", "a,b\n", [], "expected at least one record, found none"),
        ("rows.csv", "a,b\n1,2\n", ["--key", "c"], "--key c: "),
        ("rows.jsonl", "nonsense\n", ["--key", "c"], "rows.jsonl line 1: --key c needs a JSON object"),
        ("rows.jsonl", "{}\n", ["--header", "x"], "--header x: expected NAME=VALUE"),
        ("rows.jsonl", "{}\n", ["--count", "0"], "--count: expected a whole number of 1 or more, got 0"),
        ("rows.jsonl", "{}\n", ["--rate", "-1"], "--rate: expected a number above 0, got -1"),
        ("rows.jsonl", "{}\n", ["-X", "acsk=1"], "kafka.acsk: librdkafka knows no such property"),
    ],
)
def test_a_mistake_is_one_sentence(
    cluster: Cluster,
    run: Run,
    tmp_path: Path,
    name: str,
    content: str | None,
    options: list[str],
    sentence: str,
) -> None:
    """A source or option that makes no sense ends with exit code 2 and a line that names it."""
    source = tmp_path / name
    if content is not None:
        source.write_text(content)
    code, out, error = run(
        "produce", source, "--topic", cluster.topic(1), "--bootstrap", cluster.bootstrap, *options
    )
    assert (code, out) == (2, "")
    assert sentence in error
    assert error.count("\n") == 1


def test_an_interrupted_produce_says_how_much_it_sent(
    cluster: Cluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is exit 130; what was handed over before is waited for and counted."""
    topic = cluster.topic(1)
    source = tmp_path / "rows.jsonl"
    source.write_text("1\n2\n3\n")
    sent = produce._repeated

    def interrupted(*arguments: Any) -> Iterator[Any]:
        items = sent(*arguments)
        yield from (next(items), next(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(produce, "_repeated", interrupted)
    code, out, _ = run("produce", source, "--topic", topic, "--bootstrap", cluster.bootstrap)
    assert (code, out) == (130, f"2 records sent to {topic} before it was interrupted\n")
    assert len(read_all(cluster.bootstrap, topic)) == 2


def test_a_missing_topic_cannot_start(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """produce and tail say which topic is missing, with exit code 3."""
    source = tmp_path / "rows.jsonl"
    source.write_text("{}\n")
    for command in (["produce", source], ["tail"]):
        code, _, error = run(*command, "--topic", "nowhere", "--bootstrap", cluster.bootstrap)
        assert code == 3
        assert "topic nowhere does not exist" in error


def test_tail_prints_json_lines(cluster: Cluster, run: Run) -> None:
    """Each record is one JSON object: its place, key, headers, and the value as JSON or base64."""
    topic = cluster.topic(1)
    stamp = 1763676000123
    cluster.produce(
        topic,
        [
            {"value": b'{"x": 0.30000000000000004,\n "y": [1]}', "key": b"k", "timestamp": stamp},
            {"value": b"\xff\x00", "headers": [("h", b"text"), ("raw", b"\xff"), ("none", None)]},
            {"value": None},
            {"value": b'{"n": 123456789012345678901234567890}'},
        ],
    )
    code, out, error = run(
        "tail", "--topic", topic, "--bootstrap", cluster.bootstrap, "--count", 4, "--timeout", 30, "--json"
    )
    assert (code, error) == (0, "")
    first, second, third, fourth = out.splitlines()
    assert json.loads(first) == {
        "topic": topic,
        "partition": 0,
        "offset": 0,
        "timestamp_ms": stamp,
        "key": "k",
        "headers": {},
        "value": {"x": 0.30000000000000004, "y": [1]},
    }
    assert json.loads(second)["value"] == {"base64": "/wA="}
    assert json.loads(second)["headers"] == {"h": "text", "raw": {"base64": "/w=="}, "none": None}
    assert json.loads(third)["value"] is None
    assert json.loads(fourth)["value"]["n"] == 123456789012345678901234567890


def test_tail_prints_readable_lines(cluster: Cluster, run: Run) -> None:
    """Text is shown on one line and cannot steer the terminal; other bytes are shown as their size."""
    topic = cluster.topic(1)
    microseconds = 1_763_676_000_123_456
    cluster.produce(
        topic,
        [
            {"value": b"a\x1b[2J\nb", "key": b"k"},
            {"value": b"\xff\xfe", "headers": [("h\x1b", b"v")], "timestamp": microseconds},
        ],
    )
    code, out, _ = run("tail", "--topic", topic, "--bootstrap", cluster.bootstrap, "--count", 2)
    assert code == 0
    first, second = out.splitlines()
    assert first.endswith(f"  {topic}/0/0  key=k  a\\x1b[2J\\nb")
    assert second == f"{microseconds} ms  {topic}/0/1  h\\x1b=v  <2 bytes>"  # no such year: as it is


def test_tail_finds_one_record_and_some_records(cluster: Cluster, run: Run) -> None:
    """--at is one record of any topic; --key, --partition and a time choose among the records of a topic."""
    topic = cluster.topic(2)
    old, now = 1_763_676_000_123, int(time.time() * 1000)
    cluster.produce(
        topic,
        [
            {"value": b"old", "key": b"a", "partition": 0, "timestamp": old},
            {"value": b"new", "key": b"b", "partition": 0, "timestamp": now},
            {"value": b"other", "key": b"a", "partition": 1, "timestamp": now},
        ],
    )
    where = ["--topic", topic, "--bootstrap", cluster.bootstrap, "--json", "--timeout"]

    def values(*options: str) -> list[str]:
        code, out, error = run("tail", *where, 8 if "--at" in options else 1.5, *options)
        assert (code, error) == (0, "")
        return sorted(json.loads(line)["value"]["base64"] for line in out.splitlines())

    assert values("--at", f"{topic}/0/1") == ["bmV3"]
    assert values("--key", "a") == ["b2xk", "b3RoZXI="]
    assert values("--partition", "1") == ["b3RoZXI="]
    assert values("--from", "10m") == ["b3RoZXI=", "bmV3"]
    for options, code, said in (
        (["--at", f"{topic}/0/9"], 3, f"there is no record {topic}/0/9"),
        (["--at", f"{topic}/7/0"], 3, "has no partition 7; expected 0 to 1"),
        (["--at", f"{topic}/0/0", "--key", "a"], 2, "--key: expected without --at"),
        (["--from", "tomorrow"], 2, "--from: expected so long ago"),
    ):
        assert (found := run("tail", *where, 8, *options))[0] == code
        assert said in found[2]


def test_tail_ends_by_time(cluster: Cluster, run: Run) -> None:
    """Short of --count a timeout is exit code 3 with both numbers; without --count it is a normal end."""
    topic = cluster.topic(1)
    cluster.fill(topic, 1, each=2)
    where = ("--topic", topic, "--bootstrap", cluster.bootstrap, "--timeout", 1)
    code, out, error = run("tail", *where, "--count", 5)
    assert (code, out.count("\n")) == (3, 2)
    assert "2 of 5 records came within 1 s" in error
    code, out, _ = run("tail", *where)
    assert (code, out.count("\n")) == (0, 2)
    code, out, _ = run("tail", *where, "--from", "latest")
    assert (code, out) == (0, "")


def test_tail_finds_topics_in_a_config(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    """CONFIG and --what choose the topic; a metrics topic that is not configured is a usage error."""
    results, dead = cluster.topic(1), cluster.topic(1)
    config = tmp_path / "worker.yaml"
    config.write_text(
        f"""
input: {{topics: [in], format: json}}
model: {{path: m.onnx}}
output: {{topic: {results}}}
dead_letter: {{topic: {dead}}}
kafka: {{bootstrap.servers: "{cluster.bootstrap}", group.id: g}}
"""
    )
    cluster.produce(results, [{"value": b"1"}])
    cluster.produce(dead, [{"value": b"2"}])
    for what, value in ((), b"1"), (("--what", "dead-letter"), b"2"):
        code, out, _ = run("tail", config, *what, "--count", 1, "--timeout", 30, "--json")
        assert (code, json.loads(out)["value"]) == (0, int(value))
    code, _, error = run("tail", config, "--what", "metrics")
    assert code == 2
    assert "metrics.topic" in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--topic", "t"],
        ["config.yaml", "--topic", "t"],
        ["--topic", "t", "--bootstrap", "b", "--what", "metrics"],
    ],
)
def test_tail_wants_a_config_or_a_topic(run: Run, arguments: list[str]) -> None:
    """Anything but CONFIG, or --topic with --bootstrap, is a usage error."""
    code, _, error = run("tail", *arguments)
    assert code == 2
    assert "expected" in error


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ``broker`` process and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "broker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "LOG_LEVEL"},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_the_broker_serves_until_it_is_told_to_stop(run: Run, tmp_path: Path) -> None:
    """The command makes the topics it was given, answers on its port, and ends with 0 on SIGTERM."""
    with serving("--port", "0", "--topic", "a:3", "--topic", "b:1") as (process, bootstrap):
        Cluster(bootstrap).fill("a", 3, each=1)
        assert len(read_all(bootstrap, "a")) == 3
        code, _, error = run("broker", "--port", bootstrap.rpartition(":")[2])
        assert code == 3
        assert f"--port {bootstrap.rpartition(':')[2]}: cannot listen" in error
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.SIGTERM not in blocked, "every process started later would inherit it and never drain"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "development broker" in process.stderr.read()


def test_a_broker_topic_needs_partitions(run: Run) -> None:
    """--topic without a number of partitions is a usage error that shows the form."""
    for text in ("a", "a:", "a:0", ":3", "a:x"):
        code, _, error = run("broker", "--topic", text)
        assert code == 2
        assert f"--topic {text}: expected NAME:PARTITIONS" in error
