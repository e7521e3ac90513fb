"""``streaminfer top`` as a command: once for scripts, and in a terminal that is resized."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from stream import produce, unique, write_config

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker
from worker.telemetry.meters import Meters, ModelLabel
from worker.telemetry.topic import WorkerInfo, metrics_record


def replica(number: int, group: str) -> bytes:
    """A metrics record of now: 500 records in the last 10 seconds."""
    seconds = iter((0.0, 10.0, 10.0))
    meters = Meters({"digits": ModelLabel("digits", "3f9c2a71", "cpu")}, lambda: next(seconds), time.time)
    meters.taken("digits", 500)
    meters.counted("digits", ok=500)
    return metrics_record(meters.snapshot(), WorkerInfo(f"digits-{number}", group, "host", number, "0.1.0"))


def config(broker: EmbeddedBroker, folder: Path, **metrics: object) -> tuple[Path, str, str]:
    topic, group = unique("metrics"), unique("group")
    broker.create_topic(topic, 1)
    path = write_config(
        folder,
        {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "model.onnx"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "metrics": {"topic": topic, "interval_s": 1, **metrics},
            "kafka": {"bootstrap.servers": broker.bootstrap, "group.id": group},
        },
    )
    return path, topic, group


def test_a_script_gets_the_group_once(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json there is one object with every replica of the group; without a terminal the text is printed once."""
    path, topic, group = config(embedded_broker, tmp_path)
    records = [replica(1, group), replica(2, group), replica(3, "other")]
    produce(embedded_broker.bootstrap, topic, [{"value": value} for value in records])
    assert main(["top", str(path), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    state = orjson.loads(line)
    assert [row["id"] for row in state["replicas"]] == ["digits-1", "digits-2"]
    assert (state["group"], state["totals"]["out"]) == (group, 100)
    assert main(["top", str(path)]) == 0
    text = capsys.readouterr().out
    assert "2 replicas  answered 100/s" in text
    assert "\x1b" not in text


def test_top_needs_a_metrics_topic(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without metrics.topic the command is one sentence and exit code 2."""
    path, _topic, _group = config(embedded_broker, tmp_path)
    assert main(["top", str(path), "--set", "metrics.topic=null"]) == 2
    assert "metrics.topic: expected a topic" in capsys.readouterr().err


def test_a_terminal_is_drawn_again_when_its_size_changes_and_q_ends_it(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """In a terminal the group is shown on the other screen; smaller, no line is wider; q gives the first screen back, exit 0."""
    path, topic, group = config(embedded_broker, tmp_path)
    produce(embedded_broker.bootstrap, topic, [{"value": replica(1, group)}])
    ours, theirs = pty.openpty()
    size(ours, 30, 100)
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "top", str(path), "--interval", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        wide = read_until(ours, lambda text: "digits-1" in text and "PIPELINE" in text)
        assert "\x1b[?1049h" in wide
        size(ours, 6, 30)
        read_until(ours, lambda text: any(fits(screen, 6, 30) for screen in text.split("\x1b[H")[1:-1]))
        os.write(ours, b"q")
        left = read_until(ours, lambda text: "\x1b[?1049l" in text)
        assert "\x1b[?25h" in left
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


def fits(screen: str, rows: int, columns: int) -> bool:
    """Whether a whole screen has at most so many rows and columns; escape sequences take no room."""
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).replace("\r", "").split("\n")
    return len(shown) <= rows and max(map(len, shown)) <= columns


def size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(terminal: int, enough: Callable[[str], bool]) -> str:
    text, deadline = "", time.monotonic() + 20  # before the replica counts as silent
    while not enough(text):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.2)[0]:
            text += os.read(terminal, 65536).decode()
    return text
