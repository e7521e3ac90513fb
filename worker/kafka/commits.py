"""Commits of the consumer's positions: sent, waited for, confirmed, and what was committed before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.batch import Partition
from worker.kafka.notes import sealed

LOOKUP_TIMEOUT_S = 5.0
"""Longest wait for the broker's answer to one question; the questions of a rebalance are among them."""
STALE_WAIT_S = 3.0
"""How long a commit is repeated while the broker expects a newer member epoch than ours."""
STALE_PAUSE_S = 0.02
PASSING = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
    }
)
"""Why the broker refuses a commit while partitions change hands; the next owner starts from the last that worked."""

log = structlog.get_logger(module=__name__)


class Commits:
    """Commits for one consumer, which :meth:`attach` gives: it is built with :meth:`on_commit` as its callback."""

    def __init__(self) -> None:
        self.failures = 0
        """Positions whose commit failed."""
        self._consumer: Consumer
        self._confirmed: dict[Partition, int] = {}
        self._refused: dict[Partition, int] = {}
        """Error code of the last commit of each partition that failed; removed once a commit works."""

    def attach(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def commit(
        self, positions: Mapping[Partition, int], wait: bool, metadata: Mapping[Partition, str]
    ) -> dict[Partition, int]:
        """See :meth:`worker.kafka.source.KafkaSource.commit`."""
        if positions:
            offsets = [
                TopicPartition(place.topic, place.number, offset, metadata=sealed(metadata.get(place, "")))
                for place, offset in positions.items()
            ]
            if wait:
                self._commit_and_wait(offsets)
            else:
                try:
                    self._consumer.commit(offsets=offsets, asynchronous=True)
                except KafkaException as error:
                    self.on_commit(error.args[0], offsets)
        return self.confirmed()

    def _commit_and_wait(self, offsets: list[TopicPartition]) -> None:
        """Commit until the broker's answer is final.

        With the consumer protocol the broker may already expect a new member epoch that has not reached us: it
        refuses the commit although the partitions are ours. In a revoke no later commit makes up for that, so the
        commit is repeated, as ``commitSync`` of the Java client does; librdkafka does not repeat it.
        """
        until = time.monotonic() + STALE_WAIT_S
        while True:
            try:
                error, answered = None, self._consumer.commit(offsets=offsets, asynchronous=False) or []
            except KafkaException as failure:
                error, answered = failure.args[0], offsets
            stale = {(tp.topic, tp.partition) for tp in answered if _is_stale(error or tp.error)}
            if not stale or time.monotonic() > until:
                self.on_commit(error, answered)
                return
            self.on_commit(None, [tp for tp in answered if (tp.topic, tp.partition) not in stale])
            offsets = [tp for tp in offsets if (tp.topic, tp.partition) in stale]  # with their metadata
            time.sleep(STALE_PAUSE_S)

    def confirmed(self) -> dict[Partition, int]:
        """Positions that the broker has confirmed since the last call."""
        confirmed, self._confirmed = self._confirmed, {}
        return confirmed

    def committed(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """The last commit of each partition, in order: ``offset`` is negative where there is none.

        Raises:
            KafkaException: the broker did not answer in time.
        """
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        found: list[TopicPartition] = self._consumer.committed(asked, timeout=LOOKUP_TIMEOUT_S)
        for tp in found:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return found

    def on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """The broker's answer to a commit."""
        new: dict[int, tuple[KafkaError, list[str]]] = {}
        """By code: the error, and the partitions of which it was not told yet."""
        for tp in offsets:
            wrong = error or tp.error
            place = Partition(tp.topic, tp.partition)
            if wrong is None:
                self._confirmed[place] = tp.offset
                self._refused.pop(place, None)
                continue
            self.failures += 1
            if (
                self._refused.get(place) != wrong.code()
            ):  # in an outage every commit fails for the same reason
                new.setdefault(wrong.code(), (wrong, []))[1].append(f"{tp.topic}/{tp.partition}")
            self._refused[place] = wrong.code()
        for code, (wrong, partitions) in new.items():
            say = log.debug if code in PASSING else log.warning
            say("commit failed", partitions=partitions, error=wrong.str())


def _is_stale(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.STALE_MEMBER_EPOCH
