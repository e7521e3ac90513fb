"""Spans as an OTLP request: ``ExportTraceServiceRequest`` in protobuf or JSON, OTLP 1.x.

The message is written by hand, from https://github.com/open-telemetry/opentelemetry-proto (``trace/v1/trace.proto``):
the generated classes take five times as long, and would be one more dependency. The tests read it with those classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import orjson

from worker.telemetry.spans import Attributes, Link, Span

ERROR = 2
"""``STATUS_CODE_ERROR``"""
PARENT_KNOWN, PARENT_REMOTE = 0x100, 0x200
"""Bits of a span's flags: it is known whether the parent is of another process, and it is."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""

Scope = tuple[str, str]
"""Name and version of what made the spans."""


def protobuf(resource: Attributes, scope: Scope, spans: Iterable[Span]) -> bytes:
    """The request in protobuf."""
    its_scope = _field(1, _text(1, scope[0]) + _text(2, scope[1]))
    scope_spans = its_scope + b"".join([_field(2, _span(span)) for span in spans])
    return _field(1, _field(1, _attributes(1, resource)) + _field(2, scope_spans))


def json(resource: Attributes, scope: Scope, spans: Iterable[Span]) -> bytes:
    """The request in JSON: ids are hexadecimal, 64-bit numbers are text."""
    return orjson.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": _plain(resource)},
                    "scopeSpans": [
                        {
                            "scope": {"name": scope[0], "version": scope[1]},
                            "spans": [_plain_span(span) for span in spans],
                        }
                    ],
                }
            ]
        }
    )


def refused(answer: bytes, content_type: str) -> int:
    """How many spans a collector says that it refused, in an answer that is a success as a whole."""
    try:
        if content_type.startswith("application/json"):
            return int(orjson.loads(answer).get("partialSuccess", {}).get("rejectedSpans", 0))
        return _first_number(_first_field(answer))
    except (ValueError, IndexError, AttributeError, TypeError):
        return 0  # a success that cannot be read is one


def flags_of(span: Span) -> int:
    """The flags of a span: those of its trace, and whether its parent is remote."""
    return span.flags | PARENT_KNOWN | (PARENT_REMOTE if span.remote else 0)


# -- protobuf ----------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_SMALL = [bytes((number,)) for number in range(0x80)]


@lru_cache(64)
def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _field(field: int, body: bytes) -> bytes:
    return _begun(field, len(body)) + body


@lru_cache(4096)
def _begun(field: int, length: int) -> bytes:
    """What stands before the body of a field with a length."""
    return _tag(field, _LENGTH) + _varint(length)


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode("utf-8", "replace"))


@lru_cache(4096)
def _text_attribute(field: int, key: str, value: str) -> bytes:
    """A ``KeyValue`` of text as a field; most come again with the next span."""
    return _field(field, _text(1, key) + _field(2, _text(1, value)))


@lru_cache(256)
def _key(key: str) -> bytes:
    return _text(1, key)


def _attribute(field: int, key: str, value: str | int | float | bool) -> bytes:
    if value.__class__ is str:
        return _text_attribute(field, key, value)
    if isinstance(value, bool):
        its = _tag(2, _VARINT) + _SMALL[value]
    elif isinstance(value, int):
        its = _tag(3, _VARINT) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    else:
        its = _tag(4, _FIXED64) + struct.pack("<d", value)
    return _field(field, _key(key) + _field(2, its))


def _attributes(field: int, attributes: Attributes) -> bytes:
    return b"".join([_attribute(field, key, value) for key, value in attributes])


_TRACE_ID, _SPAN_ID = _tag(1, _LENGTH) + _varint(16), _tag(2, _LENGTH) + _varint(8)
_PARENT_ID = _tag(4, _LENGTH) + _varint(8)
_TIMES = struct.Struct("<BBBQBQ").pack
_KIND, _START, _END = (_tag(*each)[0] for each in ((6, _VARINT), (7, _FIXED64), (8, _FIXED64)))
_FLAGS, _LINK_FLAGS = _tag(16, _FIXED32), _tag(6, _FIXED32)
_SAMPLED_LINK = _LINK_FLAGS + struct.pack("<I", PARENT_KNOWN | 1)


@lru_cache(1024)
def _name(name: str) -> bytes:
    return _text(5, name)


@lru_cache(64)
def _flags(flags: int) -> bytes:
    return _FLAGS + struct.pack("<I", flags)


def _span(span: Span) -> bytes:
    """A span; its ids have the lengths that they must have."""
    parts = [_TRACE_ID, span.trace_id, _SPAN_ID, span.span_id]
    if span.state:
        parts.append(_text(3, span.state))
    if span.parent_id:
        parts += (_PARENT_ID, span.parent_id)
    parts += (_name(span.name), _TIMES(_KIND, span.kind, _START, span.start_ns, _END, span.end_ns))
    if span.attributes:
        parts.append(_attributes(9, span.attributes))
    if span.links:
        parts += [_field(13, _link(link)) for link in span.links]
    if span.error is not None:
        parts.append(_field(15, _text(2, span.error) + _tag(3, _VARINT) + _SMALL[ERROR]))
    parts.append(_flags(flags_of(span)))
    return b"".join(parts)


def _link(link: Link) -> bytes:
    return b"".join((_TRACE_ID, link.trace_id, _SPAN_ID, link.span_id, _SAMPLED_LINK))


def _first_field(answer: bytes) -> bytes:
    """Field 1 of a message, where it is the first one and has a length."""
    if not answer or answer[0] != _tag(1, _LENGTH)[0]:
        return b""
    length, at = _number(answer, 1)
    return answer[at : at + length]


def _first_number(message: bytes) -> int:
    if not message or message[0] != _tag(1, _VARINT)[0]:
        return 0
    return _number(message, 1)[0]


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


# -- JSON --------------------------------------------------------------------------------------------------------


def _plain(attributes: Attributes) -> list[dict[str, Any]]:
    return [{"key": key, "value": _plain_value(value)} for key, value in attributes]


def _plain_value(value: str | int | float | bool) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value}


def _plain_span(span: Span) -> dict[str, Any]:
    said: dict[str, Any] = {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "parentSpanId": span.parent_id.hex(),
        "traceState": span.state,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _plain(span.attributes),
        "flags": flags_of(span),
    }
    if span.links:
        said["links"] = _plain_links(span.links)
    if span.error is not None:
        said["status"] = {"message": span.error, "code": ERROR}
    return said


def _plain_links(links: Sequence[Link]) -> list[dict[str, Any]]:
    return [
        {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex(), "flags": PARENT_KNOWN | 1}
        for link in links
    ]
