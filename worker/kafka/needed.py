"""The topics that a configuration needs: which are there, and how those that are missing are made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.errors import ConfigError, StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.clusters import clusters_of
from worker.kafka.properties import check_properties
from worker.kafka.uses import Use, uses_of
from worker.topics import is_pattern

if TYPE_CHECKING:
    from worker.settings import Settings

ALONE = ("metrics.topic", "control.topic")
"""Settings whose topics have one partition: little is written to them, and readers want it in one order."""


@dataclass(frozen=True)
class Needed:
    """One topic that the worker needs."""

    uses: tuple[Use, ...]
    """What it is used for; at least one."""
    partitions: int | None = None
    """None: it is not there, or nobody has looked."""

    @property
    def topic(self) -> str:
        return self.uses[0].topic

    @property
    def fields(self) -> list[str]:
        """The settings that name it."""
        return list(dict.fromkeys(use.field for use in self.uses))

    @property
    def cluster(self) -> str:
        """The setting that names its cluster; empty: that of ``kafka``."""
        return self.uses[0].cluster

    @property
    def use(self) -> str:
        """``read``, ``written`` or both."""
        ways = {use.written for use in self.uses}
        return " and ".join(word for word, way in (("read", False), ("written", True)) if way in ways)

    @property
    def control(self) -> bool:
        return any(use.control for use in self.uses)

    @property
    def alone(self) -> bool:
        """Whether it is made with one partition, whatever the others have."""
        return all(field in ALONE for field in self.fields)


def needed(settings: Settings) -> list[Needed]:
    """Every topic of the settings once, in their order. Patterns are left out: nobody can say what they stand for."""
    found: dict[tuple[str, str], list[Use]] = {}
    for use in (*uses_of(settings), *_of_labels(settings)):
        if not is_pattern(use.topic):
            found.setdefault((use.cluster, use.topic), []).append(use)
    return [Needed(tuple(uses)) for uses in found.values()]


def _of_labels(settings: Settings) -> Iterator[Use]:
    """What ``streaminfer score`` reads besides."""
    if settings.labels is not None:
        yield Use(settings.labels.topic, "labels.topic", written=False)


def looked_up(settings: Settings) -> tuple[list[Needed], bool]:
    """The same with the partitions that each has on the broker, and whether that is the embedded one.

    Raises:
        ConfigError: a client property is wrong.
        StartError: the broker does not answer or refuses us.
    """
    counts: dict[tuple[str, str], int] = {}
    any_embedded = False
    for section, client in clients_of(settings).items():
        check_properties(client.kafka, section or "kafka")
        with Admin(client, section or "kafka") as admin:
            cluster = admin.cluster()
        counts |= {(section, n): len(t.partitions) for n, t in cluster.topics.items() if t.error is None}
        any_embedded = any_embedded or str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER)
    topics = needed(settings)
    return [replace(each, partitions=counts.get((each.cluster, each.topic))) for each in topics], any_embedded


def clients_of(settings: Settings) -> dict[str, Settings]:
    """The settings with the client properties of each cluster, by the setting that names it; empty: ``kafka``."""
    return {"": settings} | {each.section: each.settings for each in clusters_of(settings)}


def partitions_of(topics: Sequence[Needed], asked: int | None) -> int:
    """How many partitions the missing topics get: what is asked for, ``output.create``, or as many as the inputs have.

    Raises:
        ConfigError: nothing says how many.
    """
    if asked is not None:
        return asked
    for each in topics:
        for use in each.uses:
            if use.create is not None:
                return use.create.partitions
    inputs = [each.partitions for each in topics if not all(use.written for use in each.uses)]
    there = [count for count in inputs if count is not None]
    if not there:
        raise ConfigError(
            "--partitions: expected a number, because no input topic is there whose number could be taken"
        )
    return max(there)


def create(settings: Settings, topics: Iterable[Needed], partitions: int, replication: int) -> None:
    """Make topics on the broker, and wait until it knows them.

    Raises:
        StartError: it cannot make one, such as for a missing right.
    """
    from worker.settings import CreateSettings

    made: dict[str, list[Use]] = {}
    for each in topics:
        wanted = CreateSettings(partitions=1 if each.alone else partitions, replication=replication)
        made.setdefault(each.cluster, []).append(replace(each.uses[0], control=each.control, create=wanted))
    clients = clients_of(settings)
    for section, uses in made.items():
        with Admin(clients[section], section or "kafka") as admin:
            admin.create(uses)


def commands(
    settings: Settings, topics: Iterable[Needed], partitions: int | None, replication: int
) -> Iterator[str]:
    """The commands of Kafka's own tool that make these topics where they are missing.

    Args:
        partitions: None = the broker's default.
        replication: -1 = the broker's default.
    """
    clients = clients_of(settings)
    for each in topics:
        client = clients[each.cluster]
        words = ["kafka-topics.sh", "--bootstrap-server", client.kafka["bootstrap.servers"]]
        if client.kafka.get("security.protocol", "plaintext").strip().lower() != "plaintext":
            words += ["--command-config", "admin.properties"]
        count = 1 if each.alone else partitions
        options = ["--create", "--if-not-exists", "--topic", each.topic]
        options += ["--partitions", str(count)] if count is not None else []
        options += ["--replication-factor", str(replication)] if replication > 0 else []
        options += ["--config", "cleanup.policy=compact"] if each.control else []
        yield shlex.join(words + options)


def refuse_embedded(settings: Settings) -> None:
    """The embedded broker makes topics when it starts.

    Raises:
        StartError: always.
    """
    raise StartError(
        f"the embedded broker at {settings.kafka['bootstrap.servers']} makes topics only when it starts; expected "
        "streaminfer broker --config CONFIG, which makes those of a configuration"
    )
