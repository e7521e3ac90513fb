"""Spans as values, and their trace context as W3C Trace Context writes it (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from worker import native
from worker.batch import Headers

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
SAMPLED = 0x01
KNOWN_FLAGS = 0x03
"""Sampled, and random (level 2 of the standard); a participant clears the others."""
STATE_CHARACTERS = 1024
"""A longer tracestate is not told in spans; the standard asks for 512 at least. The result keeps it."""
INTERNAL, PRODUCER, CONSUMER = 1, 4, 5
"""Kinds of spans, by their numbers in OTLP."""

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
NO_CONTEXT, NOT_SAMPLED, IS_SAMPLED = 0, 1, 2
"""Of one row: it has no valid traceparent, or what that one's flag says."""

Attributes = Sequence[tuple[str, str | int | float | bool]]


class Context(NamedTuple):
    """Where a record's trace stands."""

    trace_id: bytes
    """16 bytes."""
    span_id: bytes
    """8 bytes."""
    flags: int


class Link(NamedTuple):
    """From a span to another one, in any trace."""

    trace_id: bytes
    span_id: bytes


class Span(NamedTuple):
    """One finished span. Times are Unix nanoseconds."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty: it is the first of its trace."""
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Attributes = ()
    links: Sequence[Link] = ()
    error: str | None = None
    """Why it failed; None: it did not."""
    flags: int = SAMPLED
    remote: bool = False
    """Its parent is a span of another process."""
    state: str = ""
    """The trace's tracestate."""


def parsed(value: bytes | None) -> Context | None:
    """The context that a traceparent says; None where it is none.

    Versions above 00 may have more behind the flags.
    """
    found = _PARENT.fullmatch(value or b"")
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if trace == b"0" * 32 or span == b"0" * 16:
        return None
    return Context(bytes.fromhex(trace.decode()), bytes.fromhex(span.decode()), int(flags, 16) & KNOWN_FLAGS)


def written(context: Context) -> bytes:
    """A traceparent."""
    return f"00-{context.trace_id.hex()}-{context.span_id.hex()}-{context.flags:02x}".encode()


def traceparent(headers: Headers | None) -> bytes | None:
    """The record's traceparent: the last header of this name."""
    for name, value in reversed(headers or ()):
        if name == TRACEPARENT:
            return value
    return None


def tracestate(headers: Headers | None) -> str:
    """The record's tracestate, several joined as the standard says; empty where it has none that can be told."""
    parts = [value for name, value in headers or () if name == TRACESTATE and value]
    try:
        text = b",".join(parts).decode("ascii")
    except UnicodeDecodeError:
        return ""
    return text if len(text) <= STATE_CHARACTERS else ""


def sampling(headers: Sequence[Headers | None]) -> bytes:
    """What the traceparent of each row says: ``NO_CONTEXT``, ``NOT_SAMPLED`` or ``IS_SAMPLED``."""
    if native.records is not None:
        return bytes(native.records.contexts(headers if isinstance(headers, list) else [*headers]))
    return bytes(map(_sampling, headers))


def _sampling(headers: Headers | None) -> int:
    context = parsed(traceparent(headers)) if headers else None
    if context is None:
        return NO_CONTEXT
    return IS_SAMPLED if context.flags & SAMPLED else NOT_SAMPLED
