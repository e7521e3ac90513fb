"""The real loop and the real engine with a tracer, between a fake Kafka and a collector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import models
from fakes import FakeClock, FakeKafka, FakeSink, FakeSource, Message
from otlp_receiver import Receiver
from world import Figures, make_loop

from worker.batch import Headers, Partition
from worker.loop.caution import Caution
from worker.loop.delivery import Delivery
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import validate
from worker.settings.tracing import TracingSettings, tracing_of
from worker.telemetry.collector import Collector
from worker.telemetry.span_exporter import SpanExporter
from worker.telemetry.traced import Here
from worker.telemetry.tracer import RecordTracer

P = Partition("in", 0)
FINE, BAD = b'{"features": [1, 2, 3, 4]}', b'{"features": [1]}'
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED: Headers = [("traceparent", f"00-{TRACE}-{SPAN}-01".encode()), ("tracestate", b"vendor=1")]
MODEL = {"path": "model.onnx", "threads": 0, "name": "net", "version": "7"}
UNSAMPLED: Headers = [("traceparent", f"00-{TRACE}-{SPAN}-00".encode())]


class Done:
    """A call that was made at once, as a task."""

    done = True

    def __init__(self, _name: str, call: Callable[[], None]) -> None:
        call()

    def wait(self, timeout_s: float) -> bool:
        return True


class Traced:
    """A replica; records are appended, then :meth:`answer` takes them through.

    Args:
        settings: of the pipeline, over those of a small one. tracing: the section of this name.
        environ: environment of the tracer.
    """

    def __init__(
        self,
        folder: Path,
        receiver: Receiver,
        tracing: dict[str, Any] | None = None,
        figures: Figures | None = None,
        environ: dict[str, str] | None = None,
        delivery: Callable[[FakeKafka, FakeSource, FakeSink, FakeClock], Delivery] | None = None,
        **settings: Any,
    ) -> None:
        models.write(folder, models.identity())
        document = {
            "name": "worker",
            "input": {"topics": ["in"], "format": "json"},
            **({} if "steps" in settings else {"model": MODEL}),
            "output": {"topic": "results"},
            "dead_letter": {"topic": "dead-letters"},
            "kafka": {"bootstrap.servers": "nobody:9", "group.id": "group"},
            **settings,
        }
        given = TracingSettings.model_validate({"otlp": receiver.url, **(tracing or {})})
        how = tracing_of(given, environ or {})
        assert how is not None
        self.exporter = SpanExporter(Collector(how, [("service.name", "worker")]), how.url, every_s=0.01)
        self.clock = FakeClock()
        self.clock.advance(1)

        def ticking() -> int:
            self.clock.advance(0.000_017)
            return self.clock()

        here = Here("group", "client", "worker", "dead-letters")
        self.tracer = RecordTracer(how, self.exporter, here, self.clock, Random(7))
        self.kafka = FakeKafka(self.clock, {"in": 2})
        source, sink = FakeSource(self.kafka), FakeSink(self.kafka)
        self.sink = sink
        pool = InlinePool(Engine(ticking, 60.0), Mailbox(), self.clock)
        rollouts: Any = [*load(validate(document, folder)).values()]
        make: Callable[[Caution], Delivery] | None = None
        if delivery is not None:
            made = delivery(self.kafka, source, sink, self.clock)
            make = lambda _caution: made  # noqa: E731
        self.world = make_loop(
            self.clock,
            source,
            sink,
            pool,
            rollouts,
            figures or Figures(limit_bytes=256 << 20),
            make,
            tracer=self.tracer,
        )
        source.subscribe(self.world.conductor.membership)
        self.kafka.rebalance()

    def append(self, value: bytes | None, headers: Headers | None = None, **fields: Any) -> None:
        self.kafka.append(fields.pop("partition", P), value, headers=headers, **fields)

    def answer(self, turns: int = 500) -> list[Message]:
        """Take every record through; what came out, in order."""
        for _ in range(turns):
            if self.kafka.drained() and not self.world.window.slabs:
                break
            self.world.conductor.turn()
        assert self.kafka.drained()
        return self.kafka.landed

    def close(self) -> dict[str, int]:
        """Send the spans; what became of them."""
        self.exporter.close(10.0)
        return dict(self.exporter.counts())
