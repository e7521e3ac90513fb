"""Whether the consumer's client can go on: the errors that end it, and the brokers it knows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import KafkaError

from worker.errors import ClientFatal, StartError

BROKERLESS_S = 20.0
"""The client is given up after it has known no broker for this long."""
THROTTLING_TOLD_S = 60.0
"""Between two lines about quotas."""
REFUSALS = {
    KafkaError._AUTHENTICATION: "kafka: authentication failed",
    KafkaError._SSL: "kafka: TLS failed",
    KafkaError._UNSUPPORTED_FEATURE: "kafka.group.protocol: the broker does not support it",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "kafka.group.id: not authorised for the group",
    KafkaError.GROUP_MAX_SIZE_REACHED: "kafka.group.id: the group is full",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "input.topics: not authorised to read",
    KafkaError.INVALID_SESSION_TIMEOUT: "kafka.session.timeout.ms: the broker does not allow it",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "kafka.group.id: its members use another assignment strategy",
}
"""Errors that waiting does not mend. They end the start: after the first assignment they are warnings."""
FATAL = frozenset(
    {
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.UNRELEASED_INSTANCE_ID,
        KafkaError.UNSUPPORTED_ASSIGNOR,
    }
)
"""Errors after which the client never joins a group again. An error that arrives as a message has one of these codes
while its ``fatal()`` is false: only an error callback sets that flag."""

NOT_CONVERTED = "ConsumerGroupHeartbeat fatal error: Broker: The group id does not exist"
"""Kafka (4.2) answers so where the members of the classic protocol say things to one another that the newer protocol has no
place for, as those of librdkafka's cooperative-sticky do. The group must be empty once."""
NO_MATCH = "Subscribed topic not available: ^"
"""librdkafka says so of a pattern that matches no topic, with the code of a topic that does not exist."""

log = structlog.get_logger(module=__name__)


class ClientHealth:
    """Collects what the client reports in callbacks, where nothing may be raised, for the thread that reads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.fatal: str | None = None
        """Why the client can never work again; None while it can."""
        self.brokers_up = 0
        """Brokers that the client is connected to, as of the last statistics."""
        self.errors: Counter[str] = Counter()
        """Errors so far, by librdkafka's name of the code. An outage brings many a second, so no line is logged of each."""
        self.last_error = ""
        """What the last error said."""
        self._clock = clock
        self._joined = False
        self._failure: Exception | None = None
        self._had_brokers_s = clock()
        self.throttled_s = 0.0
        """Seconds for which brokers have held back answers so far, because of a quota."""
        self._throttling_told_s = float("-inf")

    def joined(self) -> None:
        """The client is a member of its group: it was let in, so refusals from now on may pass."""
        self._joined = True

    @property
    def is_member(self) -> bool:
        return self._joined

    def fail(self, failure: Exception) -> None:
        """Let the next :meth:`raise_failure` raise this."""
        self._failure = failure

    def raise_failure(self) -> None:
        """Raise what ended the client since the last call, once.

        Raises:
            ClientFatal: the client can never work again.
            StartError: the broker refuses us and we were never in the group.
            Exception: what was given to :meth:`fail`.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def on_error(self, error: KafkaError) -> None:
        """An error of the client, from its error callback or in place of a record."""
        code = error.code()
        if code == KafkaError.UNKNOWN_TOPIC_OR_PART and NO_MATCH in error.str():
            return  # that a pattern matches no topic yet is no error, and was told at start
        self.errors[error.name()] += 1
        if code != KafkaError._ALL_BROKERS_DOWN or not self.last_error:  # others give the reason for this one
            self.last_error = error.str()
        if NOT_CONVERTED in error.str() and not self._joined:
            self.fatal = error.str()
            self._failure = StartError(
                "kafka.group.protocol: members of the group use the classic protocol, and the broker cannot take them over; "
                "expected the group to be empty: stop all of its workers, then start them with consumer"
            )
        elif error.fatal() or code in FATAL:
            self.fatal = error.str()
            self._failure = ClientFatal(f"the Kafka consumer cannot go on: {error.str()}")
        elif code in REFUSALS and not self._joined:
            self._failure = StartError(f"{REFUSALS[code]}: {error.str()}")
        log.debug("client error", client="consumer", code=error.name(), error=error.str())

    def on_statistics(self, brokers: Mapping[str, Mapping[str, Any]]) -> None:
        """Give up a client that has no broker left and will not look for one.

        A cluster's only broker that shuts down in order ends with the answer that there is no broker, and librdkafka
        (2.16) may believe that for good: a re-bootstrap that was interrupted counts as under way for ever. Such a
        client stays silent, joins no group and fetches nothing. In an outage the client still lists the brokers of
        ``bootstrap.servers``.

        Args:
            brokers: the ``brokers`` object of librdkafka's statistics.
        """
        now = self._clock()
        self._note_throttling(sum(each.get("throttle", {}).get("sum", 0) for each in brokers.values()), now)
        # the group coordinator is listed a second time, as a broker with source "logical" and a connection of its own
        listed = [broker for broker in brokers.values() if broker.get("source") != "logical"]
        up = sum(broker.get("state") == "UP" for broker in listed)
        # A member that fetches nothing may have no other connection: librdkafka opens them when it needs them.
        self.brokers_up = up or int(any(broker.get("state") == "UP" for broker in brokers.values()))
        if listed:
            self._had_brokers_s = now
        elif now - self._had_brokers_s > BROKERLESS_S:
            self._failure = ClientFatal(
                f"the Kafka consumer has had no broker to ask for {BROKERLESS_S:.0f} s and does not look for one; "
                "a new process begins with kafka.bootstrap.servers"
            )

    def _note_throttling(self, held_ms: float, now_s: float) -> None:
        """Count what brokers held back since the last statistics, and say so now and then."""
        if held_ms <= 0:
            return
        self.throttled_s += held_ms / 1000
        if now_s - self._throttling_told_s >= THROTTLING_TOLD_S:
            self._throttling_told_s = now_s
            log.warning("the broker slows this client down: a quota is used up", held_back_ms=round(held_ms))
