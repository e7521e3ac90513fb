"""Which files answer a pipeline: of a model in a repository, those of the version that the settings mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from worker.errors import StartError
from worker.model.repository import LATEST, Candidate, Repository
from worker.settings import Settings
from worker.settings.choice import Chosen
from worker.settings.sections import PipelineSettings, StepSettings

GOLDEN = "golden.jsonl"


def repository_of(settings: Settings, pipeline: str) -> Repository | None:
    """The repository that a pipeline's model comes from; None where its model is one file."""
    model = settings.pipelines[pipeline].model
    if model.repository is None or model.name is None:
        return None
    return Repository(model.repository, model.name)


def wanted(settings: Settings, pipeline: str) -> str:
    """The version that the settings ask for: ``latest``, a version, or an alias."""
    return settings.pipelines[pipeline].model.version or LATEST


def resolved(
    settings: Settings, decided: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, Candidate]]:
    """The settings with the files of the versions that they mean, and those versions by pipeline.

    Args:
        decided: by pipeline the version that counts instead, because the control topic says so.

    Raises:
        StartError: a repository does not have the version, or it is not complete.
    """
    found: dict[str, Candidate] = {}
    for name in settings.pipelines:
        repository = repository_of(settings, name)
        if repository is None:
            continue
        version = (decided or {}).get(name)
        try:
            found[name] = repository.find(version or wanted(settings, name), patient=True)
        except StartError as error:
            if version is None:
                raise
            raise StartError(
                f"control.topic: version {version} answers {name} by what was decided last, but {error}"
            ) from None
    for name, candidate in found.items():
        settings = at(settings, name, candidate)
    for name in settings.pipelines:
        settings = _with_steps(settings, name)
    return settings, found


def digest_of(candidate: Candidate) -> str:
    """Hexadecimal SHA-256 over the names and contents of a version's files: the same on every machine.

    Raises:
        OSError: a file cannot be read, or went away.
    """
    total = hashlib.sha256()
    for name, *_ in candidate.fingerprint:
        with (candidate.folder / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        total.update(name.encode() + b"\0" + digest)
    return total.hexdigest()


def _with_steps(settings: Settings, pipeline: str) -> Settings:
    """The settings with the files of the versions that a pipeline's steps mean. They stay until the process ends."""
    wanted = settings.pipelines[pipeline]
    if wanted.steps is None or all(step.model.repository is None for step in wanted.steps):
        return settings
    steps = []
    for step in wanted.steps:
        if step.model.repository is not None and step.model.name is not None:
            repository = Repository(step.model.repository, step.model.name)
            candidate = repository.find(step.model.version or LATEST, patient=True)
            step = step.model_copy(update=_changes(step, settings.base, candidate))
        steps.append(step)
    pipelines = {**settings.pipelines, pipeline: wanted.model_copy(update={"steps": steps})}
    return settings.model_copy(update={"pipelines": pipelines})


def at(settings: Settings, pipeline: str, candidate: Candidate) -> Settings:
    """The settings with the files of one version of a pipeline's model.

    A file that a setting names relative to the configuration is taken from the version's folder if it is there: labels, a
    tokenizer.
    """
    before = settings.pipelines[pipeline]
    pipelines = {
        **settings.pipelines,
        pipeline: before.model_copy(update=_changes(before, settings.base, candidate)),
    }
    return settings.model_copy(update={"pipelines": pipelines})


def _changes(before: PipelineSettings | StepSettings, base: Path, candidate: Candidate) -> dict[str, Any]:
    """What changes in the settings around a model when it is this version."""
    folder = candidate.folder
    changed: dict[str, Any] = {
        field: _moved(getattr(before, field), base, folder) for field in ("preprocess", "postprocess")
    }
    golden = before.model.golden
    beside = folder / (golden.name if golden is not None else GOLDEN)
    changed["model"] = before.model.model_copy(
        update={
            "path": candidate.path,
            "repository": None,
            "version": candidate.version.name,
            "golden": beside if beside.is_file() else golden,
        }
    )
    return changed


def _moved(value: Any, base: Path, folder: Path) -> Any:
    """A value of the settings with each of its files taken from ``folder``, where that has it at the same place."""
    if isinstance(value, Path):
        beside = folder / value.relative_to(base) if value.is_relative_to(base) else value
        return beside if beside.is_file() else value
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: _moved(each, base, folder) for name, each in fields.items()}
        same = all(changed[name] is fields[name] for name in fields)
        return value if same else value.model_copy(update=changed)
    if isinstance(value, Chosen):
        options = _moved(value.options, base, folder)
        return value if options is value.options else replace(value, options=options)
    if isinstance(value, dict):
        moved = {name: _moved(each, base, folder) for name, each in value.items()}
        return value if all(moved[name] is value[name] for name in value) else moved
    return value
