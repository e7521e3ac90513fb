"""What a replica sees of a pipeline's versions, and what it is told to do: the values of :mod:`worker.serving.decisions`."""

from __future__ import annotations

from dataclasses import dataclass

from worker.serving.control import Decision, Record
from worker.serving.rollout import Figures


@dataclass(frozen=True, slots=True)
class Meant:
    """The version that the settings mean now."""

    version: str
    digest: str
    """Over its files; see :attr:`Decision.digest`."""
    moving: bool
    """The settings say ``latest``: nobody named the version."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the load of a version ended that was ordered."""

    version: str
    refused: str = ""
    """Why it cannot answer here; empty if it is warm and waits."""
    missing: bool = False
    """It is refused because the repository does not have it, or not all of it."""


@dataclass(frozen=True, slots=True)
class View:
    """What a replica sees at one moment."""

    now_ms: int
    """Unix milliseconds."""
    caught_up: bool
    """The control topic was read to an end that was looked up after the last assignment."""
    owner: bool
    """This replica owns partition 0 of the pipeline's first input topic."""
    meant: Meant | None
    loaded: Loaded | None = None
    """A load that ended since the last look."""
    figures: Figures | None = None
    """Of the rollout that this replica takes part in."""


@dataclass(frozen=True, slots=True)
class Order:
    """Load this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the version that waits: nobody needs it."""

    version: str


@dataclass(frozen=True, slots=True)
class Swap:
    """The version that waits answers everything from now on."""

    version: str


@dataclass(frozen=True, slots=True)
class Begin:
    """The version that waits is on trial from now on."""

    rollout: Decision


@dataclass(frozen=True, slots=True)
class Grow:
    """The candidate answers more keys."""

    rollout: Decision


@dataclass(frozen=True, slots=True)
class Close:
    """The rollout has ended, and with a promotion the candidate answers everything; else the stable version does."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Free:
    """What was held for an assignment may go on."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write a record to the control topic."""

    record: Record


Action = Order | Drop | Swap | Begin | Grow | Close | Free | Write
