"""The consumer's assignment: which partitions are fetched, from where, and whether they are paused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from worker.batch import Partition
from worker.errors import ClientFatal
from worker.topics import Topics


class Listener(Protocol):
    """Told of rebalances, on the thread that calls ``take``."""

    def on_assign(self, partitions: list[Partition]) -> None:
        """These are ours from now on; nothing of them has been returned yet."""

    def on_revoke(self, partitions: list[Partition]) -> None:
        """These are ours until this returns: the last moment to commit."""

    def on_lost(self, partitions: list[Partition]) -> None:
        """Someone else may own these already: neither commit nor publish."""


class Assignment:
    """Owned partitions and the next offset of each.

    Args:
        consumer: the client whose assignment it is.
        properties: of that client; they say whether partitions come one by one (see :func:`_is_incremental`).
    """

    def __init__(self, consumer: Consumer, properties: Mapping[str, Any]) -> None:
        self.positions: dict[Partition, int] = {}
        """Owned partition -> offset behind the last record returned; before the first, where reading started
        (negative: not known)."""
        self.moved: set[Partition] = set()
        """Partitions that left or were sought since this was last cleared: what was fetched of them before is stale."""
        self.paused = Topics()
        """Topics that are not fetched."""
        self.held: set[Partition] = set()
        """Partitions that somebody else reads for us (:mod:`worker.kafka.careful`): never fetched here."""
        self._consumer = consumer
        self._incremental = _is_incremental(properties)

    def add(self, partitions: list[TopicPartition]) -> None:
        """Start to fetch these partitions at their offsets.

        Raises:
            KafkaException: the client refuses the assignment.
        """
        self.positions |= {Partition(tp.topic, tp.partition): tp.offset for tp in partitions}
        for tp in partitions:
            if _place(tp) in self.held:
                tp.offset = OFFSET_END  # until the pause arrives nothing that is there now may be fetched
        (self._consumer.incremental_assign if self._incremental else self._consumer.assign)(partitions)
        if paused := self._not_fetched(partitions):
            self._consumer.pause(paused)

    def remove(self, partitions: list[TopicPartition]) -> None:
        """These partitions left; the client has stopped to fetch them by itself."""
        if paused := self._not_fetched(partitions):
            # librdkafka keeps the pause of a partition that has left: if it came back, it would never be fetched
            with suppress(KafkaException):
                self._consumer.resume(paused)
        for tp in partitions:
            place = Partition(tp.topic, tp.partition)
            self.positions.pop(place, None)
            self.held.discard(place)
            self.moved.add(place)

    def pause(self, topics: Iterable[str]) -> None:
        """Stop fetching these topics, partitions added later included. Throws away what was fetched of them."""
        self.paused = Topics([*self.paused, *topics])
        self._consumer.pause(self._of(topics))

    def resume(self, topics: Iterable[str]) -> None:
        """Fetch these topics again."""
        self.paused = Topics(self.paused.difference(topics))
        self._consumer.resume([tp for tp in self._of(topics) if _place(tp) not in self.held])

    def still_ours(self, messages: list[Any]) -> list[Any]:
        """Drop what a rebalance between poll and consume took away or rewound.

        librdkafka itself drops older records of such a partition; only the first one, which was polled before, is in
        our hands.
        """
        places = [Partition(message.topic(), message.partition()) for message in messages]
        return [
            message
            for row, (message, place) in enumerate(zip(messages, places, strict=True))
            if message.error() is not None
            or (place in self.positions and not (row == 0 and place in self.moved))
        ]

    def passed(self) -> dict[Partition, int]:
        """The client's own positions: they also advance over offsets that hold no record."""
        fetched = partitions_of(place for place in self.positions if place not in self.held)
        return self.positions | {_place(tp): tp.offset for tp in self._consumer.position(fetched)}

    def jump(self, place: Partition, offset: int) -> None:
        """Go on at this offset of an owned partition.

        Raises:
            ClientFatal: the client refuses.
        """
        target = TopicPartition(place.topic, place.number, offset)
        self.positions[place] = offset
        self.moved.add(place)
        if place in self.held:
            return
        try:
            self._consumer.seek(target)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise ClientFatal(
                    f"cannot seek in {place.topic}/{place.number}: {error.args[0].str()}"
                ) from None
            self._assign_anew(target)  # an error stopped the fetching, or it has not started yet

    def release(self, place: Partition) -> None:
        """Fetch a partition that was held, from its position on.

        Raises:
            ClientFatal: the client refuses.
        """
        self.held.discard(place)
        self.jump(place, self.positions[place])
        if place.topic not in self.paused:
            self._consumer.resume([TopicPartition(*place)])

    def _assign_anew(self, target: TopicPartition) -> None:
        """Start at the target's offset. The eager protocol takes only whole assignments."""
        if self._incremental:
            self._consumer.incremental_unassign([target])
            self._consumer.incremental_assign([target])
        else:
            self._consumer.assign(
                [TopicPartition(*place, offset) for place, offset in self.positions.items()]
            )
        if paused := self._not_fetched(partitions_of(self.positions)):
            self._consumer.pause(paused)

    def _not_fetched(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [tp for tp in partitions if tp.topic in self.paused or _place(tp) in self.held]

    def _of(self, topics: Iterable[str]) -> list[TopicPartition]:
        named = Topics(topics)
        return partitions_of(place for place in self.positions if place.topic in named)


def partitions_of(places: Iterable[Partition]) -> list[TopicPartition]:
    """The same partitions as the client names them."""
    return [TopicPartition(*place) for place in places]


def _place(tp: TopicPartition) -> Partition:
    return Partition(tp.topic, tp.partition)


def _is_incremental(properties: Mapping[str, Any]) -> bool:
    """Whether partitions come and go one by one; else each rebalance takes all of them away and gives them anew."""
    if str(properties.get("group.protocol", "classic")).lower() == "consumer":
        return True
    return "cooperative" in str(properties["partition.assignment.strategy"])
