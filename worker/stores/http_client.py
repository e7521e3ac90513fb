"""A small HTTP client that connects only where its caller agrees, and never follows a redirect by itself.

The caller sees every address a host resolves to before a connection is made, and the connection is made to that very
address: a second DNS answer cannot lead it elsewhere. Connections are kept and used again.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.outside import Away
from worker.stores.url import Endpoint, Url

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PIECE_BYTES = 256 << 10
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


class _Plain(http.client.HTTPConnection):
    """A connection to an address that was looked at before."""

    def __init__(self, url: Url | Endpoint, place: tuple[str, int], timeout_s: float) -> None:
        super().__init__(url.host, url.port, timeout=timeout_s)
        self._place = place
        self.idle_since = 0.0

    def connect(self) -> None:
        self.sock = socket.socket(
            socket.AF_INET6 if ":" in self._place[0] else socket.AF_INET, socket.SOCK_STREAM
        )
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._place)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Encrypted(_Plain):
    """The same over TLS; the certificate is checked against the host's name."""

    def __init__(
        self, url: Url | Endpoint, place: tuple[str, int], timeout_s: float, tls: ssl.SSLContext
    ) -> None:
        super().__init__(url, place, timeout_s)
        self._tls = tls

    def connect(self) -> None:
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


@dataclass(slots=True)
class Response:
    """An answer of which nothing but the head has been read."""

    status: int
    size: int | None
    """Bytes of the body; None where the head does not say."""
    location: str | None
    _response: http.client.HTTPResponse
    _connection: _Plain
    _client: HttpClient
    _key: tuple[str, str, int | None]
    _kept: bool = False

    def read(self, most: int) -> bytes:
        """The whole body, at most so many bytes.

        Raises:
            Away: the transfer broke off, or was too slow.
        """
        response, whole = self._response, False
        timeout_s = self._client.timeout_s
        expected = most if self.size is None else min(self.size, most)
        ends = time.monotonic() + timeout_s + expected / LEAST_BYTES_PER_S
        try:
            first = response.read(min(PIECE_BYTES, most)) if most else b""
            if len(first) == self.size or not first:
                body = first
            else:
                buffer = io.BytesIO()
                buffer.write(first)
                while buffer.tell() < most and (
                    piece := response.read(min(PIECE_BYTES, most - buffer.tell()))
                ):
                    buffer.write(piece)
                    if time.monotonic() > ends:
                        raise TimeoutError
                body = buffer.getvalue()
            if self.size is not None and len(body) < expected:
                raise Away("the transfer broke off")
            whole = response.isclosed() and not response.will_close
            return body
        except (OSError, http.client.HTTPException) as error:
            raise Away(_why(error, "the transfer broke off")) from None
        finally:
            if whole:
                self._kept = True
                self._client.keep(self._key, self._connection)
            else:
                self._connection.close()

    def close(self) -> None:
        """Give the body up."""
        if self.size == 0 and not self._response.isclosed():
            self._response.read()
            self._client.keep(self._key, self._connection)
        elif not self._kept:
            self._connection.close()


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
        self._kept: dict[tuple[str, str, int | None], deque[_Plain]] = {}

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
        sent = {
            "Host": url.authority,
            "User-Agent": "streaminfer",
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        connection = self._idle(key)
        while True:
            fresh = connection is None
            if connection is None:
                connection = self._connected(url, may_connect)
            try:
                connection.request(method, url.target, body, sent)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not fresh and not isinstance(error, TimeoutError):
                    connection = None  # the server had closed a kept connection
                    continue
                raise Away(_why(error, "no answer")) from None
            status = response.status
            if status >= 500 or status in _AGAIN:
                connection.close()
                raise Away(f"status {status}")
            found = Response(
                status, response.length, response.headers.get("Location"), response, connection, self, key
            )
            if method == "HEAD":
                found.size = _length(response)
            return found

    def keep(self, key: tuple[str, str, int | None], connection: _Plain) -> None:
        """Use a connection again whose answer was read to the end."""
        if connection.sock is None:
            return
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

    def _idle(self, key: tuple[str, str, int | None]) -> _Plain | None:
        with self._lock:
            kept = self._kept.get(key)
            while kept:
                connection = kept.pop()
                if time.monotonic() - connection.idle_since < KEPT_S:
                    return connection
                connection.close()
        return None

    def _connected(self, url: Url | Endpoint, may_connect: Callable[[Address], bool]) -> _Plain:
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
            connection = self._made(url, (str(place[0]), int(place[1])))
            try:
                connection.connect()
                return connection
            except (OSError, ssl.SSLError) as error:
                connection.close()
                failure = Away(_why(error, "no connection"))
        raise failure

    def _made(self, url: Url | Endpoint, place: tuple[str, int]) -> _Plain:
        if url.scheme == "http":
            return _Plain(url, place, self.timeout_s)
        with self._lock:
            self._tls = self._tls or ssl.create_default_context(cafile=self._ca_file)
        return _Encrypted(url, place, self.timeout_s, self._tls)


def _length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _why(error: Exception, otherwise: str) -> str:
    if isinstance(error, TimeoutError):
        return "time-out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return otherwise
