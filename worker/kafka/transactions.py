"""Transactions: outputs and consumer positions that become visible together or not at all.

librdkafka's flags on an error decide the reaction, never the error code. A call that timed out is repeated unchanged.
If the outcome stays unknown, or the producer is fenced or meets a fatal error, a new producer replaces it:
``init_transactions`` completes or aborts the old producer's transaction, and the committed positions then show which.
The replacement also keeps a delayed EndTxn request of the old protocol away from later transactions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.batch import Partition
from worker.errors import ClientFatal, StartError, TransactionFailed
from worker.kafka.notes import sealed

if TYPE_CHECKING:
    from worker.kafka.sink import Outputs
    from worker.kafka.source import KafkaSource

CALL_S = 5.0
"""One attempt of a transactional call."""
GRACE_S = 2.0
"""A call that exceeds its limit by this much is taken for one that never returns."""
COMMIT_S = 10.0
"""After this long without an answer the outcome is treated as unknown."""
START_S = 60.0
"""Longest wait for the transaction coordinator at start."""
UUID_LENGTH = 36
"""Characters at the end of a ``transactional.id`` that are new for each process."""
REFUSALS_MAX = 3
"""When the broker has refused this many new producers in a row, the process exits, to be restarted."""

FENCES_MAX, FENCES_WITHIN_S = 5, 60.0
"""If this many of our producers are fenced within this time, another process keeps using our ``transactional.id``, and
this process exits: the next one has a different id. The count of consecutive rewinds cannot show this, because each
producer may commit something before it is fenced; the two processes would fence each other forever."""

log = structlog.get_logger(module=__name__)


class Producer(Protocol):
    """The transactional calls of a producer. Timeouts are in seconds; each call may raise KafkaException."""

    def init_transactions(self, timeout: float, /) -> Any: ...

    def begin_transaction(self) -> Any: ...

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float, /
    ) -> Any: ...

    def commit_transaction(self, timeout: float, /) -> Any: ...

    def abort_transaction(self, timeout: float, /) -> Any: ...

    def flush(self, timeout: float, /) -> int: ...


class KafkaTransactions:
    """See :class:`worker.loop.exactly_once.Transactions`.

    Raises:
        StartError: the broker gives no transactional producer (rights, or no transaction coordinator).
    """

    def __init__(self, source: KafkaSource, sink: Outputs[Any]) -> None:
        self._source = source
        self._sink = sink
        self._broken: Producer | None = None
        """The last producer with a fatal error or an unknown outcome: it must not be used again."""
        self._since: dict[Producer, float] = {}
        """Producer in a call -> when the call began (monotonic seconds)."""
        self._fences: deque[float] = deque(maxlen=FENCES_MAX)
        """Monotonic seconds at which the last producers were found fenced."""
        try:
            self._initialise(START_S)
        except TransactionFailed as failure:
            raise StartError(f"delivery: exactly_once cannot start: {failure}") from None

    def begin(self) -> None:
        producer = self._sink.producer
        self._call("begin_transaction", producer, lambda _timeout: producer.begin_transaction(), CALL_S)

    def group(self) -> Any:
        return self._source.group_metadata()

    def commit(self, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any) -> None:
        producer = self._sink.producer  # the same for both calls, however long the first one takes
        offsets = [
            TopicPartition(p.topic, p.number, offset, metadata=sealed(metadata.get(p, "")))
            for p, offset in positions.items()
        ]
        with self._sink.lend(producer):
            if offsets:
                self._call(
                    "send_offsets_to_transaction",
                    producer,
                    lambda timeout: producer.send_offsets_to_transaction(offsets, group, timeout),
                    COMMIT_S,
                )
            self._call("commit_transaction", producer, producer.commit_transaction, COMMIT_S)

    @property
    def hung(self) -> bool:
        """As in :class:`worker.loop.exactly_once.Transactions`. librdkafka may hang when a coordinator disappears."""
        since = self._since.get(self._sink.producer)
        return since is not None and time.monotonic() - since > CALL_S + GRACE_S

    def abort(self) -> None:
        """As in :class:`worker.loop.exactly_once.Transactions`. Waits as long as no broker answers."""
        producer = self._sink.producer
        if not self._sink.lent and self._broken is not producer:
            try:
                with self._sink.lend(producer):
                    # An abort while rows are queued can fail with INVALID_TXN_STATE: flush first.
                    with suppress(KafkaException):
                        producer.flush(CALL_S)
                    self._call("abort_transaction", producer, producer.abort_transaction, COMMIT_S)
                return
            except TransactionFailed as failure:
                log.warning("an abort failed: the producer is replaced", error=str(failure))
        self._renew()

    def committed(self, partitions: Collection[Partition]) -> dict[Partition, int | None] | None:
        try:
            return {place: offset for place, (offset, _) in self._source.committed(partitions).items()}
        except KafkaException as error:
            log.warning("committed offsets are not known yet", error=error.args[0].str())
            return None

    def _call(self, what: str, producer: Producer, call: Callable[[float], Any], budget_s: float) -> None:
        """Make one transactional call, repeating it while it may still succeed.

        Raises:
            TransactionFailed: ``aborted`` if the transaction must be aborted. With the other two results the
                producer must be replaced: ``unknown`` if no broker answered in time, ``fenced`` if the broker
                refuses the producer.
        """
        deadline = time.monotonic() + budget_s
        while True:
            self._since[producer] = time.monotonic()
            try:
                call(CALL_S)
                return
            except KafkaException as raised:
                error = raised.args[0]
                if error.txn_requires_abort():
                    raise TransactionFailed("aborted", f"{what}: {error.str()}") from None
                if error.retriable() and time.monotonic() < deadline:
                    continue
                self._broken = producer
                result = "unknown" if error.retriable() else "fenced"
                if error.code() == KafkaError._FENCED:
                    self._fences.append(time.monotonic())
                raise TransactionFailed(result, f"{what}: {error.str()}{self._expected(error)}") from None
            finally:
                del self._since[producer]

    def _expected(self, error: KafkaError) -> str:
        """The right that the broker misses."""
        if error.code() != KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            return ""
        begins = str(self._sink.transactional_id)[:-UUID_LENGTH]
        return f"; expected the right WRITE on transactional ids that begin with {begins}"

    def _renew(self) -> None:
        """Replace the producer, with the same id: the new epoch fences requests of the old one still on their way."""
        if len(self._fences) == FENCES_MAX and self._fences[-1] - self._fences[0] <= FENCES_WITHIN_S:
            raise ClientFatal(
                f"kafka: another producer keeps taking the transactional.id {self._sink.transactional_id} "
                f"({FENCES_MAX} of ours were fenced within {FENCES_WITHIN_S:.0f} s), or transactions outlive "
                "kafka.transaction.timeout.ms"
            )
        refusals = 0
        while True:
            self._sink.renew()
            try:
                self._initialise(START_S)
                return
            except TransactionFailed as failure:
                refusals += failure.result != "unknown"  # an outage is waited out
                if refusals >= REFUSALS_MAX:
                    raise ClientFatal(f"no transactional producer can be had: {failure}") from None
                log.warning("the new producer failed too", error=str(failure))

    def _initialise(self, budget_s: float) -> None:
        producer = self._sink.producer
        with self._sink.lend(producer):
            self._call("init_transactions", producer, producer.init_transactions, budget_s)
