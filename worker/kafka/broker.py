"""The embedded development broker: the mock cluster that librdkafka contains for its own tests.

It is a real broker to librdkafka clients: topics, groups, commits and transactions work, without Java or Docker.
It is *not* Apache Kafka. It keeps at most 5 MB per partition in memory and has no administration calls. It does not
fence zombies, does not hide aborted transactions, and loses offsets that were sent to a transaction: ``exactly_once``
does not work on it. While a group rebalances it refuses commits, where Apache Kafka takes them until every member has
joined again: a partition that changes hands may keep its first note (:mod:`worker.loop.caution`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from worker.errors import StartError
from worker.kafka.library import library

BROKER_ID = 1
PRODUCER = 0  # enum rd_kafka_type_t
CHUNK_BYTES = 65536
JOIN_DELAY_MS = 100
"""How long a new group waits for more members. librdkafka's 3 s would only slow a demo down."""


class EmbeddedBroker:
    """One broker in this process, on the loopback interface; a context manager.

    Args:
        topics: name -> number of partitions.
        port: bootstrap port to answer on; None = any. The broker itself always listens on a random port, and
            clients learn that port from its metadata.

    Raises:
        StartError: the port is in use, or librdkafka's shared library cannot be found.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, port: int | None = None) -> None:
        self._lib = _declared_library()
        reason = ctypes.create_string_buffer(512)
        # The mock cluster needs a client for its threads and its log. This client connects to no broker, and log
        # level 3 hides librdkafka's warning about that.
        properties = self._lib.rd_kafka_conf_new()
        self._lib.rd_kafka_conf_set(properties, b"log_level", b"3", reason, 512)
        self._client = self._lib.rd_kafka_new(PRODUCER, properties, reason, 512)
        if not self._client:
            raise StartError(f"cannot start the embedded broker: {reason.value.decode()}")
        self._cluster = self._lib.rd_kafka_mock_cluster_new(self._client, 1)
        self.bootstrap: str = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        """``host:port`` for ``bootstrap.servers``."""
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, JOIN_DELAY_MS)
        self._forwarder: _Forwarder | None = None
        try:
            for name, partitions in (topics or {}).items():
                self.create_topic(name, partitions)
            if port is not None:
                self._forwarder = _Forwarder(port, self.bootstrap)
                self.bootstrap = f"127.0.0.1:{self._forwarder.port}"
        except StartError:
            self.close()
            raise

    def create_topic(self, name: str, partitions: int) -> None:
        self._check(
            self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1),
            f"create topic {name} with {partitions} partitions",
        )

    def set_rtt(self, ms: int) -> None:
        """Delay the answer to every request by ``ms`` milliseconds."""
        self._check(
            self._lib.rd_kafka_mock_broker_set_rtt(self._cluster, BROKER_ID, ms), "set the round trip"
        )

    def push_errors(self, api_key: int, *codes: int) -> None:
        """Fail the next requests of one API (0 Produce, 1 Fetch, 8 OffsetCommit, ...) with these error codes."""
        self._lib.rd_kafka_mock_push_request_errors_array(
            self._cluster, api_key, len(codes), (ctypes.c_int * len(codes))(*codes)
        )

    def set_down(self) -> None:
        """Drop every connection and accept no new one."""
        self._check(self._lib.rd_kafka_mock_broker_set_down(self._cluster, BROKER_ID), "go down")

    def set_up(self) -> None:
        self._check(self._lib.rd_kafka_mock_broker_set_up(self._cluster, BROKER_ID), "come up")

    def close(self) -> None:
        """Stop the broker and delete its topics; a second call does nothing."""
        if self._cluster is None:
            return
        if self._forwarder is not None:
            self._forwarder.close()
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._client)
        self._cluster = None

    def __enter__(self) -> EmbeddedBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, code: int, what: str) -> None:
        if code:
            raise StartError(f"the embedded broker could not {what} (librdkafka error {code})")


def _declared_library() -> Any:
    """librdkafka with the types of the calls used here declared: without them ctypes cuts pointers to 32 bits."""
    lib = library()
    if lib is None or not hasattr(lib, "rd_kafka_mock_cluster_new"):
        raise StartError(
            "the embedded broker needs librdkafka's shared library inside the confluent-kafka package: "
            "install confluent-kafka from its wheel"
        )
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, ctypes.c_int32, number]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class _Forwarder:
    """Listens on a chosen port and forwards each connection, because the mock broker cannot choose its port."""

    def __init__(self, port: int, target: str) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(f"--port {port}: cannot listen on 127.0.0.1:{port}: {why}") from None
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="embedded-broker-port", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept below
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for source, sink in ((client, broker), (broker, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes in one direction until either side closes, then shut both sockets down."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
    source.close()
