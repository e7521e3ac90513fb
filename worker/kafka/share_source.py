"""Where records come from with ``delivery: queue``: a share group (KIP-932), in which a record belongs to nobody for long.

The broker lends records out, whichever partition they are of, and each one is accepted, released or rejected by itself.
The loop knows positions instead. So this source numbers the records of each partition as they come, from
:data:`worker.batch.COUNTED` on; a position that is committed accepts the records before it.

A record that is lent again was given back, its lock ended, or a process died with it. Nobody says which. So such records
are worked on one at a time, each accepted before the next is begun: a record that kills the process takes no other one
with it. The next time they go in the opposite order, which reaches those behind it. After that it becomes a dead letter,
before the broker gives it up in silence.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from confluent_kafka import AcknowledgeType, KafkaException, ShareConsumer

from worker.batch import COUNTED, LENT_OFTEN, Columns, Partition, Span
from worker.kafka.columns import Gatherer, record_bytes
from worker.kafka.health import ClientHealth
from worker.kafka.properties import build, share_properties
from worker.sizes import HELD_RECORD_BYTES

if TYPE_CHECKING:
    from worker.kafka.assignment import Listener
    from worker.kafka.ends import Reach
    from worker.settings import Settings

GIVEN_UP_AT = 4
"""The delivery at which a record becomes a dead letter. Kafka's own limit (``group.share.delivery.count.limit``) is 5:
after that many the broker gives a record up, and nobody hears of it."""
LOCK_SHARE = 0.7
"""Of the time for which records are lent: those that are not begun by then are given back."""
COMMIT_TIMEOUT_S = 5.0

log = structlog.get_logger(module=__name__)


class ShareSource:
    """See the module; stands in for :class:`worker.kafka.source.KafkaSource`. One thread uses it.

    Args:
        consumer: a share consumer in explicit mode; made here unless given.
        topics: what it reads.
        lock_s: for how long the broker lends a record.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        topics: list[str],
        lock_s: float,
        client: Callable[[dict[str, Any]], Any] = ShareConsumer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = ClientHealth()
        self.on_member: Callable[[str], object] | None = None
        self.lent: Counter[str] = Counter()
        """Records by what became of them: accepted, released, rejected, refused (the lock had ended)."""
        self._topics = topics
        self._lock_s = lock_s
        self._clock = clock
        self._gatherer = Gatherer(topics)
        self._listener: Listener | None = None
        self._closed = False
        self._paused = False
        self._known: set[Partition] = set()
        self._waiting: deque[Any] = deque()
        """Messages that are lent to us and not returned yet."""
        self._one_by_one = False
        self._due_s = 0.0
        """Until when what waits must be begun."""
        self._open: dict[Partition, deque[tuple[int, int]]] = {}
        """Partition -> number and offset of the records that were returned and are not settled."""
        self._counts: Counter[Partition] = Counter()
        self._rejected: set[tuple[str, int, int]] = set()
        self._confirmed: dict[Partition, int] = {}
        callbacks = {"error_cb": self.health.on_error, "stats_cb": self._on_statistics}
        self._consumer = build(client, {**properties, **callbacks})
        self._consumer.set_acknowledgement_commit_callback(self._on_answer)

    # -- what the loop asks ----------------------------------------------------------------------------------

    @property
    def fatal(self) -> str | None:
        return self.health.fatal

    @property
    def brokers_up(self) -> int:
        return self.health.brokers_up

    @property
    def errors(self) -> Counter[str]:
        return self.health.errors

    @property
    def commit_failures(self) -> int:
        """Records whose answer the group did not take, because their lock had ended."""
        return self.lent["refused"]

    def subscribe(self, listener: Listener) -> None:
        self._listener = listener
        self._consumer.subscribe(self._topics)

    def take(self, timeout_s: float, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        """Records that are lent to us; see :meth:`worker.kafka.source.KafkaSource.take`."""
        if not self.health.is_member and self._listener is not None:
            self.health.joined()
            if self.on_member is not None:
                self.on_member("")
            self._listener.on_assign([])
        if not self._waiting and not any(self._open.values()) and not self._paused:
            self._borrow(timeout_s)
        elif not self._waiting or self._paused or (self._one_by_one and any(self._open.values())):
            time.sleep(timeout_s)
        self.health.raise_failure()
        if self._paused or (self._one_by_one and any(self._open.values())):
            return Columns(), []
        if self._waiting and self._clock() > self._due_s:
            self._give_back_waiting()
        return self._some(1 if self._one_by_one else most, wanted_bytes)

    def commit(
        self,
        positions: dict[Partition, int],
        wait: bool = False,
        metadata: dict[Partition, str] | None = None,
    ) -> dict[Partition, int]:
        """Accept the records before these positions, or reject those that became dead letters."""
        settled = False
        for place, position in positions.items():
            if position < COUNTED:
                continue  # an offset, from where reading began: nothing was settled there
            opened = self._open.get(place, deque())
            while opened and opened[0][0] < position:
                _, offset = opened.popleft()
                name = (place.topic, place.number, offset)
                verdict = "rejected" if name in self._rejected else "accepted"
                self._rejected.discard(name)
                settled |= self._settle(name, verdict)
            self._confirmed[place] = position
        if settled:
            self._send(wait or self._one_by_one)
        return self.confirmed()

    def confirmed(self) -> dict[Partition, int]:
        confirmed, self._confirmed = self._confirmed, {}
        return confirmed

    def reject(self, place: Partition, offset: int) -> None:
        """This record became a dead letter: it is rejected and not accepted, once its dead letter is acknowledged."""
        self._rejected.add((place.topic, place.number, offset))

    def seek(self, positions: dict[Partition, int]) -> None:
        """Everything that is not settled is given back: the group lends it out again."""
        self._give_back_open()
        self._give_back_waiting()

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        """Nobody leaves a note in a share group."""
        return dict.fromkeys(partitions, (COUNTED, ""))

    def lag(self) -> dict[Partition, Reach]:
        """A share group has no position."""
        return {}

    def pause(self, topics: Iterable[str]) -> None:
        self._paused = True

    def resume(self, topics: Iterable[str]) -> None:
        self._paused = False

    def close(self, timeout_s: float) -> None:
        """Give back what is not settled, and leave the group."""
        if self._closed:
            return
        self._closed, self._listener = True, None
        self._give_back_open()
        self._give_back_waiting()
        closing = threading.Thread(target=self._consumer.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            log.warning("the consumer did not leave the group in time", after_s=timeout_s)

    # -- lending ---------------------------------------------------------------------------------------------

    def _borrow(self, timeout_s: float) -> None:
        try:
            messages = self._consumer.poll(timeout_s) or ()
        except KafkaException as refused:
            self.health.on_error(refused.args[0])
            return
        self._due_s = self._clock() + self._lock_s * LOCK_SHARE
        found = []
        for message in messages:
            if (error := message.error()) is not None:
                self.health.on_error(error)
            else:
                found.append(message)
        found.sort(key=lambda message: (message.topic(), message.partition(), message.offset()))
        counts = [message.delivery_count() or 1 for message in found]
        self._one_by_one = any(1 < count < GIVEN_UP_AT for count in counts)
        if any(count == GIVEN_UP_AT - 1 for count in counts):
            found.reverse()
        self._waiting.extend(found)

    def _some(self, most: int, wanted_bytes: int) -> tuple[Columns, list[Span]]:
        messages: list[Any] = []
        free = wanted_bytes
        while self._waiting and len(messages) < most and (free > 0 or not messages):
            free -= record_bytes(self._waiting[0]) + HELD_RECORD_BYTES
            messages.append(self._waiting.popleft())
        if not messages:
            return Columns(), []
        often = {
            (m.topic(), m.partition(), m.offset()): count
            for m in messages
            if (count := m.delivery_count() or 1) >= GIVEN_UP_AT
        }
        columns, spans = self._gatherer.gather(messages)
        for span in spans:
            place = span.partition
            opened = self._open.setdefault(place, deque())
            for row in range(span.start, span.stop):
                opened.append((COUNTED + self._counts[place], columns.offsets[row]))
                self._counts[place] += 1
            span.next_offset = COUNTED + self._counts[place]
        for row, place in enumerate(columns.partitions) if often else ():
            if count := often.get((place.topic, place.number, columns.offsets[row])):
                columns.headers[row] = [(LENT_OFTEN, str(count).encode()), *(columns.headers[row] or [])]
        new = [span.partition for span in spans if span.partition not in self._known]
        if new and self._listener is not None:
            self._known.update(new)
            self._listener.on_assign(new)
        return columns, spans

    # -- giving back -----------------------------------------------------------------------------------------

    def _give_back_open(self) -> None:
        given = [
            self._settle((place.topic, place.number, offset), "released")
            for place, opened in self._open.items()
            for _, offset in opened
        ]
        self._open.clear()
        self._rejected.clear()
        if given:
            self._send(wait=True)

    def _give_back_waiting(self) -> None:
        if not self._waiting:
            return
        for message in self._waiting:
            self._settle((message.topic(), message.partition(), message.offset()), "released")
        log.info("records that were not begun are given back to the group", records=len(self._waiting))
        self._waiting.clear()
        self._send(wait=True)

    def _settle(self, name: tuple[str, int, int], verdict: str) -> bool:
        try:
            self._consumer.acknowledge_offset(*name, _VERDICTS[verdict])
        except Exception as error:  # its lock has ended: the group lends it out again
            self.lent["refused"] += 1
            topic, partition, offset = name
            record = f"{topic}/{partition}/{offset}"
            log.debug("the lock of a record has ended", record=record, verdict=verdict, error=str(error))
            return False
        self.lent[verdict] += 1
        return True

    def _send(self, wait: bool) -> None:
        with suppress(
            KafkaException
        ):  # the answer for each record comes by the callback, or with its next delivery
            if wait:
                self._consumer.commit_sync(COMMIT_TIMEOUT_S)
            else:
                self._consumer.commit_async()

    def _on_answer(self, offsets: Mapping[Any, Any], error: Any) -> None:
        if error is not None:
            count = sum(len(each) for each in offsets.values())
            self.lent["refused"] += count
            log.warning("the broker does not take the answer for records", records=count, error=str(error))

    def _on_statistics(self, text: str) -> None:
        self.health.on_statistics(orjson.loads(text).get("brokers", {}))


_VERDICTS = {
    "accepted": AcknowledgeType.ACCEPT,
    "released": AcknowledgeType.RELEASE,
    "rejected": AcknowledgeType.REJECT,
}


def open_share_source(settings: Settings, lock_s: float) -> ShareSource:
    """The share consumer of the worker's input topics, not subscribed yet.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """
    topics = [topic for pipeline in settings.pipelines.values() for topic in pipeline.input.topics]
    return ShareSource(share_properties(settings), [*dict.fromkeys(topics)], lock_s)
