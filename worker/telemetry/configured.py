"""Which configuration is in force, and how often it was read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

RESULTS = ("changed", "unchanged", "refused")
"""What becomes of a configuration that is read again."""


@dataclass(slots=True)
class Configured:
    """The configuration of a worker; the loop's thread alone changes it."""

    digest: str = ""
    """The first 8 hex digits of the SHA-256 over the file that was taken over last; empty where nobody said it."""
    restart: tuple[str, ...] = ()
    """Settings that this file has otherwise than the worker, because they need a restart."""
    reloads: Counter[str] = field(default_factory=Counter)
    """How often the file was read again, by result."""

    def copy(self) -> Configured:
        return replace(self, reloads=self.reloads.copy())

    def fields(self) -> dict[str, Any]:
        """What ``/state`` says of it."""
        reloads = {result: self.reloads[result] for result in RESULTS}
        return {"digest": self.digest, "needs_restart": [*self.restart], "reloads": reloads}
