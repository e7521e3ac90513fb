"""The schema registry of a configuration, opened for a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.registry import INPUT_FORMATS, OUTPUT_FORMATS
from worker.schema_registry.book import Schemas
from worker.schema_registry.client import RegistryClient, open_schemas

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.settings.schema_registry import RegistrySettings


@dataclass(frozen=True)
class Registry:
    """The schemas of the records that are read, and the client with which those of the results are registered."""

    settings: RegistrySettings
    schemas: Schemas
    client: RegistryClient | None
    """None where no registry is asked: only a folder is configured, or the check is offline."""
    registers: bool = True
    """Whether the schemas of the results are looked up and registered; ``check`` does not."""

    @property
    def place(self) -> str:
        """Who is asked, for people: without users and passwords."""
        return f"schema registry {self.settings.redacted().get('url', 'folder')}"

    def close(self) -> None:
        self.schemas.close()
        if self.client is not None:
            self.client.close()


def open_registry(settings: Settings, offline: bool = False, registers: bool = True) -> Registry | None:
    """The schema registry of a configuration; None if no pipeline needs one.

    Args:
        offline: ask no registry, only look into the folder.

    Raises:
        ConfigError: the client refuses its configuration or is not installed; there is no such folder.
    """
    wanted = settings.registry
    if wanted is None or not any(needing(settings)):
        return None
    client = RegistryClient(wanted) if wanted.url is not None else None
    if offline and client is not None:
        client.close()
        client = None
    return Registry(wanted, open_schemas(wanted, client), client, registers)


def needing(settings: Settings) -> list[str]:
    """The settings that name a format with a schema registry, by their keys."""
    found = []
    for name, pipeline in settings.pipelines.items():
        taken, written = pipeline.input.format, pipeline.output.format
        if getattr(INPUT_FORMATS.entry(taken), "needs_schemas", False):
            found.append(settings.key(name, "input.format"))
        if getattr(OUTPUT_FORMATS.entry(written), "needs_schemas", False):
            found.append(settings.key(name, "output.format"))
    return found
