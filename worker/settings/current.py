"""A configuration file as it is now, with a digest by which people tell one state of it from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from worker.errors import ConfigError
from worker.settings.document import load
from worker.settings.encryption import FILE
from worker.settings.sections import Settings

DIGITS = 8
TRIES = 3
"""How often a file is read that changes while it is read."""


@dataclass(frozen=True, slots=True)
class Current:
    """A configuration that was read and checked."""

    settings: Settings
    digest: str
    """The first 8 hex digits of the SHA-256 over the file, as ``sha256sum`` shows it."""

    def of_replica(self, index: int | None) -> Current:
        """Those of one of several replicas: a configured client.id gets its index, so that no two share one."""
        settings = self.settings
        if index is None or "client.id" not in settings.kafka:
            return self
        kafka = {**settings.kafka, "client.id": f"{settings.kafka['client.id']}-{index}"}
        named = settings.model_copy(update={"kafka": kafka})
        named._base = settings.base
        return replace(self, settings=named)

    @property
    def key_files(self) -> list[Path]:
        """The files that hold keys of encrypted payloads."""
        encryption = self.settings.encryption
        keys = encryption.keys.values() if encryption is not None else ()
        return [Path(text.removeprefix(FILE)) for text in keys if text.startswith(FILE)]


def read_current(path: Path, overrides: Sequence[str] = ()) -> Current:
    """The settings of a file with ``--set`` overrides, checked, and its digest.

    Raises:
        ConfigError: as :func:`worker.settings.load`, or the file changes all the time.
    """
    for _ in range(TRIES):
        before = _bytes(path)
        settings = load(path, overrides)
        if before == _bytes(path):
            return Current(settings, sha256(before).hexdigest()[:DIGITS])
    raise ConfigError(f"{path}: it changes while it is read; expected a file that is written once")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return b""  # reading the settings says what is wrong
