"""Checks the worker's topics on the broker: existence, rights, partitions, and limits on sizes and timestamps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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
from worker.kafka.properties import (
    DEFAULT_TOPIC_LIMIT,
    Client,
    admin_properties,
    build,
    check_properties,
    client_limit,
)
from worker.kafka.rules import Rules, Times, by_hand, check_control, check_letters_fit, compacted, rules_of

if TYPE_CHECKING:
    from worker.settings import CreateSettings, Settings

CONNECT_TIMEOUT_S = 8.0
CREATE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 3.0
EMBEDDED_CLUSTER = "mockCluster"
"""The prefix of the embedded broker's cluster id."""
HOPELESS = {
    KafkaError._AUTHENTICATION: "authentication failed",
    KafkaError._SSL: "TLS failed",
}
"""Client errors that waiting does not cure."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Topics:
    """The worker's topics as the broker described them at start."""

    broker: str
    """The broker in one phrase: cluster id and number of nodes."""
    embedded: bool
    """Whether it is the embedded broker (:mod:`worker.kafka.broker`)."""
    partitions: dict[str, int]
    """Topic -> number of partitions, for every topic the settings name."""
    limits: dict[str, int]
    """Topic written to -> largest record, in bytes, that it accepts from this client: the smaller of the topic's
    ``max.message.bytes`` and the client's ``message.max.bytes``."""
    times: Mapping[str, Times] = field(default_factory=dict)
    """Output topic -> the timestamps it accepts; the embedded broker accepts any."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Topic -> its id, if the broker gave one. A topic that is deleted and recreated gets a new id."""
    planned: frozenset[str] = frozenset()
    """Topics that do not exist yet and that ``run`` will create."""
    compacted: frozenset[str] = frozenset()
    """Topics written to whose ``cleanup.policy`` includes ``compact``: they refuse records without a key."""

    def keeping(self, topic: str) -> Callable[[int], bool]:
        """Whether the topic accepts and keeps a record of a timestamp (Unix milliseconds)."""
        times = self.times.get(topic)
        return lambda timestamp_ms: times is None or times.keeps(timestamp_ms, time.time() * 1000)

    def describe(self) -> str:
        return ", ".join(
            f"{topic} ({count} partitions{', to be created' * (topic in self.planned)})"
            for topic, count in self.partitions.items()
        )

    def describe_limits(self) -> str:
        return ", ".join(
            f"{topic} takes {limit} bytes"
            + " (assumed until it is created)" * (topic in self.planned)
            + ", only with a key (it is compacted)" * (topic in self.compacted)
            for topic, limit in self.limits.items()
        )


@dataclass(frozen=True)
class Use:
    """One topic and what it is used for."""

    topic: str
    field: str
    """The setting that names the topic; empty if the command line names it."""
    written: bool
    create: CreateSettings | None = None
    control: bool = False
    """It has one partition and is compacted."""

    @property
    def partitions(self) -> int:
        """Of the topic when it is created."""
        assert self.create is not None
        return 1 if self.control else self.create.partitions

    @property
    def prefix(self) -> str:
        """The beginning of a message about the topic."""
        return f"{self.field}: " if self.field else ""


def check_broker(settings: Settings) -> list[tuple[str, str]]:
    """What the broker says of the topics: (name of the check, sentence).

    Raises:
        WorkerError: unreachable, not authorised, or a topic is missing.
    """
    topics = open_topics(settings, make=False)
    found = [("broker", topics.broker), ("topics", topics.describe()), ("limits", topics.describe_limits())]
    if settings.control is not None:
        found.append(("control", f"{settings.control.topic}: one partition, compacted"))
    return found


def open_topics(settings: Settings, make: bool = True) -> Topics:
    """Check every topic of the settings on the broker; create missing topics that have a ``create`` section.

    Args:
        settings: the worker's settings.
        make: create missing topics; if False, change nothing and report which topics would be created.

    Raises:
        ConfigError: a client property is unknown or wrong.
        StartError: the broker cannot be reached or refuses us; a topic is missing or has too few partitions.
    """
    check_properties(settings.kafka)
    uses = list(uses_of(settings))
    with Admin(settings) as admin:
        cluster = admin.cluster()
        embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
        missing = [use for use in uses if use.topic not in cluster.topics]
        planned: dict[str, int] = {}
        if missing and not embedded:  # the embedded broker creates the topics of its own command line only
            if make:
                admin.create(missing)
                cluster = admin.cluster()
            else:
                planned = {use.topic: use.partitions for use in missing if use.create is not None}
        ids = {} if embedded else check_rights(admin, uses, settings.kafka["group.id"])
        partitions: dict[str, int] = {}
        for use in uses:
            found = cluster.topics.get(use.topic)
            if found is None and use.topic in planned:
                partitions[use.topic] = planned[use.topic]
                continue
            if found is None:
                how = f"; make it by {by_hand(admin.bootstrap, use.topic)}" if use.control else ""
                raise StartError(f"{use.field}: topic {use.topic} does not exist on {admin.bootstrap}{how}")
            if found.error is not None:
                raise StartError(f"{use.field}: topic {use.topic}: {found.error.str()}")
            partitions[use.topic] = len(found.partitions)
        _check_partitions(settings, partitions)
        written = list(dict.fromkeys(use.topic for use in uses if use.written))
        rules = dict.fromkeys(written, Rules())
        there = [topic for topic in written if topic not in planned]
        if there and not embedded:
            rules |= admin.rules(there)
        limits = {topic: min(each.max_bytes, client_limit(settings)) for topic, each in rules.items()}
        check_letters_fit(settings, rules, limits)
        if settings.control is not None:
            check_control(
                settings.control.topic, partitions, rules.pop(settings.control.topic), admin.bootstrap
            )
        return Topics(
            f"cluster {cluster.cluster_id}, {len(cluster.brokers)} node(s)",
            embedded,
            partitions,
            limits,
            {topic: rules[topic].times for topic in there if topic in rules} if not embedded else {},
            ids,
            frozenset(planned),
            compacted(rules),
        )


