"""Checks the worker's topics on the broker: existence, rights, partitions, and limits on sizes and timestamps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka.admin import ClusterMetadata  # type: ignore[attr-defined]  # re-exported without saying so

from worker.errors import Mistake, NotReady, StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.properties import check_properties, client_limit
from worker.kafka.rights import Rights, find_rights
from worker.kafka.rules import Rules, Times, by_hand, check_control, check_letters_fit, compacted
from worker.kafka.share_group import describe_group
from worker.kafka.uses import Use, expanded, uses_of

if TYPE_CHECKING:
    from worker.settings import Settings


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
    check_properties(settings.kafka)
    with Admin(settings) as admin:
        cluster = admin.cluster()
        uses = [*expanded(uses_of(settings), cluster.topics)]
        embedded = str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
        missing = [use for use in uses if use.topic not in cluster.topics]
        planned: dict[str, int] = {}
        if missing and not embedded:  # the embedded broker creates the topics of its own command line only
            if make:
                admin.create(missing)
                cluster = admin.cluster()
            else:
                planned = {use.topic: use.partitions for use in missing if use.create is not None}
        rights = Rights() if embedded else find_rights(admin, uses, settings.kafka["group.id"])
        wrong = {**rights.missing}
        partitions = _partitions(uses, cluster, planned, admin.bootstrap, wrong)
        if wrong:
            raise NotReady.of([*wrong.values()])
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
            f"cluster {cluster.cluster_id}, {len(cluster.brokers)} node{'s' * (len(cluster.brokers) != 1)}",
            embedded,
            partitions,
            limits,
            {topic: rules[topic].times for topic in there if topic in rules} if not embedded else {},
            rights.ids,
            frozenset(planned),
            compacted(rules),
            rights.told,
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


def _check_partitions(settings: Settings, partitions: dict[str, int]) -> None:
    for pipeline in settings.pipelines.values():
        if pipeline.output.partition != "input":
            continue
        output = pipeline.output.topic
        for topic in (topic for topic in partitions if topic in pipeline.input.names):
            if partitions[output] < partitions[topic]:
                raise StartError(
                    f"output.partition: input needs at least as many partitions in {output} "
                    f"({partitions[output]}) as in {topic} ({partitions[topic]})"
                )
