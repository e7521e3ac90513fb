"""Unpacks a body whose record has the header ``content-encoding: gzip``."""

from __future__ import annotations

import zlib

from worker.batch import Headers
from worker.errors import Reject

CONTENT_ENCODING = "content-encoding"
_GZIP = 31
"""zlib's window-bits value for data with a gzip header and checksum."""
_SAMPLE = 256
_MOST_TIMES = 1032
"""The largest ratio of a body's size to its packed size that gzip can reach."""


def is_packed(headers: Headers | None) -> bool:
    """Whether the record's headers mark its value as gzip. Case of the name is ignored; the last such header counts.

    Raises:
        Reject: ``undecodable``: the header names another encoding.
    """
    named = [value or b"" for name, value in headers or () if name.lower() == CONTENT_ENCODING]
    encoding = named[-1].strip().lower() if named else b""
    if encoding in (b"", b"identity"):
        return False
    if encoding not in (b"gzip", b"x-gzip"):
        shown = encoding[:40].decode("ascii", "replace")
        raise Reject(f'header {CONTENT_ENCODING} is "{shown}"; expected gzip or none', "undecodable")
    return True


def unpacked(value: bytes, at_most: int) -> bytes:
    """The body inside. Allocates no more memory than the gzip data state for the body.

    Raises:
        Reject: ``undecodable``: not gzip, or broken; ``too_large``: longer than ``at_most``.
    """
    stated = stated_bytes(value)
    if stated is None:
        raise Reject(f"header {CONTENT_ENCODING} is gzip, but the record is not", "undecodable")
    if stated > _MOST_TIMES * len(value):
        raise Reject("the gzip body is broken or ends early", "undecodable")
    if stated > at_most:
        raise Reject(f"the body has {stated} bytes unpacked, expected at most {at_most}", "too_large")
    unpacker = zlib.decompressobj(_GZIP)
    try:
        body = unpacker.decompress(value, stated + 1)
    except zlib.error:
        raise Reject("the gzip body is broken", "undecodable") from None
    if len(body) != stated or not unpacker.eof or unpacker.unused_data:
        raise Reject("the gzip body is broken, ends early or has more than one part", "undecodable")
    return body


def stated_bytes(value: bytes) -> int | None:
    """Length of the body inside, as stated at the end of a gzip value; None if the value is not gzip."""
    if not value.startswith(b"\x1f\x8b\x08") or len(value) < 18:
        return None
    try:
        zlib.decompressobj(_GZIP).decompress(value[:_SAMPLE], 1)
    except zlib.error:
        return None
    return int.from_bytes(value[-4:], "little")
