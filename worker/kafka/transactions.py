"""Transactions: outputs and consumer positions that become visible together or not at all.

Errors are classified by librdkafka's flags, never by code. A call that timed out is repeated as it is; an outcome
that stays unknown, a fence and a fatal error all end the producer: a new one (``init_transactions`` completes or
aborts what its predecessor left) and a look at the committed positions say what really happened. That also keeps a
delayed EndTxn of the old protocol away from later transactions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException, TopicPartition

from worker.batch import Partition
from worker.errors import ClientFatal, StartError, TransactionFailed

if TYPE_CHECKING:
    from worker.kafka.sink import KafkaSink
    from worker.kafka.source import KafkaSource

CALL_S = 5.0
"""One attempt of a transactional call."""
COMMIT_S = 30.0
"""After this long without an answer the outcome counts as unknown."""
RENEW_S = 60.0
"""Longest time to get a working producer; past it the process ends and is started anew."""

log = logging.getLogger(__name__)


class KafkaTransactions:
    """See :class:`worker.delivery.Transactions`.

    Raises:
        StartError: the broker gives no transactional producer (rights, or no transaction coordinator).
    """

    def __init__(self, source: KafkaSource, sink: KafkaSink) -> None:
        self._source = source
        self._sink = sink
        self._broken = False
        """The producer is fatal or its last outcome unknown: it must not be used again."""
        try:
            self._initialise(time.monotonic() + RENEW_S)
        except TransactionFailed as failure:
            raise StartError(f"delivery: exactly_once cannot start: {failure}") from None

    def begin(self) -> None:
        self._call("begin_transaction", lambda _timeout: self._sink.producer.begin_transaction(), CALL_S)

    def group(self) -> Any:
        return self._source.group_metadata()

    def commit(self, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any) -> None:
        producer = self._sink.producer
        offsets = [
            TopicPartition(p.topic, p.number, offset, metadata=metadata.get(p, ""))
            for p, offset in positions.items()
        ]
        if offsets:
            self._call(
                "send_offsets_to_transaction",
                lambda timeout: producer.send_offsets_to_transaction(offsets, group, timeout),
                COMMIT_S,
            )
        self._call("commit_transaction", producer.commit_transaction, COMMIT_S)

    def abort(self) -> None:
        if not self._broken:
            try:
                # what is queued must be sent or refused first: an abort beside it can end in INVALID_TXN_STATE
                self._sink.producer.flush(CALL_S)
                self._call("abort_transaction", self._sink.producer.abort_transaction, COMMIT_S)
            except TransactionFailed as failure:
                log.warning("abort failed, the producer is replaced: %s", failure)
                self._broken = True
        if self._broken:
            self._renew()

    def committed(self, partitions: Collection[Partition]) -> dict[Partition, int | None]:
        if not partitions:
            return {}
        deadline = time.monotonic() + RENEW_S
        while True:
            try:
                return {place: offset for place, (offset, _) in self._source.committed(partitions).items()}
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise ClientFatal(f"committed positions cannot be read: {error.args[0].str()}") from None
                log.warning("committed positions are not known yet: %s", error.args[0].str())

    def _call(self, what: str, call: Callable[[float], Any], budget_s: float) -> None:
        """Make one transactional call, repeating it while it may still succeed.

        Raises:
            TransactionFailed: ``aborted`` when the transaction must be aborted, else the producer is done for.
        """
        deadline = time.monotonic() + budget_s
        while True:
            try:
                call(CALL_S)
                return
            except KafkaException as raised:
                error = raised.args[0]
                if error.txn_requires_abort():
                    raise TransactionFailed("aborted", f"{what}: {error.str()}") from None
                if error.retriable() and time.monotonic() < deadline:
                    continue
                self._broken = True
                result = "fenced" if error.fatal() else "unknown"
                raise TransactionFailed(result, f"{what}: {error.str()}") from None

    def _renew(self) -> None:
        """A new producer under the same id; its epoch fences whatever the old one may still have on the wire."""
        deadline = time.monotonic() + RENEW_S
        while True:
            self._sink.renew()
            try:
                self._initialise(deadline)
            except TransactionFailed as failure:
                if time.monotonic() > deadline:
                    raise ClientFatal(f"no transactional producer can be had: {failure}") from None
                log.warning("the new producer failed too: %s", failure)
            else:
                self._broken = False
                return

    def _initialise(self, deadline: float) -> None:
        self._call("init_transactions", self._sink.producer.init_transactions, deadline - time.monotonic())
