"""Checks of ``labels``: which pipelines have results that labels can be compared with."""

from __future__ import annotations

from collections.abc import Iterator

from worker.errors import ConfigError
from worker.settings.sections import Settings

WITHOUT_LABELS = ("raw", "embedding", "segmentation", "tokens", "fields", "regions")
"""Postprocesses whose predictions are not compared."""


def scored_pipelines(settings: Settings) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Pipelines whose results are compared with labels, and why the others are not.

    Returns:
        Output topic -> (name of the model in its results -> pipeline; "" if only one pipeline writes there), and
        pipeline -> the reason why it is left out.
    """
    writers: dict[str, list[str]] = {}
    for name, pipeline in settings.pipelines.items():
        writers.setdefault(pipeline.output.topic, []).append(name)
    left_out = {name: why for name in settings.pipelines for why in _reasons(settings, name)}
    found: dict[str, dict[str, str]] = {}
    for topic, names in writers.items():
        scored = [name for name in names if name not in left_out]
        if scored:
            alone = len(names) == 1
            found[topic] = {
                "" if alone else str(settings.pipelines[name].model.name): name for name in reversed(scored)
            }
    return found, left_out


def check_labels(settings: Settings) -> None:
    """Refuse labels that can be compared with nothing, and a topic of labels that is another one's.

    Raises:
        ConfigError: see above.
    """
    if settings.labels is None:
        return
    topic = settings.labels.topic
    others = {"dead_letter.topic": settings.dead_letter.topic, "metrics.topic": settings.metrics.topic}
    if settings.control is not None:
        others["control.topic"] = settings.control.topic
    for name, pipeline in settings.pipelines.items():
        others[settings.key(name, "output.topic")] = pipeline.output.topic
    for key, other in others.items():
        if topic == other:
            raise ConfigError(f"labels.topic: got '{topic}', expected another topic than {key}")
    found, left_out = scored_pipelines(settings)
    if not found:
        raise ConfigError(
            f"labels: no pipeline has results that labels can be compared with: {_first(left_out)}"
        )


def _first(left_out: dict[str, str]) -> str:
    name, why = next(iter(left_out.items()))
    return f"{name} has {why}"


def _reasons(settings: Settings, name: str) -> Iterator[str]:
    pipeline = settings.pipelines[name]
    if pipeline.output.format != "json":
        yield f"output.format '{pipeline.output.format}', expected json"
    if pipeline.output.body is not None:
        yield "output.body, expected none"
    if pipeline.output.kafka is not None:
        yield "output.kafka, expected results on the cluster of the labels"
    if pipeline.output.wrap:
        yield "output.wrap, expected none"
    if pipeline.steps is not None:
        yield "steps, expected one model"
    elif pipeline.postprocess.name in WITHOUT_LABELS:
        yield (
            f"the postprocess {pipeline.postprocess.name}, expected classification, regression, detection, anomaly, "
            "ctc or custom code"
        )
