"""What the headers of a record say about its value. A name counts in any case; the last header of a name counts."""

from __future__ import annotations

from worker.batch import Headers

CONTENT_ENCODING = "content-encoding"
CONTENT_TYPE = "content-type"
ENCRYPTION = "streaminfer.encryption"
STRUCTURED = b"application/cloudevents+json"
_MARKS = {len(name): name for name in (CONTENT_ENCODING, CONTENT_TYPE, ENCRYPTION)}
"""By length: most names are told apart without making lower-case copies of them."""


def last(headers: Headers | None, name: str) -> bytes | None:
    """The value of the last header of this name (lower case); None without one."""
    for found, value in reversed(headers or ()):
        if len(found) == len(name) and found.lower() == name:
            return value or b""
    return None


def marks(headers: Headers) -> bool:
    """Whether the headers may say that the value is not what the input format reads: wrapped, or a structured event."""
    for name, value in headers:
        if _MARKS.get(len(name)) == name.lower() and (len(name) != len(CONTENT_TYPE) or _names_event(value)):
            return True
    return False


def is_structured(headers: Headers | None) -> bool:
    """Whether the value is a CloudEvent in structured mode, by its content type, whatever parameters that has."""
    return _names_event(last(headers, CONTENT_TYPE))


def encodings(headers: Headers | None) -> list[str]:
    """The codings that header ``content-encoding`` names, in the order in which they were applied; without identity."""
    text = (last(headers, CONTENT_ENCODING) or b"").decode("latin-1")
    named = [part.strip().lower().removeprefix("x-") for part in text.split(",")]
    return [name for name in named if name not in ("", "identity")]


def _names_event(value: bytes | None) -> bool:
    return value is not None and value.partition(b";")[0].strip().lower() == STRUCTURED
