"""A small HTTP client that connects only where its caller agrees, and never follows a redirect by itself.

The caller sees every address a host resolves to before a connection is made, and the connection is made to that very
address: a second DNS answer cannot lead it elsewhere. Connections are kept and used again.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from worker.outside import Away
from worker.stores.url import Endpoint, Url

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Key = tuple[str, str, int | None]
"""Scheme, host and port: whoever has the same may use a connection again."""
PIECE_BYTES = 256 << 10
READ_BYTES, LINE_BYTES, HEADERS_MAX = 16 << 10, 64 << 10, 200
_ALWAYS = ("User-Agent: streaminfer", "Accept-Encoding: identity")
KEPT_PER_HOST = 64
KEPT_S = 20.0
"""Connections that nobody used for so long are closed: most servers have done so by then."""
LEAST_BYTES_PER_S = 100_000
"""A body that comes more slowly than this, beyond the time-out, is given up."""
_AGAIN = (408, 425, 429)
"""Status of the 4xx range that say: not now."""


class NotAllowed(Exception):
    """The host resolves to an address where no connection may be made. Nothing was asked.

    Args:
        address: the first such address.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(str(address))
        self.address = address


class _Connection:
    """A connection to an address that was looked at before.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(
        self, url: Url | Endpoint, place: tuple[str, int], timeout_s: float, tls: ssl.SSLContext | None
    ) -> None:
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(place)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:  # the certificate is checked against the host's name
                self._socket = tls.wrap_socket(self._socket, server_hostname=url.host)
        except BaseException:
            self._socket.close()
            raise
        self.reader = cast("io.BufferedReader", self._socket.makefile("rb", READ_BYTES))
        self.idle_since = 0.0

    def send(self, head: bytes, body: bytes | None) -> None:
        self._socket.sendall(head)
        if body:
            self._socket.sendall(body)

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (names in lower case) of the next answer.

        Raises:
            OSError: the connection broke, or the answer is no HTTP.
        """
        while True:
            line = self.reader.readline(LINE_BYTES)
            if not line:
                raise ConnectionResetError("closed before an answer")
            version, _, rest = line.partition(b" ")
            if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
                raise OSError("the answer is no HTTP")
            headers: dict[str, str] = {"": version.decode("latin-1")}
            for _ in range(HEADERS_MAX):
                line = self.reader.readline(LINE_BYTES)
                if line in (b"\r\n", b"\n"):
                    break
                name, colon, value = line.decode("latin-1").partition(":")
                if not colon or not line.endswith(b"\n"):
                    raise OSError("the answer is no HTTP")
                headers[name.strip().lower()] = value.strip()
            else:
                raise OSError("the answer has too many headers")
            if (status := int(rest[:3])) >= 200:
                return status, headers

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.reader.close()
        self._socket.close()


