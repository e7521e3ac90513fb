"""Models with versions in a registry of MLflow: ``mlflow:models:/<name>@<alias>``.

Its light client (the package ``mlflow-skinny``) asks the registry and copies the files. Which registry that is, and with which
credentials, is what MLflow's own environment variables say, such as ``MLFLOW_TRACKING_URI``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker import extras
from worker.errors import StartError
from worker.model.cache import Cache
from worker.model.repository import (
    MODEL,
    SUM,
    Candidate,
    Damaged,
    RepositoryAway,
    Versions,
    lacking,
    mismatch,
)
from worker.model.versions import version_of

_QUIETER = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the loader asks again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Of MLflow's environment variables: what counts here if the user has not set them."""
_GONE = "RESOURCE_DOES_NOT_EXIST"


class MlflowVersions(Versions):
    """The versions of one registered model.

    Args:
        name: of the registered model.
        cache: where the files of versions are copied to.
        needs: a file that a version must have; None = any.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, name: str, cache: Cache, needs: str | None = MODEL) -> None:
        super().__init__(f"mlflow:models:/{name}")
        for variable, value in _QUIETER.items():
            os.environ.setdefault(variable, value)
        why = "model.repository mlflow:"
        mlflow = extras.load("mlflow", extra="mlflow", why=why)
        self._artifacts = extras.load("mlflow.artifacts", extra="mlflow", why=why)
        self._client = mlflow.MlflowClient()
        self._name = name
        self._cache = cache
        self._needs = needs
        self._damaged: dict[str, str] = {}
        """Versions whose files are no model, and why. A registry's version never changes its files."""

    def versions(self) -> list[Candidate]:
        quoted = self._name.replace("'", "''")
        try:
            found = [*self._client.search_model_versions(f"name='{quoted}'")]
        except Exception as error:
            raise self._translated(error) from None
        candidates = [self._candidate(each) for each in found]
        return sorted(candidates, key=lambda each: each.version, reverse=True)

    def alias_file(self) -> bytes:
        """Empty: the registry itself has the aliases."""
        return b""

    def aliases(self) -> dict[str, str]:
        try:
            return {
                str(alias): str(version)
                for alias, version in self._client.get_registered_model(self._name).aliases.items()
            }
        except Exception as error:
            raise self._translated(error) from None

    def local(self, candidate: Candidate) -> Candidate:
        """The version with its files in the cache.

        Raises:
            Damaged: they are no model, or not what a ``model.sha256`` among them says.
            RepositoryAway: the registry, or the store behind it, cannot be reached.
        """
        name = candidate.version.name
        url = f"models:/{self._name}/{name}"
        key = hashlib.sha256(f"{url} {candidate.fingerprint}".encode()).hexdigest()
        try:
            nbytes = 0 if self._cache.place(key).is_dir() else sum(self._sizes(url))
            hold, wrong = self._cache.get(
                key,
                nbytes,
                lambda folder: self._download(url, folder),
                self._wrong,
            )
        except StartError:
            raise
        except Exception as error:
            raise self._translated(error) from None
        if wrong is not None:
            hold.close()
            self._damaged[name] = wrong
            raise Damaged(f"model.version: {self.place}/{name} is not complete: {wrong}")
        return Candidate(candidate.version, self._cache.place(key), candidate.fingerprint, hold=hold)

    def _candidate(self, found: Any) -> Candidate:
        name = str(found.version)
        version = version_of(name)
        assert version is not None
        stamp = hashlib.sha256(f"{found.source} {found.creation_timestamp}".encode()).digest()[:8]
        files = (("", 0, int.from_bytes(stamp, "big"), 0),)
        why = self._damaged.get(name)
        if why is None and found.status != "READY":
            why = f"its status in the registry is {found.status}"
        return Candidate(version, Path(self.place, name), files, why, damaged=name in self._damaged)

    def _sizes(self, url: str) -> Iterator[int]:
        """Bytes of each file of a version."""
        root = self._client.get_model_version_download_uri(*url.removeprefix("models:/").rsplit("/", 1))
        folders = [""]
        while folders:
            path = folders.pop()
            for each in self._artifacts.list_artifacts(artifact_uri=f"{root}/{path}".rstrip("/")):
                inside = f"{path}/{each.path.rsplit('/', 1)[-1]}".lstrip("/")
                if each.is_dir:
                    folders.append(inside)
                else:
                    yield each.file_size or 0

    def _download(self, url: str, folder: Path) -> None:
        self._artifacts.download_artifacts(artifact_uri=url, dst_path=str(folder))

    def _wrong(self, folder: Path) -> str | None:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if why := lacking(names, self._needs):
            return why
        return mismatch(folder, self._needs) if SUM in names else None

    def _translated(self, error: Exception) -> StartError:
        if getattr(error, "error_code", "") == _GONE:
            return StartError(f"model.repository: the MLflow registry has no model {self._name}")
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return RepositoryAway(f"model.repository: {self.place} cannot be read: {reason}")
