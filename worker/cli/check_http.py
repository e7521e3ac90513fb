"""What ``check`` says of ``metrics.http``."""

from __future__ import annotations

from worker.settings import Settings
from worker.telemetry.http import check_address
from worker.telemetry.tls import Tls


def check_http(settings: Settings) -> str:
    """That ``metrics.http`` can be listened on, with its certificate where it has one.

    Raises:
        ConfigError: a file of ``metrics.tls`` cannot be used.
        StartError: the port is in use, or the host is none of this machine.
    """
    metrics = settings.metrics
    assert metrics.http is not None
    if metrics.tls is not None:
        Tls(metrics.tls.certificate, metrics.tls.key)
    check_address(metrics.http)
    how = [
        *(["https"] if metrics.tls is not None else []),
        *(["with a token"] if metrics.token is not None else []),
    ]
    return f"{metrics.http} is free{''.join(f', {each}' for each in how)}"
