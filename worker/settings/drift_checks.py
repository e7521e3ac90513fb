"""Checks of what a comparison with a profile needs."""

from __future__ import annotations

from worker.errors import ConfigError
from worker.settings.sections import Settings


def check_drift(settings: Settings, name: str) -> None:
    """Refuse a comparison of what is not measured.

    Raises:
        ConfigError: the pipeline answers windows over records.
    """
    pipeline = settings.pipelines[name]
    if pipeline.drift is not None and pipeline.input.window is not None:
        raise ConfigError(
            f"{settings.key(name, 'drift')}: does not go with input.window: records are single samples, not what is answered"
        )
