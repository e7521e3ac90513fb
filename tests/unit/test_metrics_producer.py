"""The producer of the metrics topic: it may lose records, and says so once in a while."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from worker.kafka import sink


class FullClient:
    """A client whose queue is full, as it is while no broker can be reached."""

    def poll(self, timeout: float) -> int:
        return 0

    def produce(self, *row: Any, on_delivery: Any) -> None:
        raise BufferError("Local: Queue full")

    def flush(self, budget_s: float) -> int:
        return 2

    def purge(self) -> None: ...

    def close(self) -> None: ...


def test_lost_metrics_records_are_told_in_one_line_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss is told at once, those of the next ten seconds together, and the end tells what is left."""
    monkeypatch.setattr(sink, "build", lambda kind, properties: FullClient())
    monkeypatch.setattr(sink, "metrics_properties", lambda settings: {})
    clock = SimpleNamespace(s=0.0)
    settings: Any = None
    producer = sink.MetricsProducer(settings, lambda: clock.s)
    with capture_logs() as lines:
        for clock.s in (100.0, 103.0, 109.0, 111.0, 112.0):
            producer.send("metrics", "w", b"{}")
        producer.close(0.1)
    told = [(line["event"], line["records"]) for line in lines]
    assert told == [
        ("metrics records were lost", 1),
        ("metrics records were lost", 3),
        ("metrics records could not be sent in time", 3),
    ]
