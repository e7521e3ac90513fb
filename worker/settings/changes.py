"""What differs between the configuration in force and the one that is wanted, and what of it counts without a restart.

:func:`merged` is the one place that says what may change while records go on. Whatever it leaves as it was needs a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import ConfigError
from worker.settings.checks import check_together
from worker.settings.model_checks import check_model_file
from worker.settings.references import labels_of
from worker.settings.sections import PipelineSettings, Settings
from worker.settings.yaml_text import describe, dotted

LIMITS = (
    "batch_timeout_s",
    "stall_s",
    "retry_s",
    "outage_s",
    "drain_s",
    "revoke_s",
    "max_age_ms",
    "expired",
)
"""Of ``limits``. Those that count bytes or pixels need a restart: clients and decoders are made with them."""
OF_REPOSITORY = ("version", "poll_s", "golden", "tolerance")
"""Of ``model``, where it comes from a repository."""
OF_FILE = ("path", "version", "sha256", "golden", "tolerance")
"""Of ``model``, where it is one file."""

_Flat = dict[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two configurations."""

    settings: Settings
    """What is in force afterwards: the settings of before, with what may change."""
    live: Mapping[str, str]
    """By the name of each setting that changes, from what to what, for people."""
    restart: tuple[str, ...]
    """Settings that are wanted otherwise and need a restart."""
    models: tuple[str, ...]
    """Pipelines whose model, preprocess or postprocess changes: who answers them is made anew."""


def changes(before: Settings, wanted: Settings) -> Changes:
    """What becomes of a configuration that takes the place of another one.

    Raises:
        ConfigError: what may change does not go together with what needs a restart.
        StartError: a model's file is missing.
    """
    check_files(wanted)
    wanted = _aligned(before, wanted)
    settings = merged(before, wanted)
    try:
        check_together(settings)
    except ConfigError as error:
        raise ConfigError(
            f"without a restart only a part of the changes counts, and then: {error}; expected a restart"
        ) from None
    models = tuple(
        name
        for name, old in before.pipelines.items()
        if old.model.repository is None and _answered_by(old) != _answered_by(settings.pipelines[name])
    )
    return Changes(
        settings,
        dict(_told(before, settings)),
        tuple(name for name, _ in _told(settings, wanted)),
        models,
    )


def _aligned(before: Settings, wanted: Settings) -> Settings:
    """Where there is one pipeline, it stays the same one whatever its name is, which may come from the model's file."""
    if len(before.pipelines) != 1 or len(wanted.pipelines) != 1:
        return wanted
    (name,), (pipeline,) = before.pipelines, wanted.pipelines.values()
    return wanted.model_copy(update={"pipelines": {name: pipeline}})


def check_files(settings: Settings) -> None:
    """Refuse settings whose models or labels are not there; versions in a repository may still come.

    Raises:
        ConfigError: a file of labels cannot be read.
        StartError: a model's file is missing.
    """
    for name, pipeline in settings.pipelines.items():
        if all(part.model.repository is None for part in pipeline.parts.values()):
            check_model_file(settings, name)
    for key, path in settings.label_files():
        labels_of(path, key)


def merged(before: Settings, wanted: Settings) -> Settings:
    """The settings of before, with those of ``wanted`` that may change while records go on."""
    limits = {name: getattr(wanted.limits, name) for name in LIMITS}
    if any(_has_clips(each) for each in before.pipelines.values()):
        limits["batch_timeout_s"] = before.limits.batch_timeout_s  # their decoders are made with it
    changed: dict[str, Any] = {
        "limits": before.limits.model_copy(update=limits),
        "log": wanted.log,
        "transaction": wanted.transaction,
        "tests": wanted.tests,
        "labels": wanted.labels,  # a worker does not read them
        "dead_letter": wanted.dead_letter.model_copy(update={"topic": before.dead_letter.topic}),
        "pipelines": {
            name: _pipeline(old, wanted.pipelines[name], before.control is not None)
            if name in wanted.pipelines
            else old
            for name, old in before.pipelines.items()
        },
    }
    if before.tracing is not None and wanted.tracing is not None:
        sampling = {name: getattr(wanted.tracing, name) for name in ("sample", "max_per_s")}
        changed["tracing"] = before.tracing.model_copy(update=sampling)
    if before.encryption is not None and wanted.encryption is not None:
        changed["encryption"] = wanted.encryption
    copy = before.model_copy(update=changed)
    copy._base, copy._origins = before.base, wanted.origins
    return copy


