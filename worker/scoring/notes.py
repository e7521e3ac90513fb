"""The note beside a committed position of ``streaminfer score``: what the next owner of the partition has to know."""

from __future__ import annotations

from worker.scoring.joiner import Mark

HEAD = "streaminfer.score"


def written(mark: Mark, last: str) -> str:
    """The note of a mark.

    Args:
        last: place of the last quality record of this partition, ``partition/offset`` of the metrics topic; empty: none.
    """
    return f"{HEAD};read={mark.read};waits={mark.waits};last={last}"


def read(position: int, note: str) -> tuple[Mark, str]:
    """The mark and the place of a note; a note that another program wrote says nothing."""
    head, *parts = note.split(";")
    said = dict(part.partition("=")[::2] for part in parts) if head == HEAD else {}
    reads, waits = said.get("read", ""), said.get("waits", "")
    if not reads.isdecimal() or not waits.isdecimal():
        return Mark(position, position, 0), ""
    return Mark(position, int(reads), int(waits)), said.get("last", "")
