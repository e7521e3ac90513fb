"""Checks the worker's topics on the broker: existence, rights, partitions, and limits on sizes and timestamps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka.admin import ClusterMetadata  # type: ignore[attr-defined]  # re-exported without saying so

from worker.errors import ConfigError, Mistake, NotReady, StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.clusters import clusters_of
from worker.kafka.properties import check_properties, client_limit
from worker.kafka.rights import Rights, find_rights
from worker.kafka.rules import Rules, Times, by_hand, check_control, check_letters_fit, compacted
from worker.kafka.share_group import describe_group
from worker.kafka.uses import Use, expanded, uses_of

if TYPE_CHECKING:
    from worker.settings import PipelineSettings, Settings


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
    rights_told: bool = False
    """Whether the broker says what this client may do."""
    rules: Mapping[str, Rules] = field(default_factory=dict)
    """Topic written to -> what it takes."""

    def keeping(self, topic: str) -> Callable[[int], bool]:
        """Whether the topic accepts and keeps a record of a timestamp (Unix milliseconds)."""
        times = self.times.get(topic)
        return lambda timestamp_ms: times is None or times.keeps(timestamp_ms, time.time() * 1000)

    def describe(self) -> str:
        return ", ".join(
            f"{topic} ({count} partition{'s' * (count != 1)}{', to be created' * (topic in self.planned)})"
            for topic, count in self.partitions.items()
        )

    def describe_limits(self) -> str:
        return ", ".join(
            f"{topic} takes {limit} bytes"
            + " (assumed until it is created)" * (topic in self.planned)
            + ", only with a key (it is compacted)" * (topic in self.compacted)
            for topic, limit in self.limits.items()
        )


def check_broker(settings: Settings) -> list[tuple[str, str]]:
    """What the broker says of the topics: (name of the check, sentence).

    Raises:
        WorkerError: unreachable, not authorised, or a topic is missing.
    """
    topics = open_topics(settings, make=False)
    found = [("broker", topics.broker), ("topics", topics.describe()), ("limits", topics.describe_limits())]
    for section, there in open_elsewhere(settings, topics, make=False).items():
        found.append(("results", f"{section}: {there.broker}; {there.describe()}; {there.describe_limits()}"))
    if not topics.embedded:
        told = (
            "READ and WRITE where the worker needs them" if topics.rights_told else "the broker does not tell"
        )
        found.append(("rights", told))
    if settings.control is not None:
        found.append(("control", f"{settings.control.topic}: one partition, compacted"))
    if settings.delivery == "queue":
        found.append(("queue", describe_group(settings, topics.embedded)))
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
    uses = [use for use in uses_of(settings) if not use.cluster]
    topics = _inspect(settings, "kafka", uses, make, settings.kafka["group.id"])
    _check_partitions(topics.partitions, topics.partitions, settings.pipelines.values())
    check_letters_fit(settings, topics.rules, topics.limits)
    if settings.control is not None:
        name = settings.control.topic
        check_control(name, topics.partitions, topics.rules[name], settings.kafka["bootstrap.servers"])
    return topics


def open_elsewhere(settings: Settings, home: Topics, make: bool = True) -> dict[str, Topics]:
    """As :func:`open_topics`, for the topics of ``output.kafka``: by the setting that names their cluster.

    Args:
        home: the topics of the input's cluster.

    Raises:
        ConfigError: a client property is unknown or wrong; results would be read again.
        StartError: as there.
    """
    found = {}
    for each in clusters_of(settings):
        uses = [use for use in uses_of(settings) if use.cluster == each.section]
        found[each.section] = topics = _inspect(each.settings, each.section, uses, make, None)
        theirs = [
            pipeline for pipeline in settings.pipelines.values() if pipeline.output.topic in each.topics
        ]
        _check_partitions(home.partitions, topics.partitions, theirs, each.section)
        read = [
            topic for topic in each.topics if any(topic in p.input.names for p in settings.pipelines.values())
        ]
        if read and topics.broker.partition(",")[0] == home.broker.partition(",")[0]:
            raise ConfigError(
                f"{each.section}: is the cluster of kafka under another address, and the topic {read[0]} is read there; "
                "expected another topic"
            )
    return found


def _inspect(settings: Settings, section: str, uses: Sequence[Use], make: bool, group: str | None) -> Topics:
    """What one cluster says of its topics."""
    check_properties(settings.kafka, section)
    with Admin(settings, section) as admin:
        cluster = admin.cluster()
        uses = [*expanded(uses, cluster.topics)]
        embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
        missing = [use for use in uses if use.topic not in cluster.topics]
        planned: dict[str, int] = {}
        if missing and not embedded:  # the embedded broker creates the topics of its own command line only
            if make:
                admin.create(missing)
                cluster = admin.cluster()
            else:
                planned = {use.topic: use.partitions for use in missing if use.create is not None}
        rights = Rights() if embedded else find_rights(admin, uses, group)
        wrong = {**rights.missing}
        partitions = _partitions(uses, cluster, planned, admin.bootstrap, wrong)
        if wrong:
            raise NotReady.of([*wrong.values()])
        written = list(dict.fromkeys(use.topic for use in uses if use.written))
        rules = dict.fromkeys(written, Rules())
        there = [topic for topic in written if topic not in planned]
        if there and not embedded:
            rules |= admin.rules(there)
        control = {use.topic for use in uses if use.control}
        answered = {topic: each for topic, each in rules.items() if topic not in control}
        return Topics(
            f"cluster {cluster.cluster_id}, {len(cluster.brokers)} node{'s' * (len(cluster.brokers) != 1)}",
            embedded,
            partitions,
            {topic: min(each.max_bytes, client_limit(settings)) for topic, each in rules.items()},
            {topic: answered[topic].times for topic in there if topic in answered} if not embedded else {},
            rights.ids,
            frozenset(planned),
            compacted(answered),
            rights.told,
            rules,
        )


def _partitions(
    uses: Sequence[Use],
    cluster: ClusterMetadata,
    planned: Mapping[str, int],
    bootstrap: str,
    wrong: dict[str, Mistake],
) -> dict[str, int]:
    """Partitions of each topic; ``wrong`` gets those that are not there, or not as they should be."""
    partitions: dict[str, int] = {}
    for use in uses:
        found = cluster.topics.get(use.topic)
        if found is None and use.topic in planned:
            partitions[use.topic] = planned[use.topic]
        elif found is None:
            how = f"; make it by {by_hand(bootstrap, use.topic)}" if use.control else ""
            sentence = f"{use.field}: topic {use.topic} does not exist on {bootstrap}{how}"
            wrong.setdefault(use.topic, Mistake(sentence))
        elif found.error is not None:
            wrong.setdefault(use.topic, Mistake(f"{use.field}: topic {use.topic}: {found.error.str()}"))
        else:
            partitions[use.topic] = len(found.partitions)
    return partitions


def _check_partitions(
    read: Mapping[str, int],
    written: Mapping[str, int],
    pipelines: Iterable[PipelineSettings],
    section: str = "",
) -> None:
    """Refuse ``output.partition: input`` where the results' topic has fewer partitions.

    Args:
        read: partitions of input topics. written: those of the topics of one cluster.
        section: the setting that names that cluster; empty: that of ``kafka``.
    """
    for pipeline in pipelines:
        if pipeline.output.partition != "input" or (pipeline.output.kafka is not None) != bool(section):
            continue
        output = pipeline.output.topic
        for topic in (topic for topic in read if topic in pipeline.input.names):
            if written[output] < read[topic]:
                raise StartError(
                    f"output.partition: input needs at least as many partitions in {output} "
                    f"({written[output]}) as in {topic} ({read[topic]})"
                )
