"""Which files answer a pipeline: of a model in a repository, those of the version that the settings mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from worker.errors import ConfigError, StartError
from worker.model.cache import Cache
from worker.model.fingerprint import files_sha256
from worker.model.repository import LATEST, MODEL, Candidate, Damaged, Repository, Versions
from worker.model.signed import PublicKey
from worker.model.stored import StoredVersions
from worker.registry import TREES
from worker.settings import Settings
from worker.settings.choice import Chosen
from worker.settings.repository import registered
from worker.settings.sections import ModelSettings, PipelineSettings, StepSettings
from worker.stores.allow import Allowed
from worker.stores.url import Url

GOLDEN = "golden.jsonl"
_kept: list[Candidate] = []
"""Versions of steps: their copies stay in the cache until the process ends."""

log = structlog.get_logger()


def repository_of(settings: Settings, pipeline: str) -> Versions | None:
    """The repository that a pipeline's model comes from; None where its model is one file.

    Raises:
        ConfigError: what reads its store is not installed, or an option of the store does not fit.
    """
    return _repository(settings.pipelines[pipeline].model)


def _repository(model: ModelSettings) -> Versions | None:
    """See :func:`repository_of`."""
    if model.repository is None:
        return None
    needs = MODEL if model.code is None else None
    if (known := registered(model.repository)) is not None:
        from worker.model.mlflow import MlflowVersions

        return MlflowVersions(known[0], Cache(_cache_folder(model.cache), model.cache_bytes), needs)
    assert model.name is not None
    if isinstance(model.repository, Path):
        return Repository(model.repository, model.name, needs=needs)
    (root,) = Allowed([model.repository]).roots
    url = Url(root.scheme, root.host, root.port, f"{root.path}{model.name}/")
    tree = TREES.entry(url.scheme)(url, model.store_options)
    cache = Cache(_cache_folder(model.cache), model.cache_bytes)
    return StoredVersions(str(url).rstrip("/"), tree, cache, needs)


def _cache_folder(configured: Path | None) -> Path:
    """Where copies of versions go.

    Raises:
        ConfigError: no folder is configured, and the user has no home.
    """
    if configured is not None:
        return configured
    found = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(found) if os.path.isabs(found) else Path.home() / ".cache") / "streaminfer"
    except RuntimeError:
        raise ConfigError("model.cache: expected a folder, because this user has no home") from None


def wanted(settings: Settings, pipeline: str) -> str:
    """The version that the settings ask for: ``latest``, a version, or an alias."""
    return _meant(settings.pipelines[pipeline].model)


def _meant(model: ModelSettings) -> str:
    _, named = registered(model.repository) or ("", None)
    return model.version or named or LATEST


def resolved(
    settings: Settings, decided: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, Candidate]]:
    """The settings with the files of the versions that they mean, and those versions by pipeline.

    Args:
        decided: by pipeline the version that counts instead, because the control topic says so.

    Raises:
        StartError: a repository cannot be reached or does not have the version, or the version is not complete or not signed.
    """
    found: dict[str, Candidate] = {}
    for name in settings.pipelines:
        repository = repository_of(settings, name)
        if repository is None:
            continue
        version = (decided or {}).get(name)
        try:
            found[name] = _first(repository, version or wanted(settings, name))
        except StartError as error:
            if version is None:
                raise
            raise StartError(
                f"control.topic: version {version} answers {name} by what was decided last, but {error}"
            ) from None
        check_signed(settings, name, found[name])
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
    return files_sha256(candidate.folder)


def _first(repository: Versions, wanted: str) -> Candidate:
    """The version to start with, on this machine; of the latest ones, the first that is what its checksum says."""
    while True:
        candidate = repository.find(wanted, patient=True)
        try:
            return repository.local(candidate)
        except Damaged as error:
            if wanted != LATEST:
                raise
            log.error(
                "model version refused", version=candidate.version.name, reason="checksum", message=str(error)
            )


def check_signed(settings: Settings, pipeline: str, candidate: Candidate) -> None:
    """Verify the signature of a version, where the settings ask for one.

    Raises:
        StartError: it has no valid one.
        ConfigError: the key cannot be read, or what verifies it is not installed.
    """
    model = settings.pipelines[pipeline].model
    _check_signed(model, settings.key(pipeline, "model"), candidate)


def _check_signed(model: ModelSettings, key: str, candidate: Candidate) -> None:
    if model.signature is not None:
        PublicKey(model.signature.public_key, f"{key}.signature.public_key").check(candidate.folder)


def _with_steps(settings: Settings, pipeline: str) -> Settings:
    """The settings with the files of the versions that a pipeline's steps mean. They stay until the process ends."""
    wanted = settings.pipelines[pipeline]
    if wanted.steps is None or all(step.model.repository is None for step in wanted.steps):
        return settings
    steps = []
    for index, step in enumerate(wanted.steps):
        repository = _repository(step.model)
        if repository is not None:
            candidate = _first(repository, _meant(step.model))
            _check_signed(step.model, settings.key(pipeline, f"steps.{index}.model"), candidate)
            _kept.append(candidate)
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
            "path": candidate.path if before.model.code is None else candidate.folder,
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
