"""A collector for tests: takes OTLP over HTTP and reads it with OpenTelemetry's own generated classes."""

from __future__ import annotations

import base64
import gzip
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from google.protobuf import json_format

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )
    from opentelemetry.proto.trace.v1 import trace_pb2 as trace_pb2
except ImportError:
    if os.environ.get("LOCKED") == "1":  # CI has what pyproject.toml names
        raise
    pytest.skip("opentelemetry-proto is not there: scripts/venv cpu,test gets it", allow_module_level=True)

IDS = ("traceId", "spanId", "parentSpanId")


class Receiver:
    """What it has received. ``statuses``: of the next answers, 200 where none is left."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        """Those that were answered with 200."""
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.statuses: list[int] = []
        self.asked = 0
        self.refuses = 0
        """Spans that each answer says were refused."""
        self.hold = threading.Event()
        """Answers wait for it."""
        self.hold.set()
        self.url = ""

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in [*self.requests]
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, beginning: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(beginning)]

    @property
    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0].resource_spans[0].resource)


def attributes(told: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as plain data."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in told.attributes}


def read(body: bytes, kind: str) -> ExportTraceServiceRequest:
    """A request, read by the library; in JSON ids are hexadecimal, which its reader does not know."""
    if kind == "application/x-protobuf":
        return ExportTraceServiceRequest.FromString(body)
    assert kind == "application/json", kind
    return json_format.ParseDict(_with_base64(orjson.loads(body)), ExportTraceServiceRequest())


def _with_base64(part: Any) -> Any:
    if isinstance(part, list):
        return [_with_base64(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode() if key in IDS else _with_base64(value)
        for key, value in part.items()
    }


@contextmanager
def receiver(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a port of this machine."""
    ours = Receiver()
    connections: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.append(self.connection)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            ours.asked += 1
            ours.hold.wait(30)
            status = ours.statuses.pop(0) if ours.statuses else 200
            if status == 200:
                ours.headers.append({name.lower(): value for name, value in self.headers.items()})
                ours.paths.append(self.path)
                ours.requests.append(read(body, self.headers["Content-Type"]))
            said = ExportTraceServiceResponse()
            said.partial_success.rejected_spans = ours.refuses
            answer = said.SerializeToString() if status == 200 and ours.refuses else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def handle(self) -> None:
            with suppress(OSError):  # the client is gone
                super().handle()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        ours.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
        try:
            yield ours
        finally:
            ours.hold.set()
            server.shutdown()
            for connection in connections:
                with suppress(OSError):  # its client was quicker
                    connection.shutdown(socket.SHUT_RDWR)
