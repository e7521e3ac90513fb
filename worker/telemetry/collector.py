"""OTLP over HTTP: one POST per request, on a connection that is kept (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

import gzip
import http.client
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from worker import __version__
from worker.errors import ConfigError
from worker.settings.tracing import Tracing
from worker.telemetry import otlp
from worker.telemetry.span_exporter import Unsent
from worker.telemetry.spans import Attributes, Span

AGAIN = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Answers after which a client may send the same again; no others, says the protocol."""
FAULTS = (OSError, http.client.HTTPException, UnicodeError)
"""What a request may end in; the last one comes of a host name that cannot be one."""
ANSWER_BYTES = 65_536
"""Most that is read of an answer."""
SCOPE = ("streaminfer", __version__)


class Collector:
    """Where spans go. One thread at a time uses it.

    Args:
        resource: attributes of this process.

    Raises:
        ConfigError: a certificate cannot be used.
    """

    def __init__(self, tracing: Tracing, resource: Attributes) -> None:
        self._tracing = tracing
        self._resource = resource
        self._parts = urlsplit(tracing.url)
        self._tls = _tls(tracing) if self._parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        kind = "application/json" if tracing.protocol == "http/json" else "application/x-protobuf"
        self._headers = {
            "User-Agent": f"streaminfer/{__version__}",
            **tracing.headers,
            "Content-Type": kind,
            **({"Content-Encoding": "gzip"} if tracing.gzip else {}),
        }

    def send(self, spans: Sequence[Span]) -> int:
        """Send spans; returns how many of them the collector refused.

        Raises:
            Unsent: it is away, or takes none of them.
        """
        write = otlp.json if self._tracing.protocol == "http/json" else otlp.protobuf
        body = write(self._resource, SCOPE, spans)
        if self._tracing.gzip:
            body = gzip.compress(body, 1)
        status, reason, kind, after_s, answer = self._post(body)
        if status // 100 == 2:
            return otlp.refused(answer, kind)
        raise Unsent(f"it answers {status} {reason}", status in AGAIN, after_s)

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> tuple[int, str, str, float, bytes]:
        """Status, its reason, the content type, the seconds to wait, and the answer. A kept connection may be gone: then a new one is tried."""
        kept = self._connection is not None
        try:
            return self._asked(body)
        except FAULTS as error:
            self.close()
            if not kept or isinstance(error, TimeoutError):
                raise Unsent(_one_line(error), again=True) from None
        try:
            return self._asked(body)
        except FAULTS as error:
            self.close()
            raise Unsent(_one_line(error), again=True) from None

    def _asked(self, body: bytes) -> tuple[int, str, str, float, bytes]:
        if self._connection is None:
            self._connection = self._opened()
        self._connection.request("POST", self._parts.path or "/", body, self._headers)
        answer = self._connection.getresponse()
        read = answer.read(ANSWER_BYTES)
        after = answer.headers.get("Retry-After", "")
        kind = answer.headers.get("Content-Type", "")
        if answer.will_close or not answer.isclosed():
            self.close()
        return answer.status, answer.reason, kind, float(after) if after.isdecimal() else 0.0, read

    def _opened(self) -> http.client.HTTPConnection:
        host, port, timeout_s = self._parts.hostname or "", self._parts.port, self._tracing.timeout_s
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _tls(tracing: Tracing) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tracing.authority)
        if tracing.certificate is not None:
            context.load_cert_chain(tracing.certificate, tracing.key, lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"a certificate for {tracing.url} cannot be used: {_one_line(error)}") from None
    return context


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
