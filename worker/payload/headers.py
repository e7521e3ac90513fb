"""What the headers of a record say about its value. A name counts in any case; the last header of a name counts."""

from __future__ import annotations

from worker.batch import PAYLOAD_HEADERS, Headers

CONTENT_ENCODING = "content-encoding"
CONTENT_TYPE = "content-type"
ENCRYPTION = "streaminfer.encryption"
STRUCTURED = b"application/cloudevents+json"
_LENGTHS = frozenset(map(len, PAYLOAD_HEADERS))
"""Most names are told apart without making lower-case copies of them."""


def last(headers: Headers | None, name: str) -> bytes | None:
    """The value of the last header of this name (lower case); None without one."""
    for found, value in reversed(headers or ()):
        if len(found) == len(name) and found.lower() == name:
            return value or b""
    return None


def marks(headers: Headers) -> bool:
    """Whether the headers may say that the value is not what the input format reads: wrapped, or a structured event."""
    for name, value in headers:
        if len(name) not in _LENGTHS or (mark := name.lower()) not in PAYLOAD_HEADERS:
            continue
        if mark != CONTENT_TYPE or _names_event(value):
            return True
    return False


def is_structured(headers: Headers | None) -> bool:
    """Whether the value is a CloudEvent in structured mode, by its content type, whatever parameters that has."""
    for name, value in reversed(headers or ()):
        if len(name) == len(CONTENT_TYPE) and name.lower() == CONTENT_TYPE:
            return _names_event(value)
    return False


def encodings(headers: Headers | None) -> list[str]:
    """The codings that header ``content-encoding`` names, in the order in which they were applied; without identity."""
    text = (last(headers, CONTENT_ENCODING) or b"").decode("latin-1")
    named = [part.strip().lower().removeprefix("x-") for part in text.split(",")]
    return [name for name in named if name not in ("", "identity")]


def _names_event(value: bytes | None) -> bool:
    return value is not None and value.partition(b";")[0].strip().lower() == STRUCTURED
