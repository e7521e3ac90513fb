"""What a topic takes: record sizes, timestamps, and whether a record needs a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from worker.dead_letters.compose import LETTER_BYTES
from worker.errors import StartError
from worker.kafka.properties import DEFAULT_TOPIC_LIMIT

if TYPE_CHECKING:
    from worker.settings import Settings

DEFAULT_AFTER_MS = 3_600_000
"""Kafka's own default of a topic's ``message.timestamp.after.max.ms``, assumed where the topic's cannot be read."""
FOREVER_MS = (1 << 63) - 1
SLACK_MS = 60_000
"""A timestamp so close to a limit counts as beyond it: clocks differ, and a record may wait for its broker."""

log = structlog.get_logger(module=__name__)


@dataclass(frozen=True)
class Times:
    """Which timestamps a topic takes and keeps."""

    before_ms: int = FOREVER_MS
    """How long ago, at most."""
    after_ms: int = DEFAULT_AFTER_MS
    """How far ahead, at most."""
    appended: bool = False
    """It gives every record the time at which it came, whatever it said."""

    def keeps(self, timestamp_ms: int, now_ms: float) -> bool:
        """Whether a record of this timestamp is taken now and has it afterwards."""
        age_ms = now_ms - timestamp_ms
        oldest_ms = self.before_ms - min(SLACK_MS, self.before_ms / 2)
        newest_ms = self.after_ms - min(SLACK_MS, self.after_ms / 2)
        return not self.appended and -newest_ms <= age_ms <= oldest_ms


@dataclass(frozen=True)
class Rules:
    """What a topic takes; Kafka's defaults where the broker does not say."""

    max_bytes: int = DEFAULT_TOPIC_LIMIT
    times: Times = Times()
    compacted: bool = False
    policy: str = ""
    """``cleanup.policy``; empty: not known."""


def rules_of(config: Mapping[str, str]) -> Rules:
    """What a topic's configuration says.

    Raises:
        KeyError: it says nothing of ``max.message.bytes``.
    """
    policy = config.get("cleanup.policy", "")
    return Rules(int(config["max.message.bytes"]), _times_of(config), "compact" in policy, policy)


def compacted(rules: Mapping[str, Rules]) -> frozenset[str]:
    """The topics that take records with a key only; each is named in a warning."""
    found = frozenset(topic for topic, each in rules.items() if each.compacted)
    for topic in sorted(found):
        log.warning(
            "the topic is compacted: it takes records with a key only",
            topic=topic,
            without_key="a result becomes a dead letter, a dead letter gets its source as its key",
        )
    return found


def check_letters_fit(settings: Settings, rules: Mapping[str, Rules], limits: Mapping[str, int]) -> None:
    """Refuse a limit that no dead letter fits: each one would be refused, and its record read again for ever."""
    topic = settings.dead_letter.topic
    if limits[topic] >= LETTER_BYTES:
        return
    if limits[topic] < rules[topic].max_bytes:
        raise StartError(
            f"kafka.message.max.bytes: got {limits[topic]}, expected at least {LETTER_BYTES}: "
            "a dead letter may take so many without its record"
        )
    raise StartError(
        f"dead_letter.topic: max.message.bytes of topic {topic} is {limits[topic]}, expected at least "
        f"{LETTER_BYTES}: a dead letter may take so many without its record"
    )


def by_hand(bootstrap: str, topic: str) -> str:
    """The command that makes a control topic."""
    return (
        f"kafka-topics.sh --bootstrap-server {bootstrap} --create --topic {topic} --partitions 1 "
        "--config cleanup.policy=compact"
    )


def check_control(topic: str, partitions: Mapping[str, int], rules: Rules, bootstrap: str) -> None:
    """Refuse a control topic without an order, or one that forgets.

    Raises:
        StartError: it has several partitions, or old records of it are deleted.
    """
    if partitions[topic] != 1:
        raise StartError(
            f"control.topic: topic {topic} has {partitions[topic]} partitions, expected one, because the first decision "
            f"counts; make another one by {by_hand(bootstrap, f'{topic}-1')}"
        )
    if rules.policy not in ("", "compact"):
        raise StartError(
            f"control.topic: topic {topic} has cleanup.policy={rules.policy}, expected compact, because a decision must "
            f"never be deleted; set it by kafka-configs.sh --bootstrap-server {bootstrap} --alter --topic {topic} "
            "--add-config cleanup.policy=compact"
        )


def _times_of(config: Mapping[str, str]) -> Times:
    """What a topic's configuration says of timestamps; before Kafka 3.6 one limit counted in both directions."""
    both = int(config.get("message.timestamp.difference.max.ms", FOREVER_MS))
    return Times(
        min(both, int(config.get("message.timestamp.before.max.ms", FOREVER_MS))),
        min(both, int(config.get("message.timestamp.after.max.ms", DEFAULT_AFTER_MS))),
        config.get("message.timestamp.type") == "LogAppendTime",
    )