class Response:
    """An answer of which nothing but the head has been read.

    Args:
        has_body: whether a body follows.
    """

    __slots__ = (
        "_chunked",
        "_client",
        "_connection",
        "_has_body",
        "_keeps",
        "_key",
        "location",
        "size",
        "status",
    )

    def __init__(
        self,
        client: HttpClient,
        key: Key,
        connection: _Connection,
        status: int,
        headers: dict[str, str],
        has_body: bool,
    ) -> None:
        self._client = client
        self._key = key
        self._connection: _Connection | None = connection
        self._has_body = has_body and status not in (204, 304)
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._keeps = headers.get("connection", "").lower() != "close" and headers[""] == "HTTP/1.1"
        self.status = status
        self.location = headers.get("location")
        length = headers.get("content-length", "")
        self.size: int | None = int(length) if length.isdecimal() and not self._chunked else None
        """Bytes of the body; None where the head does not say."""

    def read(self, most: int) -> bytes:
        """The whole body, at most so many bytes.

        Raises:
            Away: the transfer broke off, or was too slow.
        """
        expected = most if self.size is None else min(self.size, most)
        ends = time.monotonic() + self._client.timeout_s + expected / LEAST_BYTES_PER_S
        connection = self._connection
        assert connection is not None
        try:
            if not self._has_body:
                body, whole = b"", True
            elif self._chunked:
                body, whole = _chunks(connection.reader, most, ends)
            else:
                body = _piece(connection.reader, expected, ends)
                # Without a length the body ends with the connection.
                whole = self.size is not None and len(body) == self.size
                if self.size is not None and len(body) < expected:
                    raise Away("the transfer broke off")
        except (OSError, ValueError) as error:
            self.close()
            raise Away(_why(error, "the transfer broke off")) from None
        except Away:
            self.close()
            raise
        if whole and self._keeps:
            self._connection = None
            self._client.keep(self._key, connection)
        self.close()
        return body

    def close(self) -> None:
        """Give the body up."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._keeps and (not self._has_body or self.size == 0):
            self._client.keep(self._key, connection)
        else:
            connection.close()


def _piece(reader: io.BufferedReader, nbytes: int, ends: float) -> bytes:
    """So many bytes, or fewer where the connection ends before.

    Raises:
        TimeoutError: they come too slowly.
    """
    # One block of the size from the start: neither growth nor a copy, so that no more memory is taken than was asked for.
    buffer = io.BytesIO(bytes(nbytes))
    done = 0
    with buffer.getbuffer() as view:
        while done < nbytes and (got := reader.readinto1(view[done : done + PIECE_BYTES])):
            done += got
            if time.monotonic() > ends:
                raise TimeoutError
    return buffer.getvalue() if done == nbytes else buffer.getvalue()[:done]


def _chunks(reader: io.BufferedReader, most: int, ends: float) -> tuple[bytes, bool]:
    """A chunked body, at most so many bytes; whether that is all of it.

    Raises:
        OSError, ValueError: the connection broke, or the body is not in chunks.
    """
    buffer = io.BytesIO()
    while True:
        size = int(reader.readline(LINE_BYTES).partition(b";")[0], 16)
        if size < 0:
            raise ValueError("a chunk of less than nothing")
        if size == 0:
            while reader.readline(LINE_BYTES) not in (b"\r\n", b"\n", b""):
                pass
            return buffer.getvalue(), True
        wanted = min(size, most - buffer.tell())
        piece = _piece(reader, wanted, ends)
        buffer.write(piece)
        if len(piece) < wanted:
            raise ConnectionResetError("the transfer broke off")
        if wanted < size or buffer.tell() >= most:
            return buffer.getvalue(), False
        reader.readline(LINE_BYTES)


class HttpClient:
    """See the module. Several threads at once.

    Args:
        timeout_s: for a connection, for the head of an answer, and for each piece of a body.
        ca_file: certificates to trust; None = those of the system.
    """

    def __init__(self, timeout_s: float, ca_file: str | None = None) -> None:
        self.timeout_s = timeout_s
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._kept: dict[Key, deque[_Connection]] = {}

    def ask(
        self,
        method: str,
        url: Url | Endpoint,
        may_connect: Callable[[Address], bool],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request; returns its answer whatever the status.

        Args:
            may_connect: whether a connection to this address may be made.

        Raises:
            Away: no connection, no answer, or one that says: not now (5xx, 408, 425, 429).
            NotAllowed: the host resolves to an address where none may be made.
        """
        key = url.scheme, url.host, url.port
        lines = [f"{method} {url.target} HTTP/1.1", f"Host: {url.authority}", *_ALWAYS]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        connection = self._idle(key)
        while True:
            fresh = connection is None
            if connection is None:
                connection = self._connected(url, may_connect)
            try:
                connection.send(head, body)
                status, found = connection.head()
            except OSError as error:
                connection.close()
                if not fresh and not isinstance(error, TimeoutError):
                    connection = None  # the server had closed a kept connection
                    continue
                raise Away(_why(error, "no answer")) from None
            response = Response(self, key, connection, status, found, method != "HEAD")
            if status >= 500 or status in _AGAIN:
                response.close()
                raise Away(f"status {status}")
            return response

    def keep(self, key: Key, connection: _Connection) -> None:
        """Use a connection again whose answer was read to the end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            kept = self._kept.setdefault(key, deque())
            if len(kept) < KEPT_PER_HOST and not self._closed:
                kept.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            kept = [connection for connections in self._kept.values() for connection in connections]
            self._kept.clear()
        for connection in kept:
            connection.close()

    def _idle(self, key: Key) -> _Connection | None:
        with self._lock:
            kept = self._kept.get(key)
            while kept:
                connection = kept.pop()
                if time.monotonic() - connection.idle_since < KEPT_S:
                    return connection
                connection.close()
        return None

    def _connected(self, url: Url | Endpoint, may_connect: Callable[[Address], bool]) -> _Connection:
        try:
            places = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except OSError:
            raise Away("its name is not resolved") from None
        addresses = [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in places]
        # All of them: a host with one address outside and one inside is not one to trust.
        for address in addresses:
            if not may_connect(address):
                raise NotAllowed(address)
        failure: Exception = Away("its name has no address")
        for *_, place in places:
            try:
                return _Connection(url, (str(place[0]), int(place[1])), self.timeout_s, self._encrypting(url))
            except (OSError, ssl.SSLError) as error:
                failure = Away(_why(error, "no connection"))
        raise failure

    def _encrypting(self, url: Url | Endpoint) -> ssl.SSLContext | None:
        if url.scheme == "http":
            return None
        with self._lock:
            self._tls = self._tls or ssl.create_default_context(cafile=self._ca_file)
            return self._tls


def _why(error: Exception, otherwise: str) -> str:
    if isinstance(error, TimeoutError):
        return "time-out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return otherwise
