"""What does not go with ``delivery: queue``: whatever needs the order of a partition, its position, or its owner."""

from __future__ import annotations

from worker.errors import ConfigError
from worker.registry import INPUT_FORMATS
from worker.settings.sections import Settings
from worker.topics import is_pattern


def check_queue(settings: Settings) -> None:
    """Refuse what a share group cannot give.

    Raises:
        ConfigError: naming the setting.
    """
    if settings.delivery != "queue":
        return
    if settings.order != "none":
        raise ConfigError(
            "order: got 'partition', expected none with delivery: queue, because a share group keeps no order"
        )
    if settings.control is not None:
        raise ConfigError(
            "control: does not go with delivery: queue: the owner of a partition writes what is decided, and a share group "
            "has none"
        )
    starts = {pipeline.input.start for pipeline in settings.pipelines.values()}
    if len(starts) > 1:
        raise ConfigError(
            "input.start: expected the same for all pipelines with delivery: queue: the group has one"
        )
    for name, pipeline in settings.pipelines.items():
        taken = pipeline.input
        wants = {
            "window": taken.window is not None,
            "keep": taken.keep != "all",
            "reference": taken.reference is not None,
            "format": bool(getattr(INPUT_FORMATS.entry(taken.format), "needs_schemas", False)),
            "topics": any(map(is_pattern, taken.topics)),
        }
        for setting in (setting for setting, given in wants.items() if given):
            reason = {
                "topics": "a share group reads topics by name only",
                "format": "records that wait for a schema outlive their loan",
                "reference": "records that wait for a store outlive their loan",
            }.get(setting, "a share group keeps no order")
            raise ConfigError(
                f"{settings.key(name, f'input.{setting}')}: does not go with delivery: queue: {reason}"
            )
