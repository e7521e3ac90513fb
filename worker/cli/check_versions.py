"""What ``check`` says of models in repositories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from worker.settings import Settings

if TYPE_CHECKING:
    from worker.model.repository import Candidate


def with_versions(check: Callable[..., Any], configured: Settings) -> Settings | None:
    """The settings with the files of the versions that they mean, where models come from a repository; None if there is no
    such version."""
    parts = (part for pipeline in configured.pipelines.values() for part in pipeline.parts.values())
    if all(part.model.repository is None for part in parts):
        return configured
    from worker.serving.versions import resolved

    def line(found: tuple[Settings, Mapping[str, Candidate]]) -> str:
        told = ", ".join(
            f"{name}: {each.folder}"
            if each.folder.name == each.version.name
            else f"{name}: {each.version.name}, copied to {each.folder}"
            for name, each in found[1].items()
        )
        return told or "found for every step"

    found: tuple[Settings, Any] | None = check("version", lambda: resolved(configured), line)
    return found[0] if found is not None else None
