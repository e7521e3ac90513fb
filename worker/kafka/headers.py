"""Record headers whose names are not UTF-8: clients in C, Go or Rust can send any bytes as a name.

``Message.headers()`` of confluent-kafka (2.16) raises for such a record. Asked again it returns the headers, but with
a NULL pointer in place of each name that it could not decode: Python code that touched one would crash the process.
It also must not be called directly: the interpreter's quickest way to call a method does not notice that it returned
with an exception set, which then comes out of whatever is called next. ``map`` notices.
"""

from __future__ import annotations

import gc
from typing import Any

from confluent_kafka import Message

from worker.batch import RENAMED_HEADERS, Headers

UNKNOWN = "\ufffd"
"""The name of a header whose own is lost: the client keeps only the first undecodable one of a record."""

_headers: Any = Message.headers


def header_column(messages: list[Any]) -> list[Headers | None]:
    """Headers of each message, None where it has none.

    A message with names that are not UTF-8 gets readable ones, with U+FFFD for what could not be decoded. The first
    of its headers is then one more, called :data:`worker.batch.RENAMED_HEADERS`: which of the others were renamed,
    counted from 1.
    """
    try:
        return list(map(_headers, messages))
    except (SystemError, UnicodeDecodeError) as error:
        name = _undecodable(error)
    column: list[Headers | None] = []
    for message in messages:
        try:
            headers = next(map(_headers, (message,)))
        except (SystemError, UnicodeDecodeError) as error:
            name = _undecodable(error)
            headers = next(map(_headers, (message,)))
        # a NULL is no object: it is not among those that the pair refers to
        if headers and (renamed := [i for i, p in enumerate(headers) if len(gc.get_referents(p)) < 2]):
            headers = _readable(headers, renamed, name)
            message.set_headers(headers)  # the broken pairs end here
        column.append(headers)
    return column


def readable_headers(message: Any) -> Headers:
    """Headers of one message with readable names; an empty list where it has none."""
    headers = header_column([message])[0] or []
    return headers[1:] if headers and headers[0][0] is RENAMED_HEADERS else headers


def _undecodable(error: BaseException | None) -> str:
    """The name at fault, readable. The exception that knows it may be the cause of others."""
    while error is not None:
        if isinstance(error, UnicodeDecodeError):
            return error.object.decode(errors="replace")
        error = error.__cause__
    return UNKNOWN


def _readable(headers: Headers, renamed: list[int], name: str) -> Headers:
    names = dict.fromkeys(renamed, UNKNOWN)
    names[renamed[0]] = name
    numbers = ",".join(str(i + 1) for i in renamed).encode()
    made: Headers = [(RENAMED_HEADERS, numbers)]
    made += [(names[i] if i in names else pair[0], pair[1]) for i, pair in enumerate(headers)]
    return made