def uses_of(settings: Settings) -> Iterator[Use]:
    """Every topic that the worker reads or writes, with the setting that names it."""
    alone = len(settings.pipelines) == 1
    create = None
    for name, pipeline in settings.pipelines.items():
        prefix = "" if alone else f"pipelines.{name}."
        for topic in pipeline.input.topics:
            yield Use(topic, f"{prefix}input.topics", written=False)
        create = create or pipeline.output.create
        yield Use(pipeline.output.topic, f"{prefix}output.topic", True, pipeline.output.create)
        if pipeline.rollout is not None and pipeline.rollout.topic is not None:
            yield Use(pipeline.rollout.topic, f"{prefix}rollout.topic", True, pipeline.output.create)
    yield Use(settings.dead_letter.topic, "dead_letter.topic", True, create)
    if settings.metrics.topic:
        yield Use(settings.metrics.topic, "metrics.topic", True, create)
    if settings.control is not None:
        for written in (False, True):
            yield Use(settings.control.topic, "control.topic", written, create, control=True)


def check_rights(admin: Admin, uses: Sequence[Use], group: str | None = None) -> dict[str, str]:
    """Report at start a missing right that the broker would report only when records are already in flight.

    A broker may not list the client's rights (Kafka before 2.3, or a late answer). Then nothing is refused.

    Args:
        group: the group whose offsets are committed, if any.

    Returns:
        Ids of the topics, as far as the broker gave them.

    Raises:
        StartError: a right is missing.
    """
    rights, ids = admin.describe(list(dict.fromkeys(use.topic for use in uses)))
    for use in uses:
        needed, verb = (AclOperation.WRITE, "write to") if use.written else (AclOperation.READ, "read")
        if needed not in rights.get(use.topic, (needed,)):
            raise StartError(
                f"{use.prefix}not authorised to {verb} topic {use.topic}; expected the right {needed.name}"
            )
    if group is not None and AclOperation.READ not in admin.group_rights(group):
        raise StartError(f"kafka.group.id: not authorised for group {group}; expected the right READ")
    return ids


def _check_partitions(settings: Settings, partitions: dict[str, int]) -> None:
    for pipeline in settings.pipelines.values():
        if pipeline.output.partition != "input":
            continue
        output = pipeline.output.topic
        for topic in pipeline.input.topics:
            if partitions[output] < partitions[topic]:
                raise StartError(
                    f"output.partition: input needs at least as many partitions in {output} "
                    f"({partitions[output]}) as in {topic} ({partitions[topic]})"
                )


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

    def __init__(self, client: Client) -> None:
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
                        f"kafka: {HOPELESS[refused]} ({self.bootstrap}): {self._errors[refused]}"
                    ) from None
                if time.monotonic() > deadline:
                    said = next(reversed(self._errors.values()), error.args[0].str())
                    raise StartError(
                        f"kafka.bootstrap.servers: no broker answers at {self.bootstrap}: {said}"
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
                    field = wanted[topic][0].field
                    raise StartError(
                        f"{field}: topic {topic} cannot be created: {error.args[0].str()}"
                    ) from None
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
                "max.message.bytes, cleanup.policy and timestamp limits of topics cannot be read; %d and Kafka's "
                "defaults are assumed (%s)",
                DEFAULT_TOPIC_LIMIT,
                "; ".join(unknown),
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

    def group_rights(self, group: str) -> frozenset[AclOperation]:
        """The operations that this client may perform on a consumer group; READ if the broker does not say."""
        answers = self._client.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=DESCRIBE_TIMEOUT_S
        )
        rights = _rights(answers, KafkaError.GROUP_AUTHORIZATION_FAILED)
        return rights.get(group, frozenset((AclOperation.READ,)))

    def _on_error(self, error: Any) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # other errors give the reason for this one
            self._errors.pop(error.code(), None)
            self._errors[error.code()] = error.str()


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
