"""The demo as a user starts it: a command, its output, its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

DEMO = [sys.executable, "-m", "worker", "demo"]


@pytest.fixture
def children() -> Iterator[None]:
    """Every process a demo started is gone when it is."""
    yield
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if "digits.yaml" in " ".join(child.cmdline())
    ]
    assert left == []


@pytest.mark.usefixtures("children")
def test_every_digit_is_answered_by_real_replicas() -> None:
    """JSON lines: one prediction per digit sent, then a summary in which both replicas have a share."""
    done = subprocess.run([*DEMO, "--seconds", "3", "--json"], capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    *predictions, summary = map(json.loads, done.stdout.splitlines())

    assert {line["type"] for line in predictions} == {"prediction"}
    assert len({line["id"] for line in predictions}) == len(predictions) == summary["records"] == 180
    assert summary["type"] == "summary"
    assert summary["accuracy"] >= 0.97
    assert len(summary["replicas"]) == 2
    assert all(replica["records"] > 0 for replica in summary["replicas"])
    assert sum(replica["records"] for replica in summary["replicas"]) >= 180
    stages = {stage: line["latency_ms"] for line in predictions[-1:] for stage in line["latency_ms"]}
    assert set(stages) == set(summary["latency_ms"])


@pytest.mark.usefixtures("children")
def test_an_interrupt_ends_with_the_summary() -> None:
    """Ctrl-C in mid-stream drains the replicas and still says how it went."""
    with subprocess.Popen([*DEMO, "--seconds", "600"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if " ms" in line:  # the first digits are on the screen
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.stdout.read()
    assert demo.returncode == 0
    assert "accuracy" in rest
