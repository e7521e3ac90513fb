"""Records taken from admission to their outcomes, as the loop and one pool thread do it: for the tests of payloads."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import structlog
import yaml

from worker import settings
from worker.batch import Columns, Headers, Outcomes, Partition, Span
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.laying import lay_out
from worker.loop.openslab import OpenSlab
from worker.loop.pool import InlinePool, Mailbox
from worker.payload.keys import Keys
from worker.serving.engine import Engine
from worker.serving.load import load

TOPIC, RESULTS = "in", "out"
OFFSET = 7


def document(**sections: Any) -> dict[str, Any]:
    """A configuration of one pipeline around ``model.onnx``; a section is laid over the default one."""
    default: dict[str, Any] = {
        "input": {"topics": [TOPIC], "format": "json"},
        "model": {"path": "model.onnx", "version": "1"},
        "batching": {"max_size": 8},
        "output": {"topic": RESULTS},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
    }
    for name, section in sections.items():
        default[name] = {**default.get(name, {}), **section} if isinstance(section, dict) else section
    return default


class Stream:
    """A loaded pipeline that answers records; the model gives back its four numbers unless another one is given."""

    def __init__(self, folder: Path, model: bytes | None = None, **sections: Any) -> None:
        models.write(folder, model or models.identity())
        config = folder / "worker.yaml"
        config.write_text(yaml.safe_dump(document(**sections)))
        self.settings = settings.load(config)
        self._config = config
        self.keys = Keys(self.settings.encryption) if self.settings.encryption else None
        with structlog.testing.capture_logs():
            self.rollout = next(iter(load(self.settings, keys=self.keys).values()))
        self.budget_bytes = self.settings.limits.in_flight_bytes
        self.sick: str | None = None
        self.cost_bytes = 0
        """What the last records were charged beside their own bytes."""

    def read_again(self) -> None:
        """Take over the keys as the file has them now."""
        assert self.keys is not None
        self.keys.ring = self.keys.follow(settings.load(self._config).encryption)

    def send(self, *records: tuple[bytes | None, Headers | None]) -> Outcomes:
        """What becomes of records at offsets 7, 8, ... of partition in/0."""
        rows, partition = len(records), Partition(TOPIC, 0)
        columns = Columns(
            [value for value, _ in records],
            [None] * rows,
            [headers for _, headers in records],
            [round(time.time() * 1000)] * rows,
            [OFFSET + row for row in range(rows)],
            [partition] * rows,
        )
        (share,) = Budget(self.budget_bytes, 1).shares
        open_slab = OpenSlab(share)
        open_slab.append(columns, [Span(partition, 0, rows, OFFSET + rows)], 0, time.time() * 1000)
        limits = self.settings.limits
        admission = Admission([self.rollout], limits.max_age_ms, limits.expired, self.budget_bytes)
        slab = open_slab.close(admission, self.budget_bytes, time.time() * 1000, rows, force=True)
        assert slab is not None
        assert len(slab.columns) == rows, "the records do not fit the budget together"
        self.cost_bytes = sum(batch.cost_bytes for batch in slab.batches)
        pool = InlinePool(Engine(retry_s=5.0), Mailbox())
        for batch in slab.batches:
            pool.submit(batch)
            back: list[Any] = []
            while not back:  # a record may want to be tried again
                back = pool.collect(0.01)
            assert back[0].error is None, back[0].error
            self.sick = self.sick or batch.sick
        self.columns = slab.columns
        return lay_out(slab)

    def refusal(self, value: bytes, headers: Headers | None = None) -> tuple[str, str]:
        """(reason, message) of a record that must be bad; records beside it must be answered."""
        good = self.good()
        outcomes = self.send(good, (value, headers), good)
        assert list(outcomes.rejected) == [1]
        assert outcomes.bodies[1] is None
        assert None not in (outcomes.bodies[0], outcomes.bodies[2])
        return outcomes.rejected[1].reason, outcomes.rejected[1].message

    def numbers(self, value: bytes, headers: Headers | None = None) -> list[float]:
        """The four numbers of a record that must be answered."""
        outcomes = self.send((value, headers))
        assert not outcomes.rejected, outcomes.rejected
        return prediction(outcomes.bodies[0])

    def good(self) -> tuple[bytes, Headers | None]:
        """A record that is answered; what it is wrapped in, the test says."""
        return self.wrap(record(0, 0, 0, 0))

    def wrap(self, value: bytes) -> tuple[bytes, Headers | None]:
        return value, None


def gz(value: bytes) -> bytes:
    return gzip.compress(value, mtime=0)


def record(*numbers: float) -> bytes:
    return json.dumps({"features": numbers}).encode()


def prediction(body: bytes | None) -> list[float]:
    """The four numbers of a result."""
    assert body is not None
    found: list[float] = json.loads(body)["prediction"]["outputs"]["y"]
    return found


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """The most memory that Python's allocator handed out inside the block, beyond what it had before."""
    import tracemalloc

    found: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield found
        found.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
