"""Text that comes from records, exceptions and brokers, made safe for a terminal, a log line or a header."""

from __future__ import annotations

MESSAGE_BYTES_MAX = 1024


def printable(text: str, keep: str = "") -> str:
    """The text with its control, bidirectional, invisible and undecodable characters written as escapes.

    A terminal would obey an escape sequence, and a reader would be deceived by text that runs backwards.

    Args:
        keep: characters that stay as they are nevertheless.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """The text printable on one line, cut between characters to at most 1 KiB of UTF-8."""
    line = printable(" ".join(message.split()))
    return line.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")
