"""gzip (RFC 1952): the length inside stands in the last four bytes, and is checked against what comes out."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from worker.batch import Headers
from worker.errors import Reject
from worker.payload import Making

_WINDOW = 31
"""zlib's window-bits value for data with a gzip header and checksum."""
_MAGIC = b"\x1f\x8b\x08"
_LEAST = 18
"""Bytes of a header and a trailer."""
_MOST_TIMES = 1032
"""The largest ratio of a body's length to its packed length that deflate can reach."""
_LEVEL = 6
_PARTS_MAX = 256
"""zlib copies what follows a part, so very many tiny parts would take a time that grows with the square of their number."""
_STORED = 64
"""What gzip adds to a body that it cannot make smaller: less than a thousandth and this."""


class Gzip:
    """gzip (RFC 1952), of one part or several; results are written at level 6."""

    encoding = "gzip"
    exact = False

    def __init__(self, making: Making) -> None:
        pass

    def bound(self, value: bytes, at_most: int) -> int:
        """The stated length. Where it cannot be that of the whole, because it is less than the packed one, the most there can be."""
        if value[:3] != _MAGIC or len(value) < _LEAST:
            raise Reject("the record is not gzip", "undecodable")
        stated = int.from_bytes(value[-4:], "little")
        if stated > _MOST_TIMES * len(value):
            raise Reject("the gzip body is broken or ends early", "undecodable")
        if stated > at_most:
            raise Reject(_too_large(at_most, stated), "too_large")
        if stated + (stated >> 10) + _STORED < len(value):
            return min(at_most, self.bound_of(len(value)))
        return stated

    def bound_of(self, nbytes: int) -> int:
        return _MOST_TIMES * nbytes

    def unwrap(self, value: bytes, headers: Headers, topic: str, at_most: int) -> bytes:
        """See :class:`worker.payload.Filter`. Bytes behind the last part are not taken for a part: they are an error."""
        if value[:3] != _MAGIC or len(value) < _LEAST:
            raise Reject("the record is not gzip", "undecodable")
        parts: list[bytes] = []
        left, rest = at_most, value
        while rest:
            unpacker = zlib.decompressobj(_WINDOW)
            try:
                body = unpacker.decompress(rest, left + 1)
            except zlib.error:
                raise Reject("the gzip body is broken", "undecodable") from None
            if len(body) > left:
                raise Reject(_too_large(at_most), "too_large")
            if not unpacker.eof:
                raise Reject("the gzip body ends early", "undecodable")
            rest = unpacker.unused_data
            if not rest and not parts:
                return body
            parts.append(body)
            if len(parts) > _PARTS_MAX:
                raise Reject(f"the gzip body has more than {_PARTS_MAX} parts", "undecodable")
            left -= len(body)
        return b"".join(parts)

    def wrapper(self, topic: str) -> tuple[Callable[[bytes], bytes], Headers]:
        return _packed, []


def _packed(value: bytes) -> bytes:
    return zlib.compress(value, _LEVEL, _WINDOW)


def _too_large(at_most: int, stated: int | None = None) -> str:
    found = "more than that" if stated is None else f"{stated} bytes"
    return f"the gzip body has {found} unpacked, expected at most {at_most} (input.max_unwrapped_bytes)"
