"""What traces cost: the loop and the engine in this process without a broker, spans sent to a collector in another one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from versions import Subject
from workloads import Workload

from worker.batch import Headers
from worker.settings.tracing import TracingSettings, tracing_of
from worker.telemetry.collector import Collector
from worker.telemetry.span_exporter import SpanExporter
from worker.telemetry.traced import Here
from worker.telemetry.tracer import RecordTracer

_TRACE = f"00-{1:032x}-{1:016x}-"
_SAMPLED: Headers = [("traceparent", f"{_TRACE}01".encode())]
_NOT_SAMPLED: Headers = [("traceparent", f"{_TRACE}00".encode())]


@dataclass(frozen=True)
class Case:
    """One comparison: the same records with traces and without."""

    name: str
    headers: Headers | None
    """Of every record."""
    sample: str | float
    bound: float
    """Of CPU, on over off."""


CASES = (
    Case("1 % of plain records", None, 0.01, 1.03),
    Case("traceparents, none sampled", _NOT_SAMPLED, "parent", 1.03),
    Case("traceparents, all sampled", _SAMPLED, "parent", 1.05),
)


def measure(work: Workload, folder: Path, rounds: int) -> Iterator[tuple[Case, list[float], list[float]]]:
    """CPU microseconds per record of interleaved rounds, without traces and with them."""
    with collector() as address:
        for case in CASES:
            section = TracingSettings.model_validate({"otlp": address, "sample": case.sample})
            how = tracing_of(section, {})
            assert how is not None
            exporter = SpanExporter(Collector(how, [("service.name", "bench")]), how.url)
            # max_per_s counts seconds of this process: on a busy machine others stretch those of the clock on the wall
            here = Here("bench", "bench", "bench", "dead")
            tracer = RecordTracer(how, exporter, here, time.process_time_ns)
            subjects = [Subject(work, folder, "off", case.headers, each) for each in (None, tracer)]
            found: list[list[float]] = [[], []]
            for number in range(rounds + 1):
                for which in (0, 1) if number % 2 else (1, 0):
                    us = subjects[which].cpu_us()
                    if number:  # the first round warms up
                        found[which].append(us)
            exporter.close(10.0)
            if not exporter.counts()["sent"] and case.headers is not _NOT_SAMPLED:
                raise RuntimeError("no span was sent")
            yield case, *found


@contextmanager
def collector() -> Iterator[str]:
    """Address of a collector that takes spans and forgets them."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def _serve() -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
