"""Versions of a model that somebody else orders: what is to be loaded, what became of it, and what the settings mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.errors import StartError
from worker.model.repository import LATEST, Candidate, Fingerprint, Versions
from worker.serving.moves import Loaded, Meant
from worker.serving.servable import Servable
from worker.serving.versions import digest_of


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an order."""

    loaded: Loaded
    servable: Servable | None = None
    """Warm, and in no rollout; None where the version was refused."""


@dataclass(slots=True)
class Ordered:
    """The orders for one pipeline; see :meth:`worker.serving.loader.Loader.order`.

    Whoever orders and the loader are two threads: each field is written by one of them at a time, and read whole.

    Args:
        load: the servable of a version, or the reason why it is refused.
    """

    repository: Versions
    load: Callable[[Candidate], Servable | str]
    order: str | None = None
    delivery: Delivery | None = None
    meant: Meant | None = None
    """The version that the settings mean, when it was looked at last."""
    loaded: dict[str, Candidate] = field(default_factory=dict)
    """What was loaded of each version."""
    _noted: tuple[str, Fingerprint] | None = None
    """Name and files of the version that was looked at last."""
    _refused: dict[str, tuple[Fingerprint, str]] = field(default_factory=dict)
    """Versions that were refused, with their files as they were, and why."""

    def deliver(self) -> None:
        """Carry out the order, if there is one; on the loader's thread."""
        if self.order is not None:
            delivery = self._deliver(self.order)
            self.order, self.delivery = None, delivery

    def _deliver(self, version: str) -> Delivery:
        try:
            candidate = self.repository.local(self.repository.find(version))
        except StartError as error:
            return Delivery(Loaded(version, str(error), missing=True))
        files, why = self._refused.get(version, (None, ""))
        if files == candidate.fingerprint:
            return Delivery(Loaded(version, why))
        servable = self.load(candidate)
        if isinstance(servable, str):
            self._refused[version] = candidate.fingerprint, servable
            return Delivery(Loaded(version, servable))
        self._refused.pop(version, None)
        self.loaded[version] = candidate
        return Delivery(Loaded(version), servable)

    def note(self, candidate: Candidate, wanted: str) -> None:
        """Remember which version the settings mean; on the loader's thread.

        Args:
            wanted: as the settings have it: ``latest``, a version, or an alias.
        """
        name = candidate.version.name
        if self._noted == (name, candidate.fingerprint):
            return
        try:
            digest = digest_of(self.repository.local(candidate))
        except (OSError, StartError):  # its files come and go: at the next look
            return
        self._noted = name, candidate.fingerprint
        self.meant = Meant(name, digest, wanted == LATEST)
