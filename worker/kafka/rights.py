"""Which rights of a client are missing, as the broker says before any record is in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]  # re-exported without saying so

from worker.errors import Mistake, NotReady

if TYPE_CHECKING:
    from worker.kafka.admin import Admin
    from worker.kafka.uses import Use


@dataclass(frozen=True)
class Rights:
    """The broker's answer."""

    ids: Mapping[str, str] = field(default_factory=dict)
    """Ids of the topics, as far as the broker gave them."""
    missing: Mapping[str, Mistake] = field(default_factory=dict)
    """By topic; a group's by the empty text."""
    told: bool = False
    """Whether the broker lists the client's rights."""


def check_rights(admin: Admin, uses: Sequence[Use], group: str | None = None) -> None:
    """Report at start every missing right that the broker would report only when records are already in flight.

    Raises:
        NotReady: rights are missing.
    """
    if wrong := find_rights(admin, uses, group).missing:
        raise NotReady.of([*wrong.values()])


def find_rights(admin: Admin, uses: Sequence[Use], group: str | None = None) -> Rights:
    """What the broker says of the topics and of this client's rights.

    A broker may not list the client's rights (Kafka before 2.3, or a late answer). Then nothing is missing.

    Args:
        group: the group whose offsets are committed, if any.
    """
    rights, ids = admin.describe(list(dict.fromkeys(use.topic for use in uses)))
    wrong: dict[str, Mistake] = {}
    for use in uses:
        needed, verb = (AclOperation.WRITE, "write to") if use.written else (AclOperation.READ, "read")
        if needed not in rights.get(use.topic, (needed,)):
            sentence = (
                f"{use.prefix}not authorised to {verb} topic {use.topic}; expected the right {needed.name}"
            )
            wrong.setdefault(use.topic, Mistake(sentence))
    told = None if group is None else admin.group_rights(group)
    if told is not None and AclOperation.READ not in told:
        wrong[""] = Mistake(f"kafka.group.id: not authorised for group {group}; expected the right READ")
    return Rights(ids, wrong, bool(rights))
