"""What the tests of the page and of what it shows share: a worker that is only told, and a server of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from fakes import FakeRollout

from worker.batch import Batch, Columns, Outcomes, Partition, Run
from worker.telemetry.meters import KafkaState, Meters, ModelLabel, PartitionState, Snapshot
from worker.telemetry.routes import Health
from worker.telemetry.state import About
from worker.telemetry.topic import WorkerInfo

ROLLOUT = FakeRollout()
WORKER = WorkerInfo("digits-host-1", "digits", "host", 1, "0.1.0")
ABOUT = About(
    WORKER, {"digits": ["in"]}, {"digits": "out"}, "dead", "metrics", "localhost:9092", 1.0, 1000, 5000, 0
)


class Told:
    """A worker whose clock and records a test decides."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.meters = Meters(
            {"digits": ModelLabel("digits", "3f9c2a71", "cpu")}, lambda: self.now_s, lambda: self.now_s
        )
        self.now = Health(alive=True, ready=True, progressing=True)
        self.partitions = {Partition("in", 3): PartitionState(6, 4, 10, drain_s=3.0)}

    def health(self) -> Health:
        return self.now

    def snapshot(self) -> Snapshot:
        return self.meters.snapshot(77, self.partitions, KafkaState(True, 1))

    def answers(self, records: int, infer_us: int = 1000) -> None:
        """Records are taken and answered, in one batch."""
        self.meters.taken("digits", records, 10 * records)
        self.meters.batch("digits", batch_of(records, infer_us))
        self.meters.publish_us("digits", 500, records)
        self.meters.counted("digits", ok=records)

    def rejects(self, reason: str, stage: str) -> None:
        self.meters.taken("digits", 1)
        self.meters.error("digits", reason, stage)
        self.meters.counted("digits", dead_letter=1)


def batch_of(records: int, infer_us: int = 1000, **more: Any) -> Batch:
    run = Run(range(records), {}, stages_us={"infer": infer_us, "total": infer_us})
    columns = Columns(
        [b"value"] * records,
        [None] * records,
        [None] * records,
        [0] * records,
        list(range(records)),
        [Partition("in", 3)] * records,
    )
    outcomes = Outcomes([b'{"prediction": {"label": "7"}}'] * records)
    return Batch(
        None,
        range(records),
        columns,
        ROLLOUT.route,
        ROLLOUT.choose(),
        0,
        0.0,
        runs=[run],
        outcomes=more.pop("outcomes", outcomes),
        **more,
    )


class EventReader:
    """Reads ``/events`` as a browser does."""

    def __init__(self, port: int, headers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = dict(self._header_lines())

    def _header_lines(self) -> Iterator[tuple[str, str]]:
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            yield name.lower(), value

    def rest(self) -> bytes:
        return self._file.read()

    def event(self) -> tuple[str, Any]:
        """The next event: its name and its data."""
        name, deadline = "", time.monotonic() + 10
        while time.monotonic() < deadline:
            line = self._file.readline()
            if not line:
                raise EOFError
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                return name, json.loads(value)
        raise TimeoutError

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> EventReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