def _pipeline(before: PipelineSettings, wanted: PipelineSettings, controlled: bool) -> PipelineSettings:
    changed: dict[str, Any] = {
        "batching": before.batching.model_copy(update={"max_wait_ms": wanted.batching.max_wait_ms})
    }
    rollout = wanted.rollout
    if rollout is not None:
        known = before.rollout if rollout.mode == "shadow" else None
        topic = known.topic if known is not None else None
        rollout = rollout.model_copy(update={"topic": topic})
    if controlled or rollout is None:
        changed["rollout"] = rollout
    from_file = before.model.repository is None
    if (wanted.model.repository is None) == from_file:
        names = OF_FILE if from_file else OF_REPOSITORY
        changed["model"] = before.model.model_copy(
            update={name: getattr(wanted.model, name) for name in names}
        )
    if from_file and before.steps is None and wanted.steps is None and before.input.window is None:
        changed |= {"preprocess": wanted.preprocess, "postprocess": wanted.postprocess}
    return before.model_copy(update=changed)


def _has_clips(pipeline: PipelineSettings) -> bool:
    parts = pipeline.parts.values()
    return any(content.name == "video" for part in parts for content in part.preprocess.contents) or any(
        part.input.format == "video" for part in parts
    )


def _answered_by(pipeline: PipelineSettings) -> tuple[Any, ...]:
    """What of a pipeline's settings its decoder, model and encoder are made of, as far as that may change."""
    model = pipeline.model
    return model.path, model.version, model.sha256, pipeline.preprocess, pipeline.postprocess


def _told(before: Settings, after: Settings) -> Iterator[tuple[str, str]]:
    """Every setting that differs, by its name as the user most likely wrote it, with both values."""
    old, new = (dict(_flat(each.model_dump(mode="json", by_alias=True))) for each in (before, after))
    shown_old, shown_new = (dict(_flat(each.redacted())) for each in (before, after))
    alone = len(before.pipelines) == 1 == len(after.pipelines)
    come, gone = after.pipelines.keys() - before.pipelines, before.pipelines.keys() - after.pipelines
    for key in dict.fromkeys((*old, *new)):
        if key[0] == "pipelines" and key[1] in come | gone:
            continue
        if _differs(old, new, key):
            name = key[2:] if alone and key[0] == "pipelines" and len(key) > 2 else key
            yield dotted(name), _from_to(shown_old, shown_new, key)
    for pipeline in (*before.pipelines, *after.pipelines):
        if pipeline in come | gone:
            yield dotted(["pipelines", pipeline]), "new" if pipeline in come else "gone"
    if not come | gone and [*before.pipelines] != [*after.pipelines]:
        yield "pipelines", "another order"


def _differs(old: _Flat, new: _Flat, key: tuple[str, ...]) -> bool:
    """Whether a setting differs; a section that is given or not does so by its own settings."""
    if key in old and key in new:
        return bool(old[key] != new[key])
    other = new if key in old else old
    return not any(each[: len(key)] == key and len(each) > len(key) for each in other)


def _from_to(old: _Flat, new: _Flat, key: tuple[str, ...]) -> str:
    before, after = (describe(each[key]) if key in each else "not set" for each in (old, new))
    return "another value" if before == after else f"{before} -> {after}"


def _flat(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no mapping, by its path; an empty mapping counts as a value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, (*key, str(name)))
    else:
        yield key, value
