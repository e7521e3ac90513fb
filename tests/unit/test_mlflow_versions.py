"""Models of an MLflow registry, asked by MLflow's own client of a registry in files. Needs the extra ``slow``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest

from worker.errors import ConfigError, StartError
from worker.serving.load import load
from worker.serving.loader import Loader, Refusal, Swap
from worker.serving.versions import resolved
from worker.settings import validate

ENVIRONMENT = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    mlflow = pytest.importorskip("mlflow", reason="no mlflow: scripts/test --all installs it")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(f"file://{tmp_path}/registry")
    client = mlflow.MlflowClient()
    client.create_registered_model("digits")
    yield client
    mlflow.set_tracking_uri(None)


def put(registry: Any, folder: Path, number: int, model: bytes | None) -> None:
    source = folder / f"run-{number}"
    (source / "aside").mkdir(parents=True)
    (source / "aside" / "notes.txt").write_text("x")
    if model is not None:
        models.write(source, model)
    registry.create_model_version("digits", source=str(source))


def document(folder: Path, place: str, **model: Any) -> dict[str, Any]:
    return {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"repository": place, "cache": str(folder / "cache"), "poll_s": 1e-9, **model},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_alias_of_the_registry_is_followed(registry: Any, tmp_path: Path) -> None:
    """The version that the alias names answers, and another one when the alias moves; one without model.onnx is refused."""
    put(registry, tmp_path, 1, models.identity())
    put(registry, tmp_path, 2, models.identity())
    put(registry, tmp_path, 3, None)
    registry.set_registered_model_alias("digits", "champion", "1")
    settings = validate(document(tmp_path, "mlflow:models:/digits@champion"), tmp_path)
    with_files, found = resolved(settings)
    took: dict[str, int] = {}
    rollouts = load(with_files, took)
    ((name, rollout),) = rollouts.items()
    assert rollout.choose().model_version == "1"
    assert (found[name].folder / "aside" / "notes.txt").read_text() == "x"
    loader = Loader(settings, rollouts, {name: (found[name], took[name])})
    loader.look()
    assert loader.turn() == []
    registry.set_registered_model_alias("digits", "champion", "3")
    loader.look()
    assert loader.turn() == [Refusal(name, "checksum")]
    registry.set_registered_model_alias("digits", "champion", "2")
    loader.look()
    (event,) = loader.turn()
    assert isinstance(event, Swap)
    assert rollout.choose().model_version == "2"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_versions_of_the_registry_may_be_named(registry: Any, tmp_path: Path) -> None:
    """A number, or the latest one; what is not there is one sentence. ``path`` takes the same as ``repository``."""
    put(registry, tmp_path, 1, models.identity())
    put(registry, tmp_path, 2, models.identity())
    for place, version in (("/1", "1"), ("", "2"), ("/latest", "2")):
        given = document(tmp_path, "")
        given["model"]["path"] = f"mlflow:models:/digits{place}"
        del given["model"]["repository"]
        _, found = resolved(validate(given, tmp_path))
        assert [each.version.name for each in found.values()] == [version]
    for place, sentence in (
        ("digits/7", "has no version 7; there are 2, 1"),
        ("digits@nobody", "got nobody, expected latest"),
        ("letters@champion", "no model letters"),
    ):
        with pytest.raises(StartError, match=sentence):
            resolved(validate(document(tmp_path, f"mlflow:models:/{place}"), tmp_path))


@pytest.mark.parametrize(
    "place", ["mlflow:", "mlflow:digits", "mlflow:models:/a/b/c", "mlflow:models:/a@b@c"]
)
def test_a_place_that_names_no_registered_model(tmp_path: Path, place: str) -> None:
    """The form is checked before anything is asked."""
    with pytest.raises(ConfigError, match="expected mlflow:models:/name"):
        validate(document(tmp_path, place), tmp_path)


def test_without_mlflow_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is an extra that only such a pipeline asks for."""
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"needs mlflow: pip install 'streaminfer\[mlflow\]'"):
        resolved(validate(document(tmp_path, "mlflow:models:/digits@champion"), tmp_path))
