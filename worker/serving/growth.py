"""Whether a process gives back the memory of model versions that it has closed.

A runtime may keep some of it, and with every change of the version a little more. Nobody can take it from a process, so one that
has grown too much drains, and a fresh one goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from worker.model.headroom import give_back

log = structlog.get_logger()


class Growth:
    """What a process may have when no version is loaded beside another one, and whether it has more.

    Args:
        resident: bytes that the process has.
        trim: has the C library return what it keeps for reuse.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], None] = give_back) -> None:
        self._resident = resident
        self._trim = trim
        self._most_bytes: int | None = None
        self.why: str | None = None
        """Why a fresh process should go on; None while memory is as it should be."""

    def begin(self, more_bytes: int) -> None:
        """Called when the process is warm, before any record.

        Args:
            more_bytes: what it may take beside what it has now: all that records may take, and what a runtime may keep.
        """
        self._most_bytes = self._resident() + more_bytes

    def look(self) -> bool:
        """Called when a version was closed; whether the process has too much. True once at most."""
        most = self._most_bytes
        if most is None or self.why is not None or self._resident() <= most:
            return False
        self._trim()
        now = self._resident()
        if now <= most:
            return False
        self.why = (
            f"{now >> 20} MiB are in use after a change of the model's version, at most {most >> 20} MiB should be; "
            "drained, so that a fresh process goes on"
        )
        log.warning("the memory of old versions was not given back: draining", reason=self.why)
        return True
