"""Base64 as other languages write it: with line breaks, URL-safe, without padding, or inside a ``data:`` URI."""

from __future__ import annotations

import re
from base64 import b64decode

_DATA_URI = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n"


def decoded(text: str) -> bytes:
    """The bytes that a base64 text stands for.

    Raises:
        ValueError: the text is not base64 in any of these forms.
    """
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b64decode(_plain(text.encode("ascii")), validate=True)


def beginning(text: bytes) -> bytes:
    """The bytes that the beginning of a base64 text stands for.

    Raises:
        ValueError: the text is not base64.
    """
    try:
        return b64decode(text[: len(text) // 4 * 4], validate=True)
    except ValueError:
        plain = _plain(text).rstrip(b"=")
        return b64decode(plain[: len(plain) // 4 * 4], validate=True)


def _plain(text: bytes) -> bytes:
    """The text in the standard alphabet, padded, without anything around it."""
    uri = _DATA_URI.match(text)
    if uri:
        text = text[uri.end() :]
    text = text.translate(_URL_SAFE, _BLANKS)
    return text + b"=" * (-len(text) % 4)
