"""The text beside a committed position, with an end of its own.

The Python client reads metadata as a C string. The library's copy has a length and no NUL at its end, so now and then what
stands behind it in memory is read too: a note with letters or digits more is another note, or none.
"""

from __future__ import annotations

_END = "\n"


def sealed(note: str) -> str:
    """A note as it is committed. An empty one stays empty."""
    return note + _END if note else ""


def opened(metadata: str | None) -> str:
    """The note in the metadata of a committed position, which another program may have written without an end."""
    return (metadata or "").partition(_END)[0]
