"""The connection of our own to a broker, against a server of a few lines; SCRAM and TLS are tried on a real broker."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from worker.kafka.connection import MOST_ANSWER_BYTES, BrokerConnection, NotPossible

PLAIN = {
    "security.protocol": "sasl_plaintext",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "anna",
    "sasl.password": "canary-rot",
}


class Broker:
    """Answers each request with the next of ``answers``, and keeps the requests."""

    def __init__(self, answers: list[bytes]) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as stream:
            for answer in self._answers:
                (length,) = struct.unpack(">i", stream.read(4))
                self.requests.append(stream.read(length))
                connection.sendall(answer)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def broker() -> Iterator[Callable[..., Broker]]:
    made: list[Broker] = []

    def make(*answers: bytes) -> Broker:
        made.append(Broker(list(answers)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


SHAKEN = framed(struct.pack(">ihi", 17, 0, 0))
WELCOME = framed(struct.pack(">ihhi", 36, 0, -1, 0))
REFUSED = framed(struct.pack(">ihhi", 36, 58, -1, 0))


def test_plain_sends_user_and_password_and_then_asks(broker: Callable[..., Broker]) -> None:
    """With SASL PLAIN the user and the password go out as RFC 4616 has them, before the first request."""
    there = broker(SHAKEN, WELCOME, framed(b"done"))
    with BrokerConnection("127.0.0.1", there.port, PLAIN) as connection:
        assert connection.ask(b"anything") == b"done"
    assert there.requests[1].endswith(b"\0anna\0canary-rot")
    assert there.requests[2] == b"anything"


def test_a_refused_password_is_an_error_without_the_password(broker: Callable[..., Broker]) -> None:
    """A broker that refuses the password raises an error that does not show it."""
    there = broker(SHAKEN, REFUSED)
    with pytest.raises(ConnectionError, match="refused the authentication") as refused:
        BrokerConnection("127.0.0.1", there.port, PLAIN)
    assert "canary" not in str(refused.value)


def test_an_answer_that_is_too_long_is_not_read(broker: Callable[..., Broker]) -> None:
    """An announced length beyond the limit is an error; the connection takes no memory for it."""
    there = broker(struct.pack(">i", MOST_ANSWER_BYTES + 1))
    with (
        BrokerConnection("127.0.0.1", there.port, {}) as connection,
        pytest.raises(ConnectionError, match="announced"),
    ):
        connection.ask(b"anything")


@pytest.mark.parametrize(
    "kafka",
    [
        {"security.protocol": "sasl_plaintext", "sasl.mechanism": "OAUTHBEARER"},
        {"security.protocol": "SASL_PLAINTEXT"},
        {"security.protocol": "ssl", "ssl.keystore.location": "client.p12"},
    ],
)
def test_what_it_does_not_know_is_said_before_it_connects(kafka: dict[str, str]) -> None:
    """Other mechanisms and kinds of key store are refused before a connection is made."""
    with pytest.raises(NotPossible):
        BrokerConnection("127.0.0.1", 9, kafka)
