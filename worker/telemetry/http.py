"""``metrics.http``: the page, metrics, liveness, readiness and progress over HTTP, on daemon threads.

Three different questions of health are answered: *alive* (if not, restart the process), *ready* (the model is warm and
the group is joined) and *progressing* (records move). *alive* must never wait for the conductor; the others may.
"""

from __future__ import annotations

import http.server
import io
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

from worker.errors import ConfigError, StartError
from worker.telemetry import logs
from worker.telemetry.access import Access
from worker.telemetry.meters import Snapshot
from worker.telemetry.routes import PAGE, Answer, Provider, Route, Stream, routes, sentence
from worker.telemetry.slow_clients import Bounded, Sending, Timely
from worker.telemetry.tls import Tls
from worker.telemetry.topic import WorkerInfo

_MAX_REQUEST_BYTES = 16 * 1024
MOST_READING = 16
"""Most connections with an incomplete request. A further one closes the oldest, so that a probe always gets through."""
MOST_CONNECTIONS = 64
"""Most connections in all, streams of events apart. A further one is closed without an answer."""
REQUEST_S = 2.0
"""How long a client may take to send its whole request, and before that to agree on encryption."""
ANSWER_S = 5.0
"""How long a client may take to read the whole answer, or one event of a stream."""
STREAM_BUFFER_BYTES = 256 * 1024
"""What the system holds of a stream that is read slowly; behind it `ANSWER_S` counts."""
_CLOSE_WITHIN_S = 0.1
_EVERY_ANSWER = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN = Access()

log = logs.get(__name__)


class HttpServer:
    """Serves from its construction until `close`.

    Args:
        address: ``host:port``; an IPv6 host in brackets; port 0 = any free port, see `port`.
        provider: whose metrics and health are served; None: only ``pages`` are.
        index: this replica's index, added to the port unless that is 0.
        access: who may ask for what; None: anyone who names an address or localhost.
        tls: encrypts the connections; None: they are plain.
        pages: further paths with what they answer.
        last_minute: a snapshot of the last minute, for ``/progressz``.

    Raises:
        ConfigError: the address is not ``host:port``.
        StartError: the address cannot be bound.
    """

    def __init__(
        self,
        address: str,
        provider: Provider | None,
        worker: WorkerInfo,
        index: int = 0,
        access: Access | None = None,
        tls: Tls | None = None,
        pages: Mapping[str, Route] | None = None,
        last_minute: Callable[[], Snapshot] | None = None,
    ) -> None:
        host, port = parse_address(address)
        paths = {
            **(pages or {}),
            **(routes(provider, worker, last_minute) if provider is not None else {}),
        }
        try:
            self._server = _Server(host, port + index if port else 0, paths, access or _OPEN, tls)
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
        server = _Server(host, port, {}, _OPEN, None)
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


class _Server(http.server.ThreadingHTTPServer):
    """One thread per connection, and at most ``MOST_CONNECTIONS`` connections that are no streams."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, paths: Mapping[str, Route], access: Access, tls: Tls | None
    ) -> None:
        self.paths = paths
        self.access = access
        self._tls = tls
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._reading: dict[socket.socket, None] = {}
        """Connections whose request is not complete, oldest first."""
        self._streams: set[socket.socket] = set()
        """Connections that have given back their place among ``MOST_CONNECTIONS``."""
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's version also asks DNS for a name that nobody needs
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._reading[request] = None
            oldest = next(iter(self._reading)) if len(self._reading) > MOST_READING else None
            if oldest is not None:
                del self._reading[oldest]
                with suppress(OSError):  # its thread then reads end-of-file and closes it
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
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

    def streams(self, request: socket.socket) -> None:
        """This connection stays for long: it has a limit of its own and takes no place from those that ask and go."""
        with self._lock:
            self._streams.add(request)
        self._free.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        connection = request
        try:
            if self._tls is not None:
                connection = self._tls.wrap(request)
                with (
                    self._lock
                ):  # the encrypted connection takes the place of the other, which is no longer open
                    if request in self._reading:
                        del self._reading[request]
                        self._reading[connection] = None
                try:
                    Tls.handshake(connection, REQUEST_S)
                except Exception:
                    self.handle_error(connection, client_address)
                    self.shutdown_request(connection)
                    return
            super().process_request_thread(connection, client_address)
        finally:
            self.complete(connection)
            with self._lock:
                streamed = connection in self._streams
                self._streams.discard(connection)
            if not streamed:
                self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # in one line: a log with tracebacks takes so long that the next probes would wait for it
        log.debug("a metrics connection broke", reason=repr(sys.exc_info()[1]))


class _Handler(http.server.BaseHTTPRequestHandler):
    """One GET or HEAD per connection, answered from the server's paths."""

    server: _Server
    server_version = "streaminfer"
    sys_version = ""
    default_request_version = (
        "HTTP/1.0"  # until a request says more: a refusal of a broken one has a status line, too
    )

    def setup(self) -> None:
        super().setup()
        stream = io.BufferedReader(Timely(self.connection, REQUEST_S))
        self._request = Bounded(stream, _MAX_REQUEST_BYTES)
        self.rfile = cast(io.BufferedIOBase, self._request)
        self.wfile = cast(io.BufferedIOBase, Sending(self.connection, ANSWER_S))

    def parse_request(self) -> bool:
        complete = super().parse_request() and not self._request.ended  # a cut request gets no answer
        self.server.complete(self.connection)
        return complete

    def do_HEAD(self) -> None:
        """The head of what GET answers: some health checks ask for nothing more."""
        self.do_GET()

    def do_GET(self) -> None:
        if not self._request.left:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        path = self.path.partition("?")[0]
        try:
            answer = self._answer(path)
        except Exception:
            log.exception("an HTTP answer failed", path=path)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        if isinstance(answer, Answer):
            self._send(answer)
        else:
            self._stream(answer)

    def _answer(self, path: str) -> Answer | Stream:
        names = self.headers.get_all("Host")  # one of several may be what a proxy in front has looked at
        host = ", ".join(names) if names else None
        refusal = self.server.access.refusal(path, host, self.headers["Authorization"])
        route = self.server.paths.get(path)
        if refusal is not None:
            headers = {"WWW-Authenticate": 'Bearer realm="streaminfer"'}
            if refusal.status is not HTTPStatus.UNAUTHORIZED:
                return sentence(*refusal)
            if path == PAGE and route is not None:
                page = cast(Answer, route())
                return replace(page, status=refusal.status, headers={**page.headers, **headers})
            return sentence(*refusal, headers)
        if route is None:
            return sentence(
                HTTPStatus.NOT_FOUND, f"nothing is here; expected one of {', '.join(self.server.paths)}"
            )
        return route()

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
        for name, value in {**headers, **_EVERY_ANSWER, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _stream(self, stream: Stream) -> None:
        self.server.streams(self.connection)
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER_BYTES)
            self.send_response(HTTPStatus.OK)
            headers = {
                "Content-Type": "text/event-stream",
                "X-Accel-Buffering": "no",
            }  # nginx would collect events
            for name, value in {**headers, **_EVERY_ANSWER}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in stream.parts() if self.command != "HEAD" else ():
                self.wfile.write(part)
        finally:
            stream.close()

    def log_message(self, *_args: Any) -> None:
        """Log nothing: probes come every few seconds."""
