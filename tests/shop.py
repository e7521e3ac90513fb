"""A small web server on the loopback interface that keeps objects and has every fault a store can have."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Shop:
    """Objects by path, with faults.

    The attributes may be set at any time, by path or for all. What is a list is used up, one entry for each request.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    """Answers before the object is given."""
    cut: dict[str, int] = field(default_factory=dict)
    """The next so many answers end in the middle."""
    claimed: dict[str, int] = field(default_factory=dict)
    """Length that the head gives in place of the right one."""
    location: dict[str, str] = field(default_factory=dict)
    """Where a path redirects to."""
    chunked: set[str] = field(default_factory=set)
    """These do not tell their length."""
    slow_s: float = 0.0
    """Before each answer."""
    down: int = 0
    """Status of every answer while it is not 0."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by method and path."""
    open: int = 0
    most_open: int = 0
    """Most requests at once."""

    def __post_init__(self) -> None:
        shop = self
        self._lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def log_message(self, *_args: Any) -> None: ...

            def do_GET(self) -> None:
                shop._counted(self, lambda: shop._give(self))

            do_HEAD = do_GET  # noqa: N815 - the name is the base class's

            def do_PUT(self) -> None:
                shop._counted(self, lambda: shop._take(self))

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_args: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _counted(self, request: http.server.BaseHTTPRequestHandler, answer: Callable[[], None]) -> None:
        path = unquote(urlsplit(request.path).path)
        with self._lock:
            self.asked[f"{request.command} {path}"] += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            if self.slow_s:
                time.sleep(self.slow_s)
            answer()
        finally:
            with self._lock:
                self.open -= 1

    def _give(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        body = self.objects.get(path)
        status = self.down or (self.status[path].pop(0) if self.status.get(path) else 0)
        if not status and path in self.location:
            request.send_response(302)
            request.send_header("Location", self.location[path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if not status and body is None:
            status = 404
        if status:
            request.send_response(status)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        assert body is not None
        request.send_response(200)
        request.send_header("ETag", '"x"')
        request.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        if path in self.chunked:
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            for start in range(0, len(body), 1000):
                piece = body[start : start + 1000]
                request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            request.wfile.write(b"0\r\n\r\n")
            return
        request.send_header("Content-Length", str(self.claimed.get(path, len(body))))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut.get(path):
            self.cut[path] -= 1
            request.wfile.write(body[: len(body) // 2])
            request.close_connection = True
            return
        request.wfile.write(body)
        request.close_connection = path in self.claimed

    def _take(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers["Content-Length"]))
        status = self.down or (self.status[path].pop(0) if self.status.get(path) else 200)
        if status == 200:
            self.objects[path] = body
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
