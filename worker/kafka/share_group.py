"""What a share group must be set to before the worker joins it: the broker keeps these settings, not the client."""

from __future__ import annotations

from concurrent.futures import wait
from typing import TYPE_CHECKING

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from worker.errors import StartError
from worker.kafka.properties import admin_properties, build

if TYPE_CHECKING:
    from worker.settings import Settings

ANSWER_S = 5.0
DEFAULT_LOCK_S = 30.0
LOCK = "share.record.lock.duration.ms"

log = structlog.get_logger(module=__name__)


def wanted(settings: Settings) -> dict[str, str]:
    """The group's settings that the worker relies on."""
    starts = {pipeline.input.start for pipeline in settings.pipelines.values()}
    return {"share.auto.offset.reset": min(starts), "share.isolation.level": "read_committed"}


def by_hand(settings: Settings) -> str:
    """The command that sets them."""
    return (
        f"kafka-configs.sh --bootstrap-server {settings.kafka['bootstrap.servers']} --alter --entity-type groups "
        f"--entity-name {settings.kafka['group.id']} "
        f"--add-config {','.join(f'{name}={value}' for name, value in wanted(settings).items())}"
    )


def check_kind(embedded: bool) -> None:
    """Refuse the embedded broker.

    Raises:
        StartError: it has no share groups.
    """
    if embedded:
        raise StartError("delivery: queue: the embedded broker has no share groups; expected a real Kafka")


def describe_group(settings: Settings, embedded: bool) -> str:
    """What the broker says of the group, for people; nothing is set.

    Raises:
        StartError: the broker has no share groups.
    """
    check_kind(embedded)
    lock_s = prepare_group(settings, change=False)
    return f"share group {settings.kafka['group.id']}: a record is lent for {lock_s:g} s (preview)"


def prepare_group(settings: Settings, change: bool = True) -> float:
    """See that the group is set as the worker needs it; set it where it is not.

    Args:
        change: set it; if False, only look.

    Returns:
        For how long the broker lends a record, in seconds.

    Raises:
        StartError: it is set otherwise and we may not set it, or the broker has no share groups.
    """
    client = build(AdminClient, admin_properties(settings))
    group = settings.kafka["group.id"]
    asked = client.describe_configs([ConfigResource(ResourceType.GROUP, group)], request_timeout=ANSWER_S)
    wait(asked.values(), timeout=ANSWER_S + 1)
    try:
        (answer,) = asked.values()
        found = {name: entry.value for name, entry in answer.result(timeout=0).items()}
    except (KafkaException, TimeoutError) as error:
        log.warning(
            "the settings of the share group cannot be read: those of the broker hold",
            share_group=group,
            error=str(error),
            set_by=by_hand(settings),
        )
        return DEFAULT_LOCK_S
    if LOCK not in found:
        raise StartError("delivery: queue: the broker has no share groups; expected Kafka 4.2 or newer")
    lock_s = int(found[LOCK]) / 1000
    differing = {name: value for name, value in wanted(settings).items() if found.get(name) != value}
    if not differing or not change:
        return lock_s
    entries = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in differing.items()]
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
    (set_,) = client.incremental_alter_configs([resource], request_timeout=ANSWER_S).values()
    wait([set_], timeout=ANSWER_S + 1)
    try:
        set_.result(timeout=0)
    except (KafkaException, TimeoutError) as error:
        raise StartError(
            f"delivery: queue: the share group {group} is not set as this configuration needs it, and cannot be set by this "
            f"client ({error}); set it by {by_hand(settings)}"
        ) from None
    log.info("the share group is set", share_group=group, settings=differing)
    return lock_s
