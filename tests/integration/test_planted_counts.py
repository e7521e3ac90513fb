"""A worker that counts wrong does not pass: what holds after every integration test is tried on planted bugs."""

from __future__ import annotations

from pathlib import Path

import accounts
import models
import pytest
import stream
from stream import Worker, produce, unique, wait_for_outputs, write_config

from worker.kafka.broker import EmbeddedBroker

RECORDS = 20
HONEST = ""
LOSES_ONE = """
def counted(self, pipeline, ok=0, dead_letter=0, dropped=0, version=""):
    honest(self, pipeline, max(0, ok - 1), dead_letter, dropped)
"""
MAKES_ONE_UP = """
def counted(self, pipeline, ok=0, dead_letter=0, dropped=0, version=""):
    self.taken(pipeline, 1)
    honest(self, pipeline, ok + 1, dead_letter, dropped)
"""
MISTAKES_ONE = """
def counted(self, pipeline, ok=0, dead_letter=0, dropped=0, version=""):
    honest(self, pipeline, ok - 1, dead_letter, dropped + 1)
"""
OWN_CODE = """
import numpy as np
from worker.telemetry.meters import Meters

honest = Meters.counted
{bug}
Meters.counted = globals().get("counted", honest)

def decode(value, headers):
    return {{"x": np.full(4, len(value), np.float32)}}
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bug", "found"),
    [
        (HONEST, None),
        (LOSES_ONE, "does not add up"),
        (MAKES_ONE_UP, f"there are {RECORDS} results"),
        (MISTAKES_ONE, f"there are {RECORDS} results"),
    ],
)
def test_a_worker_that_counts_wrong_is_found_out(
    embedded_broker: EmbeddedBroker, tmp_path: Path, bug: str, found: str | None
) -> None:
    """One lost, one made up, one put down as given back: each fails the test it ran in. An honest worker passes."""
    names = [unique(name) for name in ("in", "out", "dead")]
    for name in names:
        embedded_broker.create_topic(name, 1)
    source, output, letters = names
    models.write(tmp_path, models.identity())
    (tmp_path / "own_counts.py").write_text(OWN_CODE.format(bug=bug))
    worker = Worker.start(
        write_config(
            tmp_path,
            {
                "input": {"topics": [source], "format": "own_counts:decode"},
                "model": {"path": "model.onnx", "threads": 1},
                "output": {"topic": output},
                "dead_letter": {"topic": letters},
                "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
            },
        )
    )
    produce(embedded_broker.bootstrap, source, [{"value": b"fine"}] * RECORDS)
    wait_for_outputs(embedded_broker.bootstrap, [output], RECORDS, [worker])
    if found is None:
        accounts.settle()
        assert [each.taken for each in accounts.counted(worker.log)] == [RECORDS]
        return
    try:
        with pytest.raises(AssertionError, match=found):
            accounts.settle()
    finally:
        worker.kill()
        stream.STARTED.clear()
