"""The least rights that a configuration needs on its broker, the commands that grant them, and which are there.

Kafka's rule: READ, WRITE, DELETE and ALTER on a resource imply DESCRIBE on it. The names are those of ``kafka-acls.sh``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]  # re-exported without saying so

from worker.errors import StartError
from worker.kafka.admin import EMBEDDED_CLUSTER, Admin
from worker.kafka.properties import Client, build, producer_properties
from worker.kafka.uses import uses_of
from worker.settings.label_checks import scored_pipelines
from worker.topics import is_pattern, prefix

if TYPE_CHECKING:
    from worker.settings import Settings

INIT_TIMEOUT_S = 8.0
"""Longest wait for the answer about a transactional id."""
UNKNOWN_PRINCIPAL = "User:PRINCIPAL"
"""Stands where only the broker knows who the client is."""


@dataclass(frozen=True)
class Right:
    """One operation on one resource."""

    operation: str
    """As Kafka's protocol calls it."""
    kind: str
    """``topic``, ``group`` or ``transactional-id``, as the options of ``kafka-acls.sh`` are called."""
    name: str
    field: str
    """The setting that asks for it."""
    prefixed: bool = False
    """It is needed for every name that begins with this one."""
    optional: str = ""
    """What the worker does without it; empty where it does not start."""

    def __str__(self) -> str:
        kind = self.kind.replace("-", " ")
        where = f"{kind}s that begin with {self.name}" if self.prefixed else f"{kind} {self.name}"
        return f"{self.operation} on {where}"

    @property
    def resource(self) -> list[str]:
        """Its options for ``kafka-acls.sh``."""
        pattern = ["--resource-pattern-type", "prefixed"] if self.prefixed else []
        return [f"--{self.kind}", self.name, *pattern]


def rights_of(settings: Settings, cluster: str = "") -> list[Right]:
    """Every right that the worker of this configuration needs; those of one resource stand together.

    Args:
        cluster: on the cluster that this setting names; empty: on that of ``kafka``.
    """
    found: dict[tuple[str, str], Right] = {}
    uses = [use for use in uses_of(settings) if use.cluster == cluster]
    for use in sorted(uses, key=lambda use: use.topic):
        wanted = [Right("WRITE" if use.written else "READ", "topic", use.topic, use.field)]
        if is_pattern(use.topic):
            begins = prefix(use.topic)
            wanted = [Right("READ", "topic", begins or "*", use.field, prefixed=bool(begins))]
        if use.create is not None:
            wanted.append(Right("CREATE", "topic", use.topic, use.field, optional=_IF_THERE))
        if use.written:
            wanted.append(Right("DESCRIBE_CONFIGS", "topic", use.topic, use.field, optional=_WITHOUT_CONFIGS))
        for right in wanted:
            found.setdefault((right.name, right.operation), right)
    if cluster:
        return [*found.values()]
    group = settings.kafka["group.id"]
    if settings.labels is not None:
        read = {settings.labels.topic: "labels.topic"} | dict.fromkeys(
            scored_pipelines(settings)[0], "labels"
        )
        for topic, field in read.items():
            found[topic, "READ"] = Right("READ", "topic", topic, field, optional=_FOR_SCORE)
    rights = [
        *sorted(found.values(), key=lambda right: right.name),
        Right("READ", "group", group, "kafka.group.id"),
    ]
    if settings.labels is not None:
        rights.append(Right("READ", "group", f"{group}.score", "labels", optional=_FOR_SCORE))
    if settings.delivery == "queue":
        rights += [
            Right(operation, "group", group, "delivery: queue", optional=_BY_HAND)
            for operation in ("DESCRIBE_CONFIGS", "ALTER_CONFIGS")
        ]
    if settings.delivery == "exactly_once":
        rights.append(
            Right("WRITE", "transactional-id", f"{group}-", "delivery: exactly_once", prefixed=True)
        )
    return rights


_WITHOUT_CONFIGS = "without it the topic's limits are not known and Kafka's defaults are assumed"
_FOR_SCORE = "only streaminfer score needs it"
_BY_HAND = "without it the group's settings are to be made by hand"
_IF_THERE = "only needed where the topic does not exist"


