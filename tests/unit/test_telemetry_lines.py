"""Log lines that cannot be written are dropped and counted; nobody waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from worker.telemetry.lines import LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def test_lines_arrive_in_order(pipe: tuple[int, int]) -> None:
    """Every line is written whole and in the order in which it was put."""
    reader, writer = pipe
    lines = LineWriter(writer)
    for number in range(100):
        lines.put(f"{number}\n")
    assert lines.flush(10)
    assert os.read(reader, 1 << 16).decode().split() == [str(number) for number in range(100)]
    assert lines.dropped == 0


def test_a_reader_that_stops_reading_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    """With the pipe full, put returns at once, flush returns within its limit, and what is lost is counted and told."""
    reader, writer = pipe
    told: list[int] = []
    lines = LineWriter(writer, most_bytes=10_000, on_recovery=told.append)
    line = "x" * 99 + "\n"
    while lines.flush(0.1):  # until the pipe holds no more
        for _ in range(50):
            lines.put(line)
    before, started = lines.dropped, time.monotonic()
    for _ in range(3000):
        lines.put(line)
    assert time.monotonic() - started < 5
    lost = lines.dropped
    assert lost - before > 2800
    read = 0
    reading = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 4096), b"")])
    reading.start()
    assert lines.flush(10)
    while not told:
        lines.put("again\n")
        assert lines.flush(10)
        read += 1
        assert read < 1000
    assert told == [lost]
    os.close(writer)
    reading.join(10)


def test_a_reader_that_is_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    """A broken pipe raises nothing; each line that was lost is counted."""
    reader, writer = pipe
    os.close(reader)
    lines = LineWriter(writer)
    for _ in range(5):
        lines.put("lost\n")
    assert lines.flush(10)
    assert lines.dropped == 5


def test_a_full_disk_costs_lines_only() -> None:
    """ENOSPC raises nothing; each line that was lost is counted."""
    with open("/dev/full", "wb") as full:
        lines = LineWriter(full.fileno())
        lines.put("lost\n")
        assert lines.flush(10)
        assert lines.dropped == 1


CRASH = """
import sys
from worker.cli import main

def broken(argv):
    password = "hunter2-in-a-local"
    raise RuntimeError("before logging is set up")

main._dispatch = broken
sys.exit(main.main())
"""


def test_a_crash_before_logging_is_set_up_shows_no_local_variable() -> None:
    """The traceback names lines, never the values of variables or of secret arguments; the exit code is 1."""
    command = [sys.executable, "-c", CRASH, "run", "x.yaml", "--set", "kafka.sasl.password=hunter2-argument"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "before logging is set up" in done.stderr
    assert "hunter2" not in done.stderr


LOGS = """
import sys
from worker.telemetry import logs
from worker.__main__ import main
import worker.cli.main as cli

def run(argv):
    logs.configure()
    for number in range(10_000):
        logs.get("t").info("a line", number=number, padding="x" * 100)
    open(sys.argv[1], "w").write("done")
    return 0

cli._dispatch = run
sys.exit(main())
"""


@pytest.mark.parametrize("broken", ["nobody reads", "nobody ever read", "the disk is full", "closed"])
def test_whatever_becomes_of_the_log_the_command_ends_as_it_would(broken: str, tmp_path: Path) -> None:
    """Log pipe full, broken or closed, disk full: the work is done and the exit code is the command's own."""
    done = tmp_path / "done"
    command = [sys.executable, "-c", LOGS, str(done)]
    if broken == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        if broken == "nobody ever read":
            os.close(reader)
        process = subprocess.Popen(command, stderr=full if broken == "the disk is full" else writer)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        assert done.read_text() == "done"
    finally:
        for end in {reader, writer, full}:
            with suppress(OSError):
                os.close(end)


def test_standard_output_closed_from_the_start_changes_no_exit_code() -> None:
    """A command that succeeded exits with 0 although it has no standard output."""
    command = [sys.executable, "-m", "worker", "--version"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
