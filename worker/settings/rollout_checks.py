"""Checks of what a rollout needs: a control topic of its own, a repository, and settings that go together."""

from __future__ import annotations

from collections.abc import Collection

from worker.errors import ConfigError
from worker.settings.sections import Settings
from worker.topics import is_pattern


def check_control(settings: Settings) -> None:
    """The control topic is nobody else's topic, and some model has versions.

    Raises:
        ConfigError: naming the setting.
    """
    if settings.control is None:
        return
    topic = settings.control.topic
    others: dict[str, Collection[str | None]] = {
        "dead_letter.topic": [settings.dead_letter.topic],
        "metrics.topic": [settings.metrics.topic],
    }
    for name, pipeline in settings.pipelines.items():
        others[settings.key(name, "input.topics")] = pipeline.input.names
        others[settings.key(name, "output.topic")] = [pipeline.output.topic]
        others[settings.key(name, "rollout.topic")] = [pipeline.rollout.topic if pipeline.rollout else None]
    for key, topics in others.items():
        if topic in topics:
            raise ConfigError(f"control.topic: got '{topic}', expected another topic than that of {key}")
    for name, pipeline in settings.pipelines.items():
        first = pipeline.input.topics[0]
        if pipeline.model.repository is not None and is_pattern(first):
            raise ConfigError(
                f"{settings.key(name, 'input.topics')}: got '{first}', expected the name of a topic as the first one: the "
                "replica that owns its partition 0 writes what is decided to the control topic"
            )
    if all(pipeline.model.repository is None for pipeline in settings.pipelines.values()):
        raise ConfigError("control: expected a pipeline with model.repository, because no model has versions")


def check_rollout(settings: Settings, name: str) -> None:
    """A pipeline's rollout has versions to try, and a place to write down what is decided.

    Raises:
        ConfigError: naming the setting.
    """
    pipeline = settings.pipelines[name]
    rollout, key = pipeline.rollout, settings.key(name, "rollout")
    if rollout is None:
        return
    if settings.control is None:
        raise ConfigError(
            f"{key}: needs a control topic, in which all replicas read what is decided; expected "
            "control: {topic: <name>}"
        )
    if pipeline.model.repository is None:
        raise ConfigError(
            f"{key}: needs {settings.key(name, 'model.repository')}, because a file has no versions"
        )
    if rollout.topic is None:
        return
    if rollout.mode != "shadow":
        raise ConfigError(
            f"{key}.topic: goes with {key}.mode: shadow only; a canary's results go to output.topic"
        )
    read = any(rollout.topic in each.input.names for each in settings.pipelines.values())
    if read or rollout.topic == pipeline.output.topic:
        raise ConfigError(f"{key}.topic: got '{rollout.topic}', expected a topic of its own")
