"""Text that comes from records, exceptions and brokers, made safe for one line of a terminal, a log or a header."""

from __future__ import annotations

import re

MESSAGE_BYTES_MAX = 1024
_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 and C1 controls: a terminal acts on them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls: the line reads as something else
    "\u2028\u2029"  # line and paragraph separators
    "\u200b-\u200d\u2060\ufeff"  # characters of no width: two different texts look alike
    "\ud800-\udfff"  # surrogates: no encoding takes them
    "]"
)


def printable(text: str) -> str:
    """The text on one line: white space as single spaces, every unsafe character as its escape (``\\x1b``)."""
    return _UNSAFE.sub(_escaped, " ".join(text.split()))


def one_line(message: str) -> str:
    """:func:`printable`, cut between characters to at most 1 KiB of UTF-8."""
    return printable(message).encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
