"""What ``check`` says of labels: which results are compared with them, and whether their topics fit together."""

from __future__ import annotations

from worker.settings import Settings, scored_pipelines


def labels_line(settings: Settings) -> str:
    """What `streaminfer score` would join, in one phrase."""
    assert settings.labels is not None
    found, left_out = scored_pipelines(settings)
    scored = ", ".join(name for names in found.values() for name in names.values())
    rest = "".join(f"; not {name}: it has {why}" for name, why in left_out.items())
    return f"results of {scored} with labels of {settings.labels.topic} by {settings.labels.id}{rest}"


def topics_line(settings: Settings) -> str:
    """The topics as the broker has them.

    Raises:
        StartError: one is missing, or results and labels have not equally many partitions.
    """
    from worker.kafka.scored import find_topics

    assert settings.labels is not None
    found, _ = scored_pipelines(settings)
    labels = settings.labels.topic
    topics = find_topics(settings, [*found], labels, None)
    return f"{', '.join(found)} and {labels} have {topics.partitions[labels]} partitions each"
