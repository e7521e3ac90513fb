"""The tutorial as a newcomer follows it: its own command lines, in order, on the embedded broker."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from stream import wait_for

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PATIENCE_S = 60


@pytest.fixture
def broker_port() -> int:
    """A port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def background() -> Iterator[ExitStack]:
    """Commands that the tutorial leaves running in terminals of their own; interrupted in reverse order at the end."""
    with ExitStack() as stack:
        yield stack


def test_every_step_of_the_tutorial_works(broker_port: int, background: ExitStack) -> None:
    """Each command of the tutorial exits with 0; its ten frames are answered and its bad record is one dead letter."""
    environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker_port}", "NO_COLOR": "1"}
    said: dict[str, str] = {}
    for line in steps():
        given, _, command = line.rpartition(" | ")
        arguments = [sys.executable, "-m", "worker", *shlex.split(command)[1:]]
        what = arguments[3]
        if what == "broker":
            start(background, [*arguments, "--port", str(broker_port)], environment)
            wait_for(lambda: answers(broker_port), "the broker")
        elif what == "run":
            start(background, [*arguments, "--set", "metrics.http=127.0.0.1:0"], environment)
        else:
            done = subprocess.run(
                arguments,
                input=" ".join(shlex.split(given)[1:]),
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            said[" ".join(arguments[3:])] = done.stdout
            if given:  # the bad record: the worker needs a moment to refuse it
                wait_for(lambda: refused(environment), "the dead letter")
    assert said["produce examples/frames --topic digits --config examples/digits.yaml --key name"]
    assert len(said["tail examples/digits.yaml --count 10"].splitlines()) == 10
    assert re.search(
        r"undecodable +decode +1 +1 +0 .*not a JPEG", said["dlq list examples/digits.yaml"], re.MULTILINE
    )
    metrics = json.loads(said["tail examples/digits.yaml --what metrics --count 1 --json"])
    assert metrics["value"]["type"] == "streaminfer.metrics"


def steps() -> list[str]:
    """The `streaminfer` commands of the tutorial, in order, without the prompt."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = [line for line in lines if re.match(r"(echo .* \| )?streaminfer ", line)]
    assert len(found) >= 9
    return found


def start(background: ExitStack, arguments: list[str], environment: dict[str, str]) -> None:
    """Start a command that stays, and have it interrupted at the end; it must then exit with 0."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def stop() -> None:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors

    background.callback(stop)


def answers(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def refused(environment: dict[str, str]) -> bool:
    """Whether `dlq list` counts a dead letter."""
    listed = subprocess.run(
        [sys.executable, "-m", "worker", "dlq", "list", "examples/digits.yaml", "--json"],
        capture_output=True,
        cwd=ROOT,
        env=environment,
        timeout=PATIENCE_S,
        check=False,
    )
    return bool(listed.stdout.strip())
