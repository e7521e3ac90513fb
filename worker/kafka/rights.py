"""Which rights of a client are missing, as the broker says before any record is in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]  # re-exported without saying so

from worker.errors import Mistake, StartError

if TYPE_CHECKING:
    from worker.kafka.admin import Admin
    from worker.kafka.uses import Use


def check_rights(admin: Admin, uses: Sequence[Use], group: str | None = None) -> None:
    """Report at start every missing right that the broker would report only when records are already in flight.

    Raises:
        StartError: rights are missing.
    """
    if wrong := find_rights(admin, uses, group)[1]:
        raise StartError.of([*wrong.values()])


def find_rights(
    admin: Admin, uses: Sequence[Use], group: str | None = None
) -> tuple[dict[str, str], dict[str, Mistake]]:
    """Ids of the topics, as far as the broker gave them, and the missing rights by topic (a group's by "").

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
    return ids, wrong
