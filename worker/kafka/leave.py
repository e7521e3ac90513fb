"""Leaving a consumer group on behalf of a process that died without doing so.

The broker keeps a dead member's partitions until its session ends, and the client library can only leave for itself.
So a successor that knows the dead member's id sends the one request by itself, over a connection of its own. This is a
help: where it is not possible (OAUTHBEARER, Kerberos, a broker that is away) the session ends by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog

from worker.kafka.connection import BrokerConnection, NotPossible, request_head, text
from worker.settings.hosts import security_protocol

if TYPE_CHECKING:
    from worker.settings import Settings

FIND_COORDINATOR, LEAVE_GROUP, CONSUMER_GROUP_HEARTBEAT = 10, 13, 68
"""Numbers of the requests in Kafka's protocol."""
LEAVING_EPOCH = -1
"""As a member's epoch in a heartbeat of the consumer protocol: it leaves."""

log = structlog.get_logger(module=__name__)


def leave_for(settings: Settings, member: str) -> bool:
    """Take a dead member out of the worker's group; True when the broker has answered.

    Args:
        member: the id that the dead process had in the group.
    """
    kafka = settings.kafka
    group = kafka["group.id"]
    modern = kafka.get("group.protocol", "classic").strip().lower() == "consumer"
    request = _heartbeat(group, member) if modern else _leave(group, member)
    for host, port in _addresses(kafka["bootstrap.servers"], security_protocol(settings)):
        try:
            with BrokerConnection(host, port, kafka) as broker:
                coordinator = _coordinator(broker, group)
            if coordinator is not None:
                with BrokerConnection(*coordinator, kafka) as broker:
                    broker.ask(request)
                log.info("left the group for the process that died", member=member)
                return True
        except NotPossible as cannot:
            log.debug("cannot leave for the process that died", why=str(cannot))
            return False
        except (OSError, ValueError, KeyError, struct.error) as error:
            log.debug("cannot leave for the process that died", why=type(error).__name__)
    return False


def _addresses(servers: str, security: str) -> Iterator[tuple[str, int]]:
    """The addresses of ``bootstrap.servers`` that have the client's security, or say none."""
    for server in servers.split(","):
        protocol, _, address = server.strip().rpartition("://")
        host, colon, port = address.rpartition(":")
        if not colon or host.endswith("]") != host.startswith("["):
            host, port = address, "9092"
        if protocol.lower() in ("", security) and port.isdecimal():
            yield host.strip("[]"), int(port)


def _coordinator(broker: BrokerConnection, group: str) -> tuple[str, int] | None:
    """Where the broker says that the group is kept; None when it does not know."""
    key_of_a_group = struct.pack(">b", 0)
    answer = broker.ask(request_head(FIND_COORDINATOR, 1) + text(group) + key_of_a_group)
    at = 4 + 4  # behind the correlation id and the throttle time
    error, message_bytes = struct.unpack_from(">hh", answer, at)
    at += 4 + max(0, message_bytes) + 4  # behind the node id
    (host_bytes,) = struct.unpack_from(">h", answer, at)
    at += 2
    found = answer[at : at + host_bytes].decode()
    (found_port,) = struct.unpack_from(">i", answer, at + host_bytes)
    return None if error else (found, found_port)


def _leave(group: str, member: str) -> bytes:
    """The request of the classic protocol, version 2."""
    return request_head(LEAVE_GROUP, 2) + text(group) + text(member)


def _heartbeat(group: str, member: str) -> bytes:
    """The request of the consumer protocol, version 0; everything that a leaving member need not say is null."""
    none = b"\x00"
    return (
        request_head(CONSUMER_GROUP_HEARTBEAT, 0)
        + none
        + _compact(group)
        + _compact(member)
        + struct.pack(">i", LEAVING_EPOCH)
        + none * 2  # instance and rack
        + struct.pack(">i", -1)  # the time a rebalance may take
        + none * 4  # topics, assignor, partitions; tagged fields
    )


def _compact(value: str) -> bytes:
    """Length plus one as a varint, then the text."""
    data, number, head = value.encode(), len(value.encode()) + 1, b""
    while number > 0x7F:
        head += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return head + bytes((number,)) + data
