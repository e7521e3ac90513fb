"""URLs of objects, in one form: what an allow list says of them is then a comparison of parts.

A URL comes from a record, so anybody may have written it. Whatever two readers might understand differently (a
backslash, an encoded slash, a dot segment, a user name, a tab) is refused and never repaired.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

PORTS = {"http": 80, "https": 443}
BUCKETS = frozenset({"s3", "gs", "az"})
"""Schemes whose host is the name of a bucket, whose path is a key, and which have no query."""
SCHEMES = (*sorted(BUCKETS), "https", "http", "file")

_LONGEST = 8192
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x20\x7f-\xa0]")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_LONGEST_HOST = 253
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_SAFE = _UNRESERVED | frozenset(b"/!$&'()*+,;=:@")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


class BadUrl(ValueError):
    """Not a URL that is followed. The message says why, without the URL."""


@dataclass(frozen=True, slots=True)
class Url:
    """A URL in its one form."""

    scheme: str
    host: str
    """In lower case, without a trailing dot; a name in its ASCII form; an IPv6 address without brackets. The bucket of s3,
    gs and az. Empty for file."""
    port: int | None
    """None where the scheme has no port; never None for http and https."""
    path: str
    """Decoded as far as it can be text without ambiguity: begins with ``/``, has no empty, ``.`` or ``..`` segment."""
    query: str = ""
    """As given, http and https only. It may hold a signature: never shown."""

    @property
    def key(self) -> str:
        """The path without its first slash."""
        return self.path[1:]

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host where it is an address; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (None, PORTS.get(self.scheme)) else f"{host}:{self.port}"

    @property
    def place(self) -> str:
        """Where the object lies, without its path."""
        return f"{self.scheme}://{self.authority}"

    @property
    def target(self) -> str:
        """Path and query as a request line has them."""
        return _quoted(self.path) + (f"?{self.query}" if self.query else "")

    def __str__(self) -> str:
        """Without the query, which may hold a signature."""
        return self.place + _quoted(self.path) + ("?..." if self.query else "")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a request goes that the store's own client has signed: nothing of it may be changed."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str

    @classmethod
    def of(cls, signed: str, keep_query: bool) -> Endpoint:
        """The parts of a signed URL."""
        parts = urlsplit(signed)
        target = f"{parts.path}?{parts.query}" if keep_query else parts.path
        port = parts.port or PORTS[parts.scheme]
        return cls(parts.scheme, parts.hostname or "", port, parts.netloc, target)


def parse(text: str) -> Url:
    """A URL in its one form.

    Raises:
        BadUrl: it is none, has a scheme that is not known, or can be read in two ways.
    """
    if len(text) > _LONGEST:
        raise BadUrl(f"it has {len(text)} characters, at most {_LONGEST} are followed")
    if _CONTROL_OR_SPACE.search(text) or not text.isprintable():
        raise BadUrl("it has a space or a control character")
    if "\\" in text:
        raise BadUrl("it has a backslash")
    if "#" in text:
        raise BadUrl("it has a fragment")
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        raise BadUrl(f"expected a URL that begins with {', '.join(f'{name}://' for name in SCHEMES)}")
    if _PERCENT.search(rest):
        raise BadUrl("a percent sign is not followed by two hexadecimal digits")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        raise BadUrl("its host or port cannot be read") from None
    if "@" in parts.netloc:
        raise BadUrl("it has a user name or a password")
    if "%" in parts.netloc:
        raise BadUrl("its host is percent-encoded")
    if parts.query and scheme not in PORTS:
        raise BadUrl(f"a {scheme} URL has no query")
    path = _path(parts.path, scheme)
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise BadUrl("a file URL has no host: file:///folder/name")
        return Url(scheme, "", None, path)
    if scheme in BUCKETS:
        if port is not None or not _BUCKET.fullmatch(parts.netloc):
            raise BadUrl(f"expected {scheme}://bucket/key")
        return Url(scheme, parts.netloc, None, path)
    if parts.netloc.endswith(":") or port == 0:
        raise BadUrl("its port cannot be read")
    return Url(scheme, _host(parts.hostname or ""), port or PORTS[scheme], path, parts.query)


def _host(host: str) -> str:
    """A host in its one form.

    Raises:
        BadUrl: it is no host, or an address in a form that resolvers read in different ways.
    """
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise BadUrl("its host is no IPv6 address") from None
        if "%" in host or address.scope_id:
            raise BadUrl("its host has a zone")
        return str(address.ipv4_mapped or address)
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise BadUrl("its host is no domain name") from None
    host = host.lower().removesuffix(".")
    if len(host) > _LONGEST_HOST or not all(map(_LABEL.fullmatch, host.split("."))):
        raise BadUrl("its host is no domain name")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # 127.1, 0x7f000001 and 2130706433 are addresses to some resolvers, and names to others.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadUrl("its host is a number that is no IPv4 address of four decimal parts") from None
    return host


def _path(raw: str, scheme: str) -> str:
    """A path, decoded once.

    Raises:
        BadUrl: it can be read in two ways, or leads out of itself.
    """
    if re.search(r"%(2f|5c|00)", raw, re.IGNORECASE):
        raise BadUrl("its path has an encoded slash, backslash or zero")
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadUrl("its path is not UTF-8") from None
    if _PERCENT_AGAIN.search(path):
        raise BadUrl("its path is encoded twice")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        raise BadUrl("its path has a control character")
    segments = path.split("/")[1:]
    if not segments or segments == [""]:
        if scheme in PORTS:
            return "/"
        raise BadUrl("it names no object")
    if any(segment in (".", "..") for segment in segments):
        raise BadUrl("its path has a segment . or ..")
    if "" in segments[:-1]:
        raise BadUrl("its path has an empty segment")
    return path


_PERCENT_AGAIN = re.compile(r"%(25)*(2e|2f|5c|00)", re.IGNORECASE)
"""Text that would mean a dot, a slash, a backslash or a zero to whoever decodes it once more."""


def _quoted(path: str) -> str:
    return "".join(chr(byte) if byte in _PATH_SAFE else f"%{byte:02X}" for byte in path.encode())
