"""``metrics.http``: metrics, liveness, readiness and progress over HTTP, on a daemon thread.

It answers three different questions: *alive* (if not, restart the process), *ready* (the model is warm and the group
is joined) and *progressing* (records move). *alive* must never wait for the conductor; the others may.
"""

from __future__ import annotations

import http.server
import io
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO, Protocol, cast

import orjson

from worker.errors import ConfigError, StartError
from worker.telemetry import logs
from worker.telemetry.meters import Snapshot
from worker.telemetry.prometheus import CONTENT_TYPE, Exposition
from worker.telemetry.topic import WorkerInfo, metrics_record

_MAX_REQUEST_BYTES = 16 * 1024
MOST_READING = 16
"""Most connections with an incomplete request. A further one closes the oldest, so that a probe always gets through."""
MOST_CONNECTIONS = 64
"""Most connections in all. A further one is closed without an answer."""
REQUEST_S = 2.0
"""How long a client may take to send its whole request."""
ANSWER_S = 5.0
"""How long a client may take to read the whole answer."""
_CLOSE_WITHIN_S = 0.1

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """The three answers, and the reasons for the person who asks."""

    alive: bool
    ready: bool
    progressing: bool
    detail: dict[str, Any] = field(default_factory=dict)
    """Added to the bodies of `alive` and `ready`."""
    waits: str | None = None
    """What progress waits for: a partition that does not progress, or brokers; None while nothing is unusual."""


class Provider(Protocol):
    """Gives the server what it shows. Request threads call both methods."""

    def health(self) -> Health:
        """The health as already known, without waiting: it must answer even if nothing else does."""

    def snapshot(self) -> Snapshot:
        """A recent consistent snapshot since the start of the process."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    content_type: str
    body: bytes


class HttpServer:
    """Serves from its construction until `close`.

    Args:
        address: ``host:port``; an IPv6 host in brackets; port 0 = any free port, see `port`.
        index: this replica's index, added to the port unless that is 0.

    Raises:
        ConfigError: the address is not ``host:port``.
        StartError: the address cannot be bound.
    """

    def __init__(self, address: str, provider: Provider, worker: WorkerInfo, index: int = 0) -> None:
        host, port = parse_address(address)
        routes = _routes(provider, worker)
        try:
            self._server = _Server(host, port + index if port else 0, routes)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            shown = f"{host}:{port + index if port else 0}"
            raise StartError(f"metrics.http: cannot listen on {shown}: {reason}") from error
        self.port: int = self._server.server_address[1]
        serve = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_WITHIN_S,), name="metrics-http", daemon=True
        )
        serve.start()
        log.info("serving metrics and health", host=host, port=self.port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def check_address(address: str) -> None:
    """Check that the server could listen on an address, by listening on it for a moment.

    Raises:
        ConfigError: the address is not ``host:port``.
        StartError: the port is in use, or the host is not an address of this machine.
    """
    host, port = parse_address(address)
    try:
        server = _Server(host, port, {})
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartError(f"metrics.http: cannot listen on {host}:{port}: {reason}") from error
    server.server_close()


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6 host]:port``; an empty host means every interface.

    Raises:
        ConfigError: the address has neither form.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise ConfigError(f'metrics.http: got "{address}", expected host:port such as "127.0.0.1:9464"')
    return host.strip("[]"), int(port)


def _routes(provider: Provider, worker: WorkerInfo) -> dict[str, Callable[[], _Answer]]:
    exposition = Exposition(provider.snapshot)

    def metrics() -> _Answer:
        return _Answer(HTTPStatus.OK, CONTENT_TYPE, exposition.render())

    def alive() -> _Answer:
        health = provider.health()
        return _json(health.alive, orjson.dumps({"live": health.alive, **health.detail}, default=str))

    def ready() -> _Answer:
        health = provider.health()
        return _json(health.ready, orjson.dumps({"ready": health.ready, **health.detail}, default=str))

    def progressing() -> _Answer:
        health = provider.health()
        return _json(health.progressing, metrics_record(provider.snapshot(), worker, health.waits))

    return {
        "/metrics": metrics,
        "/livez": alive,
        "/readyz": ready,
        "/progressz": progressing,
        "/v2/health/live": alive,
        "/v2/health/ready": ready,
    }


def _json(good: bool, body: bytes) -> _Answer:
    return _Answer(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)


class _Server(http.server.ThreadingHTTPServer):
    """One thread per connection, and at most ``MOST_CONNECTIONS`` connections."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, routes: dict[str, Callable[[], _Answer]]) -> None:
        self.routes = routes
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._reading: dict[socket.socket, None] = {}
        """Connections whose request is not complete, oldest first."""
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(
            self
        )  # HTTPServer's version also asks DNS for a name that nobody needs

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._reading[request] = None
            oldest = next(iter(self._reading)) if len(self._reading) > MOST_READING else None
            if oldest is not None:
                del self._reading[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread then reads end-of-file and closes it
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.complete(request)
            self._free.release()
            raise

    def complete(self, request: socket.socket) -> None:
        """Mark a request as read, or as given up: its connection no longer counts as incomplete."""
        with self._lock:
            self._reading.pop(request, None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.complete(request)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # in one line: a log with tracebacks takes so long that the next probes would wait for it
        log.debug("a metrics connection broke", reason=repr(sys.exc_info()[1]))


class _Handler(http.server.BaseHTTPRequestHandler):
    """One GET per connection, answered from the server's routes."""

    server_version = "streaminfer"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        stream = io.BufferedReader(_Timely(self.connection, REQUEST_S))
        self._request = _Bounded(stream, _MAX_REQUEST_BYTES)
        self.rfile = cast(io.BufferedIOBase, self._request)

    def parse_request(self) -> bool:
        complete = super().parse_request() and not self._request.ended  # a cut request gets no answer
        cast(_Server, self.server).complete(self.connection)
        self.connection.settimeout(ANSWER_S)  # `sendall` applies it to the whole answer
        return complete

    def do_GET(self) -> None:
        if not self._request.left:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        route = cast(_Server, self.server).routes.get(self.path.partition("?")[0])
        if route is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            answer = route()
        except Exception:
            log.exception("an HTTP answer failed", path=self.path)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_args: Any) -> None:
        """Log nothing: probes come every few seconds."""


class _Timely(io.RawIOBase):
    """Reads a socket until a deadline, which a slow client cannot extend by sending a byte now and then.

    Args:
        seconds: from construction to the deadline.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Bounded:
    """The first ``limit`` bytes of a request, followed by end-of-file."""

    def __init__(self, stream: BinaryIO | io.BufferedIOBase, limit: int) -> None:
        self._stream = stream
        self.left = limit
        self.ended = False
        """Whether the client closed the connection, or the server did, before the request was complete."""

    def readline(self, size: int = -1) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        line = self._stream.readline(wanted)
        self.left -= len(line)
        self.ended = wanted > 0 and not line.endswith(b"\n") and len(line) < wanted
        return line

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed
