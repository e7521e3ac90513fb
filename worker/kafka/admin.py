"""A short-lived administration client, which asks a cluster about its topics, groups and rights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AclOperation,
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from worker.errors import StartError
from worker.kafka.properties import DEFAULT_TOPIC_LIMIT, Client, admin_properties, build
from worker.kafka.rules import Rules, rules_of
from worker.kafka.uses import Use

CONNECT_TIMEOUT_S = 8.0
CREATE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 3.0
EMBEDDED_CLUSTER = "mockCluster"
"""The prefix of the embedded broker's cluster id."""
NOT_ALLOWED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
HOPELESS = {
    KafkaError._AUTHENTICATION: "authentication failed",
    KafkaError._SSL: "TLS failed",
}
"""Client errors that waiting does not cure."""

log = structlog.get_logger(module=__name__)


class Descriptions(NamedTuple):
    """The broker's answer about some topics."""

    rights: dict[str, frozenset[AclOperation]]
    """Topic -> operations that this client may perform."""
    ids: dict[str, str]


class Admin:
    """A short-lived administration client, which asks a cluster about itself; a context manager.

    Raises:
        ConfigError: librdkafka refuses the properties.
    """

    def __init__(self, client: Client, section: str = "kafka") -> None:
        self._section = section
        self.bootstrap = client.kafka.get("bootstrap.servers", "")
        self._errors: dict[int, str] = {}
        """Last message of librdkafka for each error code, oldest first."""
        self._client = build(AdminClient, {**admin_properties(client), "error_cb": self._on_error})

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.poll(0)  # hands out the client's last log lines

    def cluster(self) -> ClusterMetadata:
        """The metadata of the whole cluster, because a request for one named topic could create that topic.

        Raises:
            StartError: no broker answered in time, or one refused us.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                return self._client.list_topics(timeout=1.0)
            except KafkaException as error:
                self._client.poll(0)
                refused = next((code for code in HOPELESS if code in self._errors), None)
                if refused is not None:
                    raise StartError(
                        f"{self._section}: {HOPELESS[refused]} ({self.bootstrap}): {self._errors[refused]}"
                    ) from None
                if time.monotonic() > deadline:
                    said = next(reversed(self._errors.values()), error.args[0].str())
                    raise StartError(
                        f"{self._section}.bootstrap.servers: no broker answers at {self.bootstrap}: {said}"
                    ) from None

    def create(self, uses: list[Use]) -> None:
        """Create the missing topics that have a ``create`` section."""
        wanted: dict[str, tuple[Use, NewTopic]] = {}
        for use in uses:
            if use.create is not None and use.topic not in wanted:
                config = {"cleanup.policy": "compact"} if use.control else {}
                made = NewTopic(use.topic, use.partitions, use.create.replication, config=config)
                wanted[use.topic] = (use, made)
        if not wanted:
            return
        answers = self._client.create_topics(
            [made for _, made in wanted.values()], request_timeout=CREATE_TIMEOUT_S
        )
        for topic, answer in answers.items():
            try:
                answer.result()
            except KafkaException as error:
                if (
                    error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS
                ):  # another replica created it first
                    raise StartError(_not_created(wanted[topic][0], error.args[0])) from None
        self._await_topics(list(wanted))

    def _await_topics(self, topics: list[str]) -> None:
        """Wait until every broker knows the topics: a new topic reaches the brokers after a short delay."""
        deadline = time.monotonic() + CREATE_TIMEOUT_S
        while time.monotonic() < deadline:
            known = self.cluster().topics
            if all(topic in known for topic in topics):
                return
            time.sleep(0.05)

    def rules(self, topics: list[str]) -> dict[str, Rules]:
        """The sizes, keys and timestamps that each topic accepts; Kafka's defaults if the broker does not say."""
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        answers = self._client.describe_configs(resources, request_timeout=DESCRIBE_TIMEOUT_S)
        wait(answers.values(), timeout=DESCRIBE_TIMEOUT_S + 1)
        found = dict.fromkeys(topics, Rules())
        unknown: list[str] = []
        for resource, answer in answers.items():
            try:
                config = {name: entry.value for name, entry in answer.result(timeout=0).items()}
                found[resource.name] = rules_of(config)
            except (KafkaException, TimeoutError, KeyError) as error:
                unknown.append(f"{resource.name}: {error}")
        if unknown:
            log.warning(
                "limits of topics cannot be read: Kafka's defaults are assumed",
                max_message_bytes=DEFAULT_TOPIC_LIMIT,
                topics=unknown,
            )
        return found

    def describe(self, topics: list[str]) -> Descriptions:
        """The ids of the topics, and the operations that this client may perform on each.

        If the client may not see a topic, the topic has no rights here, whether or not it exists. Topics without an
        answer are left out.
        """
        answers = self._client.describe_topics(
            TopicCollection(topics), include_authorized_operations=True, request_timeout=DESCRIBE_TIMEOUT_S
        )
        rights = _rights(answers, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        told = [topic for topic, answer in answers.items() if answer.done() and answer.exception() is None]
        return Descriptions(rights, {topic: str(answers[topic].result().topic_id) for topic in told})

    def group_rights(self, group: str) -> frozenset[AclOperation] | None:
        """The operations that this client may perform on a consumer group; None if the broker does not say."""
        answers = self._client.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=DESCRIBE_TIMEOUT_S
        )
        return _rights(answers, KafkaError.GROUP_AUTHORIZATION_FAILED).get(group)

    def may_create(self, topic: str) -> bool | None:
        """Whether this client may create a topic of this name; None if the broker does not say. Nothing is created."""
        made = NewTopic(topic, 1)
        asked = self._client.create_topics([made], validate_only=True, request_timeout=DESCRIBE_TIMEOUT_S)
        wait(asked.values(), timeout=DESCRIBE_TIMEOUT_S + 1)
        try:
            asked[topic].result(timeout=0)
        except KafkaException as error:
            code = error.args[0].code()
            return False if code in NOT_ALLOWED else code == KafkaError.TOPIC_ALREADY_EXISTS or None
        except TimeoutError:
            return None
        return True

    def _on_error(self, error: Any) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # other errors give the reason for this one
            self._errors.pop(error.code(), None)
            self._errors[error.code()] = error.str()


def _not_created(use: Use, error: KafkaError) -> str:
    if error.code() in NOT_ALLOWED:
        return f"{use.field}: not authorised to create topic {use.topic}; expected the right CREATE"
    return f"{use.field}: topic {use.topic} cannot be created: {error.str()}"


def _rights(answers: Mapping[str, Future[Any]], refusal: int) -> dict[str, frozenset[AclOperation]]:
    """The operations that each description allows; none if the broker refused it with the error code ``refusal``."""
    wait(answers.values(), timeout=DESCRIBE_TIMEOUT_S + 1)
    found: dict[str, frozenset[AclOperation]] = {}
    for name, answer in answers.items():
        try:
            operations = answer.result(timeout=0).authorized_operations
        except KafkaException as error:
            if error.args[0].code() == refusal:
                found[name] = frozenset()
        except TimeoutError:
            continue
        else:
            # whoever may describe has at least DESCRIBE: an empty answer means that the broker is too old
            if operations:
                found[name] = frozenset(operations)
    return found
