"""A configuration file as it is now, with a digest by which people tell one state of it from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.settings.document import load
from worker.settings.encryption import FILE
from worker.settings.sections import Settings

DIGITS = 8


@dataclass(frozen=True, slots=True)
class Current:
    """A configuration that was read and checked."""

    settings: Settings
    digest: str
    """The first 8 hex digits of the SHA-256 over the file, as ``sha256sum`` shows it, and over those that it includes, one
    after the other."""

    def of_replica(self, index: int | None) -> Current:
        """Those of one of several replicas: a configured client.id gets its index, so that no two share one."""
        settings = self.settings
        if index is None or "client.id" not in settings.kafka:
            return self
        kafka = {**settings.kafka, "client.id": f"{settings.kafka['client.id']}-{index}"}
        named = settings.model_copy(update={"kafka": kafka})
        named._base, named._origins = settings.base, settings.origins
        return replace(self, settings=named)

    @property
    def files(self) -> list[Path]:
        """The files that the configuration was read of, the main one first, and those that hold keys."""
        return [*self.settings.origins.files, *self.key_files]

    @property
    def key_files(self) -> list[Path]:
        """The files that hold keys of encrypted payloads."""
        encryption = self.settings.encryption
        keys = encryption.keys.values() if encryption is not None else ()
        return [Path(text.removeprefix(FILE)) for text in keys if text.startswith(FILE)]


def read_current(path: Path, overrides: Sequence[str] = ()) -> Current:
    """The settings of a file with ``--set`` overrides, checked, and its digest.

    Raises:
        ConfigError: as :func:`worker.settings.load`.
    """
    settings = load(path, overrides)
    return Current(settings, settings.origins.digest[:DIGITS])
