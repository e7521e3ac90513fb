"""Who may ask ``metrics.http`` for what: the name in the Host header, and the bearer token.

The name matters because of DNS rebinding: a web page can point a name of its own at 127.0.0.1, and a browser then lets
it read what a server here answers. The Host header still holds that name, and an address cannot be pointed elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

PROBES = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that anyone may ask, by any name: they tell one bit and its reason, and orchestrators send no token."""


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: HTTPStatus
    sentence: str


class Access:
    """See the module.

    Args:
        bound: the host of ``metrics.http``, which may always be named.
        hosts: further names (``metrics.hosts``); ``*.example.com`` stands for every name below ``example.com``.
        token: what every request but a probe must carry (``metrics.token``); None: nothing.
    """

    def __init__(self, bound: str = "", hosts: Sequence[str] = (), token: str | None = None) -> None:
        names = {"localhost", bound.lower(), socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self._names = {name for name in names if name and not name.startswith("*.")}
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._token = token.encode() if token is not None else None

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return self._token is not None

    def refusal(self, path: str, host: str | None, authorization: str | None) -> Refusal | None:
        """Why this request is not answered; None where it is.

        Args:
            path: without its query.
            host, authorization: the headers of these names; None where there is none.
        """
        if path in PROBES:
            return None
        if host is not None and not self._known(host):
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f'the Host header names "{_shown(host)}": expected an address, localhost, or a name under metrics.hosts',
            )
        if self._token is not None and not self._carries(authorization):
            given = "does not carry the right one" if authorization else "carries none"
            return Refusal(
                HTTPStatus.UNAUTHORIZED,
                f'this worker asks for a token (metrics.token), and the request {given}: expected the header "Authorization: Bearer <token>"',
            )
        return None

    def _known(self, host: str) -> bool:
        name = _without_port(host.strip().lower()).rstrip(".")
        return name in self._names or _is_address(name) or name.endswith((".localhost", *self._below))

    def _carries(self, authorization: str | None) -> bool:
        scheme, _, given = (authorization or "").partition(" ")
        # The time that this takes tells nothing of the token.
        right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token or b"")
        return right and scheme.lower() == "bearer"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _shown(host: str) -> str:
    return "".join(each if each.isprintable() and each != '"' else "?" for each in host[:100])
