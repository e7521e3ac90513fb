"""What custom model code takes if its class does not say so: it follows from what records hold."""

from __future__ import annotations

from typing import Any

from worker.errors import ConfigError
from worker.features.picture import ImageSettings
from worker.model.code import declared_specs
from worker.model.signature import TensorSpec
from worker.registry import INPUT_FORMATS
from worker.settings import PipelineSettings

NAME = "input"
"""Of the one input."""
_SHAPES: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "numeric": ("float32", (None,)),
    "audio": ("float32", (None,)),
    "bytes": ("uint8", (None,)),
    "text": ("str", ()),
}


def inputs_of(settings: PipelineSettings, key: str) -> tuple[TensorSpec, ...]:
    """The inputs that a pipeline's contents fill: one called ``input``, or those named in ``preprocess.inputs``.

    Args:
        key: the setting that names the class, for an error's sentence.

    Raises:
        ConfigError: the contents do not tell.
    """
    preprocess = settings.preprocess
    if preprocess.inputs:
        chosen = {name: source.content for name, source in preprocess.inputs.items()}
    else:
        chosen = {NAME: preprocess.content}
    default = INPUT_FORMATS.entry(settings.input.format).contents[:1]
    declared: dict[str, Any] = {}
    for name, content in chosen.items():
        kind = content.name if content is not None else next(iter(default), "")
        options = content.options if content is not None else None
        found = _image(options) if kind == "image" else _SHAPES.get(kind)
        if found is None:
            raise ConfigError(
                f"{key}: input.format {settings.input.format} does not tell what an item is; "
                'expected the class to say it: inputs = {"x": ("float32", (4,))}'
            )
        if kind == "numeric" and settings.input.fields:
            found = ("float32", (len(settings.input.field_names),))
        declared[name] = found
    return declared_specs(declared, key)


def _image(options: Any) -> tuple[str, tuple[int | None, ...]]:
    """Pictures as the settings shape them; channels first unless they say otherwise."""
    wanted = options if isinstance(options, ImageSettings) else ImageSettings()
    height, width = wanted.size or (None, None)
    channels = 1 if wanted.color == "gray" else 3
    return "float32", (height, width, channels) if wanted.layout == "nhwc" else (channels, height, width)
