"""Where the brokers are, and whether what is said to them is encrypted."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from worker.settings.sections import Settings


def security_protocol(settings: Settings) -> str:
    """``kafka.security.protocol`` as librdkafka reads it: in any case, blanks around it or not."""
    return protocol_of(settings.kafka)


def protocol_of(properties: Mapping[str, str]) -> str:
    """As :func:`security_protocol`, of any client's properties."""
    return properties.get("security.protocol", "plaintext").strip().lower()


def plaintext_hosts(settings: Settings) -> list[str]:
    """Bootstrap servers on other hosts that are reached without encryption."""
    return open_hosts(settings.kafka)


def open_hosts(properties: Mapping[str, str]) -> list[str]:
    """As :func:`plaintext_hosts`, of any client's properties."""
    if protocol_of(properties) not in ("plaintext", "sasl_plaintext"):
        return []
    servers = properties["bootstrap.servers"].split(",")
    return [server.strip() for server in servers if not is_loopback(server.strip())]


def is_loopback(server: str) -> bool:
    """Whether an address, with or without scheme and port, is this machine's own."""
    host = server.rpartition("://")[2]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") <= 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
