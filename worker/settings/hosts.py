"""Where the brokers are, and whether what is said to them is encrypted."""

from __future__ import annotations

import ipaddress

from worker.settings.sections import Settings


def security_protocol(settings: Settings) -> str:
    """``kafka.security.protocol`` as librdkafka reads it: in any case, blanks around it or not."""
    return settings.kafka.get("security.protocol", "plaintext").strip().lower()


def plaintext_hosts(settings: Settings) -> list[str]:
    """Bootstrap servers on other hosts that are reached without encryption."""
    if security_protocol(settings) not in ("plaintext", "sasl_plaintext"):
        return []
    servers = settings.kafka["bootstrap.servers"].split(",")
    return [server.strip() for server in servers if not _is_loopback(server.strip())]


def _is_loopback(server: str) -> bool:
    host = server.rpartition("://")[2]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") <= 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