def principal_of(client: Client) -> str:
    """Who the client is to the broker, as far as its properties say; else :data:`UNKNOWN_PRINCIPAL`.

    A certificate's principal is made by the broker's ``ssl.principal.mapping.rules``, and a token's is inside the token.
    """
    kafka = client.kafka
    protocol = _security(client)
    if protocol == "plaintext":
        return "User:ANONYMOUS"
    name = kafka.get("sasl.username", "")
    if (
        protocol.startswith("sasl")
        and kafka.get("sasl.mechanisms", "").upper().startswith(("PLAIN", "SCRAM"))
        and name
    ):
        return f"User:{name}"
    return UNKNOWN_PRINCIPAL


def _security(client: Client) -> str:
    return client.kafka.get("security.protocol", "plaintext").strip().lower()


def command(client: Client, principal: str, rights: Sequence[Right]) -> str:
    """The command that grants these rights, which are all of one resource."""
    words = ["kafka-acls.sh", "--bootstrap-server", client.kafka["bootstrap.servers"]]
    if _security(client) != "plaintext":
        words += ["--command-config", "admin.properties"]
    words += ["--add", "--allow-principal", principal]
    for right in rights:
        words += ["--operation", right.operation.title().replace("_", "")]
    return shlex.join(words + rights[0].resource)


def commands(client: Client, principal: str, rights: Sequence[Right]) -> Iterator[str]:
    """The commands that grant all of these rights, one for each resource."""
    for _, same in groupby(rights, lambda right: right.resource):
        yield command(client, principal, [*same])


def held(settings: Settings, rights: Sequence[Right]) -> list[tuple[Right, bool | None]]:
    """Which of the rights this client has; None where the broker does not tell. Nothing is made or changed there,
    besides the name of one transactional id where ``delivery`` is ``exactly_once``.

    The right to create a topic that does not exist is not optional any more in the answer.

    Raises:
        StartError: the broker cannot be reached or refuses us, or it is the embedded one, which knows no rights.
    """
    with Admin(settings) as admin:
        cluster = admin.cluster()
        if str(cluster.cluster_id).startswith(EMBEDDED_CLUSTER):
            raise StartError(
                "--acls: the embedded broker knows no rights; expected a real Kafka, or --offline"
            )
        named = [right.name for right in rights if right.kind == "topic" and not _is_open(right)]
        matched = [topic for topic in cluster.topics for right in rights if _covers(right, topic)]
        told = admin.describe([*dict.fromkeys((*named, *matched))]).rights
        found: list[tuple[Right, bool | None]] = []
        for right in rights:
            if right.kind == "transactional-id":
                found.append((right, _may_begin(settings, right)))
            elif right.operation == "CREATE" and right.name not in cluster.topics:
                found.append((replace(right, optional=""), admin.may_create(right.name)))
            else:
                group = right.kind == "group"
                operations = admin.group_rights(right.name) if group else told.get(right.name)
                if _is_open(right):
                    operations = _common(told, right)
                may = None if operations is None else AclOperation[right.operation] in operations
                found.append((right, may))
    return found


def _is_open(right: Right) -> bool:
    """It is needed for topics that are not named, because a pattern stands for them."""
    return right.kind == "topic" and (right.prefixed or right.name == "*")


def _covers(right: Right, topic: str) -> bool:
    return _is_open(right) and (right.name == "*" or topic.startswith(right.name))


def _common(told: Mapping[str, frozenset[AclOperation]], right: Right) -> frozenset[AclOperation] | None:
    """What the client may do with all of the topics that a right is needed for; None if there are none."""
    each = [operations for topic, operations in told.items() if _covers(right, topic)]
    return frozenset.intersection(*each) if each else None


def _may_begin(settings: Settings, right: Right) -> bool | None:
    """Whether this client may begin transactions; a name that no worker has, so that nobody is fenced."""
    properties = producer_properties(settings, transactional_id=f"{right.name}check")
    producer = build(Producer, {**properties, "log_level": 0})
    try:
        producer.init_transactions(INIT_TIMEOUT_S)
    except KafkaException as error:
        denied = error.args[0].code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        return False if denied else None
    return True
