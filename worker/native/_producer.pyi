"""Compiled from the C++ sources beside this file."""

from collections.abc import Callable
from typing import Any

INTERFACE: int
"""Counts up when a function here takes or gives something else."""

Refusal = tuple[int, str, bool, bool, bool]
"""What a transactional call failed of: code, text, fatal, retriable, whether the transaction has to be aborted."""

Receipt = Callable[..., None]
"""Anything; it only comes back from :meth:`Producer.poll`."""

class Producer:
    """librdkafka's producer, fed and acknowledged by the batch. Lets go of the interpreter where it may wait.

    With ``transactional.id`` among its properties no receipt hears of anything: a commit answers for every row.

    Args:
        handle: of the loaded library, as ``ctypes.CDLL(path)._handle``.
        properties: of the client, all as text.

    Raises:
        ValueError: what librdkafka has against the properties.
    """

    def __new__(cls, handle: int, properties: dict[str, str]) -> Producer: ...
    def send(
        self,
        topic: str,
        partition: int,
        by_key: bool,
        values: list[bytes | None],
        keys: list[bytes | None],
        receipt: Receipt | None,
    ) -> tuple[int, list[tuple[int, int]]]:
        """Queue rows in order until the queue is full.

        Args:
            partition: of every row; where ``by_key``, only of those without a key.

        Returns:
            How many rows were taken, and (row, error code) of those among them that are refused for good.
            The ``receipt`` will hear of every other row taken.
        """

    def send_headed(
        self,
        topic: str,
        partition: int,
        by_key: bool,
        values: list[bytes | None],
        keys: list[bytes | None],
        headers: list[Any],
        timestamp_ms: int,
        receipt: Receipt | None,
    ) -> tuple[int, list[tuple[int, int]]]:
        """The same with headers per row (a list of (name, bytes or None), or None) and a timestamp (0 = now)."""

    def poll(self, timeout_ms: int) -> list[tuple[Any, ...]]:
        """What has happened, waiting for the first of it.

        Returns:
            ``("rows", receipt, rows, code)``: so many rows delivered (code 0) or failed;
            ``("error", code, text, fatal)``; ``("log", syslog level, facility, text)``.
        """

    def hurry(self) -> None:
        """Let nothing linger for a hundredth of a second, or until everything is sent and told."""

    def purge(self) -> None:
        """Give up what is not acknowledged: :meth:`poll` tells of each row."""

    def waiting(self) -> int:
        """Rows and events that are not told yet."""

    def init_transactions(self, timeout_ms: int) -> Refusal | None:
        """What this and the following say: None when it is done. See rd_kafka_init_transactions in rdkafka.h."""

    def begin_transaction(self) -> Refusal | None: ...
    def send_offsets(
        self, offsets: list[tuple[str, int, int, str]], group: bytes, timeout_ms: int
    ) -> Refusal | None:
        """Put a consumer's positions into the transaction.

        Args:
            offsets: topic, partition, next offset to read, metadata.
            group: what ``confluent_kafka.Consumer.consumer_group_metadata`` gives.
        """

    def commit_transaction(self, timeout_ms: int) -> Refusal | None: ...
    def abort_transaction(self, timeout_ms: int) -> Refusal | None: ...
    def name(self) -> str: ...
    def text(self, code: int) -> str:
        """An error code in words."""

    def close(self) -> None:
        """End the client, which waits for its threads; what is not acknowledged is forgotten. Then nothing works.

        Raises:
            RuntimeError: another thread is in a call.
        """
