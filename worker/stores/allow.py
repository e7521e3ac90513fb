"""The allow list: the beginnings of the URLs that may be asked for. Everything else never is."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from worker.errors import Reject
from worker.stores.url import BadUrl, Url, parse

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Allowed:
    """URLs under some beginnings.

    Args:
        entries: such as ``s3://frames/`` or ``https://media.example/in/``: the scheme, host, port and folder under which an
            object may lie.

    Raises:
        ValueError: an entry is no such beginning; the message names it.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._roots = [_root(entry) for entry in entries]

    def __contains__(self, url: Url) -> bool:
        """Whether an object lies under one of the beginnings."""
        return any(
            (url.scheme, url.host, url.port) == (root.scheme, root.host, root.port)
            and url.path.startswith(root.path)
            for root in self._roots
        )

    @property
    def roots(self) -> Sequence[Url]:
        """The beginnings; the path of each ends with a slash."""
        return self._roots

    def checked(self, text: str) -> Url:
        """The URL that a record gives, if it may be asked for.

        Raises:
            Reject: it may not (``reference_refused``).
        """
        try:
            url = parse(text)
        except BadUrl as error:
            raise Reject(f"the reference is not followed: {error}", "reference_refused") from None
        if url not in self:
            raise Reject(f"the reference {url} is not under input.reference.allow", "reference_refused")
        return url

    def may_connect(self, url: Url, address: Address) -> bool:
        """Whether a connection to this address may be made for the URL.

        A private, loopback or link-local address is reached only where an entry names that address itself: a name that
        resolves to one would otherwise open the inner network to whoever can write a record, or a DNS answer.
        """
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        return is_public(address) or (url.address == address and url in self)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _root(entry: str) -> Url:
    try:
        if "?" in entry:
            raise BadUrl("it has a query")
        # A bucket's root alone names no object: give it one for a moment.
        probe = parse(entry + "x") if entry.endswith("/") else parse(entry + "/x")
    except BadUrl as error:
        shown = re.sub(r"//[^/]*@", "//...@", entry)
        raise ValueError(
            f"got {shown!r}, expected the beginning of URLs, such as s3://frames/ or https://media.example/in/ ({error})"
        ) from None
    return Url(probe.scheme, probe.host, probe.port, probe.path[:-1])
