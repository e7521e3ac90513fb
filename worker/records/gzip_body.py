"""A body that header ``content-encoding: gzip`` says is packed."""

from __future__ import annotations

import zlib

from worker.batch import Headers
from worker.errors import Reject

CONTENT_ENCODING = "content-encoding"
_GZIP = 31
"""zlib's way to say: with a gzip header and its checksum."""
_SAMPLE = 256
_MOST_TIMES = 1032
"""How many times as large as its packed form a body can be."""


def is_packed(headers: Headers | None) -> bool:
    """Whether the record's headers say that its value is gzip; names match without case, the last one counts.

    Raises:
        Reject: ``undecodable``: they name another encoding.
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
    """The body inside; never more memory than it says itself that it needs.

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
    """Length of the body inside, as the end of a gzip value says it; None = the value is not gzip."""
    if not value.startswith(b"\x1f\x8b\x08") or len(value) < 18:
        return None
    try:
        zlib.decompressobj(_GZIP).decompress(value[:_SAMPLE], 1)
    except zlib.error:
        return None
    return int.from_bytes(value[-4:], "little")
