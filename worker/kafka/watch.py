"""Whether the topics in use are still there, and the input topics still those of the start.

librdkafka waits for a deleted topic without an end. A topic that was made anew under the same name it reads from the
position that it had in the old one: the records before that position would be skipped without a word.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from worker.errors import ClientFatal
from worker.kafka.admin import DESCRIBE_TIMEOUT_S
from worker.kafka.properties import admin_properties, build
from worker.kafka.uses import uses_of
from worker.topics import is_pattern

if TYPE_CHECKING:
    from worker.kafka.clusters import Cluster
    from worker.settings import Settings

WATCH_S = 2.0
"""Between two questions. A deleted topic is to be noticed within 10 s, even if an answer takes its time."""
MISSES_MAX = 3
"""Answers in a row that must not know a topic: a broker that has just started may not know it yet."""


class TopicWatch:
    """Asks now and then whether the topics are still there; used by one thread, never waits for the broker.

    Args:
        ids: topic -> its id at start, where the broker told it.
        followed: topics that are read now. One that only a pattern names may be deleted.
        cluster: look at the topics of this other cluster instead.
        every_s: between two questions.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        ids: Mapping[str, str] | None = None,
        followed: Callable[[], Iterable[str]] = tuple,
        cluster: Cluster | None = None,
        every_s: float = WATCH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        section = cluster.section if cluster is not None else ""
        uses = [use for use in uses_of(settings) if use.cluster == section]
        self.away = ""
        """The setting that names the cluster while no broker of it answers; else empty."""
        self._section = section or "kafka"
        self._inputs = {use.topic: use.field for use in uses if not use.written and not is_pattern(use.topic)}
        self._outputs = {
            use.topic: use.field
            for use in uses
            if use.written and use.topic != settings.metrics.topic  # records of it may be lost
        }
        self._client = build(AdminClient, admin_properties(cluster.settings if cluster else settings))
        self._every_s = every_s
        self._clock = clock
        self._next_s = clock()
        self._asked: dict[str, Future[Any]] = {}
        self._ids = {topic: found for topic, found in (ids or {}).items() if topic in self._inputs}
        self._followed = followed
        self._missed: Counter[str] = Counter()

    def look(self) -> None:
        """Take what was answered, and ask again when it is time.

        Raises:
            ClientFatal: a topic is gone, or an input topic is another one.
        """
        if self._asked and all(answer.done() for answer in self._asked.values()):
            answers, self._asked = self._asked, {}
            self.away = self._section if all(map(_unanswered, answers.values())) else ""
            for topic, answer in answers.items():
                self._take(topic, answer)
        if not self._asked and self._clock() >= self._next_s:
            self._next_s = self._clock() + self._every_s
            followed = {*self._followed()}.difference(self._outputs)
            for gone in self._ids.keys() - followed - self._inputs.keys():
                del self._ids[gone]  # if it comes back, it may be another one
            topics = TopicCollection([*dict.fromkeys((*self._inputs, *self._outputs, *followed))])
            self._asked = self._client.describe_topics(topics, request_timeout=DESCRIBE_TIMEOUT_S)

    def _take(self, topic: str, answer: Future[Any]) -> None:
        try:
            found = str(answer.result(timeout=0).topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                return  # an outage, or no right to ask: the clients report those themselves
            if topic not in self._inputs and topic not in self._outputs:
                self._ids.pop(topic, None)
                return
            self._missed[topic] += 1
            if self._missed[topic] >= MISSES_MAX:
                field = self._inputs.get(topic) or self._outputs[topic]
                raise ClientFatal(f"{field}: topic {topic} does not exist any more") from None
            return
        del self._missed[topic]
        if topic not in self._outputs and found != self._ids.setdefault(topic, found):
            raise made_anew(self._inputs.get(topic, "input.topics"), topic)


def _unanswered(answer: Future[Any]) -> bool:
    """Whether the client failed without an answer of any broker."""
    failure = answer.exception(timeout=0)
    return isinstance(failure, KafkaException) and failure.args[0].code() < 0


def made_anew(field: str, topic: str) -> ClientFatal:
    """The error for an input topic that is not the one of the start."""
    return ClientFatal(
        f"{field}: topic {topic} was deleted and made anew; positions in the old one mean nothing in it, so records "
        "at its beginning may not have been read"
    )


def is_same_topic(properties: Mapping[str, Any], topic: str, known: str | None) -> bool:
    """Whether a topic still has the id that it had at start; waits for the broker's answer.

    Args:
        properties: of the client that asks.
        known: the id at start; None: the broker did not tell it, and the topic counts as the same.

    Returns:
        False also if the topic does not exist. True if the broker does not answer.
    """
    if known is None:
        return True
    client = build(AdminClient, {**properties})
    answers = client.describe_topics(TopicCollection([topic]), request_timeout=DESCRIBE_TIMEOUT_S)
    wait(answers.values(), timeout=DESCRIBE_TIMEOUT_S + 1)
    try:
        return str(answers[topic].result(timeout=0).topic_id) == known
    except KafkaException as error:
        return bool(error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART)
    except TimeoutError:
        return True
