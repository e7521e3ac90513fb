"""``check --acls``: the least rights that the configuration needs, the commands that grant them, and what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Protocol

from worker.errors import StartError, WorkerError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.kafka.acls import Right

MARKS = {True: "granted", False: "missing", None: "not told"}


class Lines(Protocol):
    """The report of ``check``."""

    def line(self, name: str, ok: bool, message: str, **more: object) -> None: ...

    def fail(self, name: str, error: WorkerError, **more: object) -> None: ...

    def text(self, line: str) -> None: ...


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--acls",
        action="store_true",
        help="list the least rights on the broker with the kafka-acls.sh commands that grant them; without --offline "
        "each is asked for",
    )
    parser.add_argument(
        "--principal",
        metavar="NAME",
        help="whom the commands of --acls name, such as User:worker; needed where a certificate or a token says it",
    )


def check_acls(report: Lines, settings: Settings, principal: str | None, offline: bool) -> None:
    """One line for each right, then the commands; a right that the worker needs and does not have is a failure."""
    from worker.kafka.acls import rights_of
    from worker.kafka.clusters import clusters_of

    _check_cluster(report, settings, rights_of(settings), principal, offline)
    for each in clusters_of(settings):
        _check_cluster(report, each.settings, rights_of(settings, each.section), principal, offline)


def _check_cluster(
    report: Lines, settings: Settings, rights: list[Right], principal: str | None, offline: bool
) -> None:
    """The rights on one cluster."""
    from worker.kafka.acls import UNKNOWN_PRINCIPAL, command, commands, held, principal_of

    who = principal or principal_of(settings)
    found: list[tuple[Right, bool | None]] = [(right, None) for right in rights]
    if not offline:
        try:
            found = held(settings, rights)
        except WorkerError as error:
            report.fail("acls", error)
    if who == UNKNOWN_PRINCIPAL:
        report.line(
            "principal",
            True,
            "the broker takes it from the certificate or token; give it by --principal User:NAME",
        )
    for right, may in found:
        about = {
            "operation": right.operation,
            "resource": right.kind,
            "name": right.name,
            "setting": right.field,
            "pattern": "prefixed" if right.prefixed else "literal",
            "principal": who,
            "granted": may,
            "optional": bool(right.optional),
            "command": command(settings, who, [right]),
        }
        state = MARKS[may] if not offline else "needed"
        said = f"{state}: {right} ({right.field})" + f"; optional, {right.optional}" * bool(right.optional)
        if may is False and not right.optional:
            report.fail(
                "right", StartError(f"{right.field}: {who} does not have the right {right}"), right=about
            )
        else:
            report.line("right", True, said, right=about)
    for optional, head in (
        (False, f"what grants {who} the rights it needs:"),
        (True, "what grants the optional ones:"),
    ):
        chosen = [right for right, _ in found if bool(right.optional) is optional]
        if chosen:
            report.text(head)
        for line in commands(settings, who, chosen):
            report.text(line)
