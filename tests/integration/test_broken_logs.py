"""Whatever becomes of its log, a worker answers its records and drains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import models
import orjson
import pytest
from stream import produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

RECORDS = 200


@pytest.mark.timeout(120)
@pytest.mark.parametrize("replicas", [[], ["--replicas", "1"]], ids=["alone", "supervised"])
@pytest.mark.parametrize("broken", ["the reader stops reading", "the reader is gone", "the disk is full"])
def test_the_log_never_decides_whether_records_are_answered(
    embedded_broker: EmbeddedBroker, tmp_path: Path, broken: str, replicas: list[str]
) -> None:
    """Every record is answered, SIGTERM drains, and the exit code is 0: under the supervisor, too."""
    names = [unique(name) for name in ("in", "out", "dead")]
    for name in names:
        embedded_broker.create_topic(name, 1)
    source, output, letters = names
    models.write(tmp_path, models.identity(), "same.onnx")
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [source], "format": "json"},
            "model": {"path": "same.onnx", "threads": 1},
            "output": {"topic": output},
            "dead_letter": {"topic": letters},
            "kafka": {
                "bootstrap.servers": embedded_broker.bootstrap,
                "group.id": unique("group"),
                "debug": "all",  # hundreds of lines a second: a pipe holds 64 KiB
            },
        },
    )
    reader, writer = os.pipe()
    if broken == "the disk is full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    if broken != "the reader stops reading":
        os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", str(config), *replicas],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writer,
        env={**os.environ, "LOG_LEVEL": "debug"},
        start_new_session=True,
    )
    os.close(writer)
    try:
        records = [{"value": orjson.dumps({"features": [n, 0, 0, 0]})} for n in range(RECORDS)]
        produce(embedded_broker.bootstrap, source, records)

        def answered() -> bool:
            assert process.poll() is None, f"the worker ended with {process.poll()}"
            return len(read_all(embedded_broker.bootstrap, output)) == RECORDS

        wait_for(answered, "every answer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with suppress(OSError):
            os.close(reader)
