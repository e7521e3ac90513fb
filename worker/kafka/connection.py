"""A connection to a broker of our own, for the one request that the client library cannot send.

It has the security of the client's own connections: TLS with the client's files, SASL with PLAIN or SCRAM. What else a
configuration may ask for (OAUTHBEARER, Kerberos, PKCS#12 stores, keys inside the configuration) is refused.

Sources: Kafka's protocol guide (``SaslHandshake`` 1, ``SaslAuthenticate`` 0), RFC 4616 (PLAIN), RFC 5802 and RFC 7677
(SCRAM).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

ANSWER_S = 2.0
"""Longest wait for the connection, and for each answer."""
SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
"""Numbers of the requests in Kafka's protocol."""
MOST_ANSWER_BYTES = 1 << 20
MOST_ITERATIONS = 1_000_000
"""Of SCRAM: a broker that asks for more would keep the processor busy."""
_DIGESTS = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
_FILES = {"ssl.ca.location", "ssl.certificate.location", "ssl.key.location"}
_UNDERSTOOD = _FILES | {
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
}


class NotPossible(Exception):
    """The client's security settings have something that this connection does not know."""


class BrokerConnection:
    """An open, authenticated connection; a context manager.

    Args:
        kafka: the client's properties, as librdkafka names them.

    Raises:
        NotPossible: see the class.
        OSError: no connection, no answer in time, or the broker refused the authentication.
    """

    def __init__(self, host: str, port: int, kafka: Mapping[str, str]) -> None:
        protocol = kafka.get("security.protocol", "plaintext").strip().lower()
        context = _tls(kafka) if protocol.endswith("ssl") else None
        mechanism = _mechanism(kafka) if protocol.startswith("sasl") else None
        self._socket = socket.create_connection((host, port), timeout=ANSWER_S)
        try:
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
            if mechanism is not None:
                self._authenticate(mechanism, kafka["sasl.username"], kafka["sasl.password"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BrokerConnection:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """One request, one answer; both without the four bytes of their length.

        Raises:
            OSError: no answer in time, or none at all.
        """
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", self._read(4))
        if not 0 <= length <= MOST_ANSWER_BYTES:
            raise ConnectionError(f"the broker announced an answer of {length} bytes")
        return self._read(length)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("the broker closed the connection")
            data += part
        return bytes(data)

    def _authenticate(self, mechanism: str, user: str, password: str) -> None:
        answer = self.ask(request_head(SASL_HANDSHAKE, 1) + text(mechanism))
        (error,) = struct.unpack_from(">h", answer, 4)
        if error:
            raise ConnectionError(f"the broker does not take {mechanism}")
        if mechanism == "PLAIN":
            self._say(b"\0" + user.encode() + b"\0" + password.encode())
            return
        scram = _Scram(_DIGESTS[mechanism], user, password)
        final = scram.final(self._say(scram.first))
        scram.check(self._say(final))

    def _say(self, data: bytes) -> bytes:
        """One step of the authentication."""
        request = request_head(SASL_AUTHENTICATE, 0) + struct.pack(">i", len(data)) + data
        answer = self.ask(request)
        error, message_bytes = struct.unpack_from(">hh", answer, 4)
        if error:
            raise ConnectionError("the broker refused the authentication")
        at = 8 + max(0, message_bytes)
        (length,) = struct.unpack_from(">i", answer, at)
        return answer[at + 4 : at + 4 + max(0, length)]


class _Scram:
    """The client's side of one SCRAM exchange (RFC 5802, section 3), without channel binding.

    Args:
        digest: name of the hash for :mod:`hashlib`.
    """

    def __init__(self, digest: str, user: str, password: str) -> None:
        self._digest = digest
        self._password = password.encode()
        self._nonce = secrets.token_urlsafe(24)
        name = user.replace("=", "=3D").replace(",", "=2C")
        self._bare = f"n={name},r={self._nonce}"
        self._signature = b""

    @property
    def first(self) -> bytes:
        return f"n,,{self._bare}".encode()

    def final(self, server_first: bytes) -> bytes:
        """The client's last message.

        Raises:
            ConnectionError: the server's message is not of this exchange.
        """
        said = server_first.decode()
        fields = dict(part.split("=", 1) for part in said.split(",") if "=" in part)
        iterations = int(fields.get("i", "0"))
        if not fields.get("r", "").startswith(self._nonce) or not 0 < iterations <= MOST_ITERATIONS:
            raise ConnectionError("the broker answered another authentication")
        salted = hashlib.pbkdf2_hmac(self._digest, self._password, base64.b64decode(fields["s"]), iterations)
        channel = base64.b64encode(b"n,,").decode()
        without_proof = f"c={channel},r={fields['r']}"
        spoken = f"{self._bare},{said},{without_proof}".encode()
        client_key = self._keyed(salted, b"Client Key")
        client_sign = self._keyed(hashlib.new(self._digest, client_key).digest(), spoken)
        proof = bytes(a ^ b for a, b in zip(client_key, client_sign, strict=True))
        self._signature = self._keyed(self._keyed(salted, b"Server Key"), spoken)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, server_final: bytes) -> None:
        """The server must show that it knows the password, too.

        Raises:
            ConnectionError: it does not.
        """
        wanted = b"v=" + base64.b64encode(self._signature)
        if not hmac.compare_digest(server_final.partition(b",")[0], wanted):
            raise ConnectionError("the broker does not know the password")

    def _keyed(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self._digest).digest()


def request_head(number: int, version: int) -> bytes:
    """Header 1 of a request: no client id, and a correlation id that nobody needs."""
    return struct.pack(">hhih", number, version, version, -1)


def text(value: str) -> bytes:
    """A STRING of the protocol."""
    data = value.encode()
    return struct.pack(f">h{len(data)}s", len(data), data)


def _mechanism(kafka: Mapping[str, str]) -> str:
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI")).strip().upper()
    if mechanism not in ("PLAIN", *_DIGESTS):
        raise NotPossible(mechanism)
    return mechanism


def _tls(kafka: Mapping[str, str]) -> ssl.SSLContext:
    """The client's TLS settings as Python's ssl module has them."""
    unknown = [name for name in kafka if name.startswith("ssl.") and name not in _UNDERSTOOD]
    if unknown:
        raise NotPossible(unknown[0])
    ca = kafka.get("ssl.ca.location")
    context = ssl.create_default_context(cafile=ca if ca != "probe" else None)
    if kafka.get("ssl.endpoint.identification.algorithm", "https").strip().lower() == "none":
        context.check_hostname = False
    if kafka.get("enable.ssl.certificate.verification", "true").strip().lower() in ("false", "0", "f"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = kafka.get("ssl.certificate.location")
    if certificate is not None:
        # A password that is always given: without one OpenSSL would ask for it at the terminal.
        context.load_cert_chain(certificate, kafka.get("ssl.key.location"), kafka.get("ssl.key.password", ""))
    return context
