"""``defaults``: settings that every pipeline has unless it has its own."""

from __future__ import annotations

from typing import Any

from worker.errors import ConfigError
from worker.registry import CONTENTS
from worker.settings.includes import is_extra
from worker.settings.origins import Origin, Origins
from worker.settings.sections import PipelineSettings
from worker.settings.yaml_text import Key, describe

_Found = list[tuple[Key, Origin]]

NAME = "defaults"
_ONE_MODEL = ("preprocess", "model", "postprocess")
"""What ``steps`` stand in place of."""
_EITHER = {
    "path": ("repository", "signature", "store_options"),
    "repository": ("path", "sha256"),
    "code": ("shapes", "state", "providers"),
}
"""Of a model: where a pipeline has the first, the others of the defaults do not go with it."""


def lay_under(values: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """The document with its ``defaults`` in each of its pipelines.

    A mapping is merged key by key. A list, a text or a number of the pipeline stands in place of the default, and null
    takes the default away. Where one of several things is named (a postprocess, a content, ``path`` or
    ``repository``), a pipeline that names another one has nothing of the default's.

    Raises:
        ConfigError: they are no mapping.
    """
    values = dict(values)
    defaults = values.pop(NAME, None)
    if defaults is None:
        return values
    if not isinstance(defaults, dict):
        sentence = f"{NAME}: got {describe(defaults)}, expected a mapping of a pipeline's settings"
        raise ConfigError.of([origins.mistake(sentence, (NAME,))])
    defaults = {key: value for key, value in defaults.items() if not is_extra(key)}
    found = [*origins.under((NAME,))]
    pipelines = values.get("pipelines")
    if isinstance(pipelines, dict):
        values["pipelines"] = {
            name: _pipeline({} if each is None else each, defaults, origins, ("pipelines", str(name)), found)
            if each is None or isinstance(each, dict)
            else each
            for name, each in pipelines.items()
        }
    elif pipelines is None:
        own = {key: values[key] for key in PipelineSettings.model_fields if key in values}
        values |= _pipeline(own, defaults, origins, (), found)
    return values


def _pipeline(
    own: dict[str, Any], defaults: dict[str, Any], origins: Origins, at: Key, found: _Found
) -> dict[str, Any]:
    if own.get("steps") is not None:
        defaults = {key: value for key, value in defaults.items() if key not in _ONE_MODEL}
    elif any(own.get(key) is not None for key in _ONE_MODEL):
        defaults = {key: value for key, value in defaults.items() if key != "steps"}
    return _merged(own, defaults, origins, at, (), found)


def _merged(
    own: dict[str, Any], defaults: dict[str, Any], origins: Origins, at: Key, within: Key, found: _Found
) -> dict[str, Any]:
    """A mapping of a pipeline over that of the defaults.

    Args:
        at: the mapping's key in the document; ``within`` is the same from the pipeline on.
        found: the origins of the defaults, by their keys in them.
    """
    merged = dict(own)
    for key, default in _applying(own, defaults, within).items():
        here, inside = (*at, str(key)), (*within, str(key))
        mine = own.get(key)
        if key not in own:
            merged[key] = default
            for rest, origin in found:
                if rest[: len(inside)] == inside:
                    origins.inherit((*at, *rest[len(within) :]), origin, (NAME, *rest))
        elif isinstance(mine, dict) and isinstance(default, dict) and not _another(mine, default, inside):
            merged[key] = _merged(mine, default, origins, here, inside, found)
    return merged


def _another(mine: dict[str, Any], default: dict[str, Any], within: Key) -> bool:
    """Whether the pipeline names another one of several things than the defaults."""
    return within in (("postprocess",), ("input", "format")) and not mine.keys() & default.keys()


def _applying(own: dict[str, Any], defaults: dict[str, Any], within: Key) -> dict[str, Any]:
    """The defaults that go with what the pipeline has there."""
    if within == ("model",):
        away = {other for key in own if own[key] is not None for other in _EITHER.get(key, ())}
        return {key: value for key, value in defaults.items() if key not in away}
    named = {key for key in own if key in CONTENTS and own[key] is not None}
    if within[:1] == ("preprocess",) and (named or own.get("inputs")):
        held = {each for key in named for each in getattr(CONTENTS.entry(key), "holds", ())}
        kept = named | held if not own.get("inputs") else set()
        return {
            key: value
            for key, value in defaults.items()
            if (key not in CONTENTS or key in kept) and (key != "inputs" or not named)
        }
    return defaults
