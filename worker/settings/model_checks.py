"""Whether a model's settings go together, and whether its file is there."""

from __future__ import annotations

from worker.errors import ConfigError, StartError
from worker.filesystem import exists, instead_of_file, is_dir, is_file
from worker.settings.repository import registered
from worker.settings.sections import PipelineSettings, Settings


def check_model_file(settings: Settings, pipeline: str) -> None:
    """Refuse a model path that is no file.

    Raises:
        StartError: missing, or a directory.
    """
    for prefix, part in settings.pipelines[pipeline].parts.items():
        path, code = part.model.file, part.model.code
        if code is not None:
            if not exists(path):
                key = settings.key(pipeline, f"{prefix}model.path")
                raise StartError(
                    f"{key}: {path} {instead_of_file(path)}; expected a file or a folder for {code}"
                )
        elif not is_file(path):
            also = ", or a folder with model.onnx" if is_dir(path) else ""
            key = settings.key(pipeline, f"{prefix}model.path")
            raise StartError(f"{key}: {path} {instead_of_file(path)}; expected an ONNX file{also}")


def check_model(pipeline: PipelineSettings, key: str) -> None:
    """A model is one file, or one of a repository."""
    model = pipeline.model
    if model.path is None and model.repository is None:
        raise ConfigError(f"{key}.path is required, or {key}.repository with {key}.name")
    if model.devices is not None and model.providers[:1] == ["cpu"]:
        raise ConfigError(
            f"{key}.devices: got {model.devices}, expected none with {key}.providers: [cpu], because devices are GPUs; "
            "expected cuda or tensorrt first"
        )
    if model.code is not None:
        for other in ("shapes", "state"):
            if getattr(model, other):
                raise ConfigError(f"{key}.{other}: expected not to be set beside {key}.code")
        if model.providers != ["cpu"]:
            raise ConfigError(
                f"{key}.providers: got {model.providers}, expected nothing beside {key}.code, "
                "which chooses by itself what it runs on"
            )
    if model.repository is None:
        for other in ("signature", "store_options"):
            if getattr(model, other):
                raise ConfigError(f"{key}.{other}: expected {key}.repository beside it")
        return
    for other, given in (("path", model.path), ("sha256", model.sha256)):
        if given is not None:
            raise ConfigError(f"{key}.{other}: expected not to be set beside {key}.repository")
    if registered(model.repository) is not None:
        if model.store_options:
            raise ConfigError(f"{key}.store_options: expected MLflow's environment variables instead")
        return
    if model.name is None or "/" in model.name or model.name in (".", ".."):
        raise ConfigError(f"{key}.name: expected the name of the model's folder in {key}.repository")
