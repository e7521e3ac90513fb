"""From a document to settings, and the JSON Schema of such documents.

A pipeline may stand at the top of the file or under ``pipelines``; both become the same :class:`Settings`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.errors import ConfigError
from worker.settings.checks import check_together
from worker.settings.choice import DEFINED, INLINE, ChoiceOf, NameIn
from worker.settings.kinds import INPUT_FORMAT
from worker.settings.sections import CONTENT, POSTPROCESS, PipelineSettings, Settings
from worker.settings.source import Key, describe, read, sentence


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Settings:
    """The settings in the YAML file ``path`` with ``--set`` overrides (``a.b=yaml``) laid over them.

    Raises:
        ConfigError: one sentence that names the file, the key, what was there and what was expected.
    """
    path = Path(path)
    try:
        return validate(read(path, overrides), path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def validate(document: dict[str, Any], base: Path) -> Settings:
    """The settings a parsed document stands for; relative paths start at the directory ``base``.

    Raises:
        ConfigError: one sentence that names the key, what was there and what was expected.
    """
    folded, hidden = _fold(document)
    try:
        settings = Settings.model_validate(folded, context={"base": base.absolute()})
    except ValidationError as error:
        raise ConfigError(sentence(error, folded, _known_keys(at_top=bool(hidden)), hidden)) from None
    settings._base = base.absolute()
    check_together(settings)
    if any(settings.custom_code()):
        for folder in (str(base.absolute()), os.getcwd()):
            if folder not in sys.path:
                sys.path.append(folder)
    return settings


def _fold(document: dict[str, Any]) -> tuple[dict[str, Any], Key]:
    """The document with a pipeline at its top moved under ``pipelines``, names filled in.

    Returns it with the leading keys that the user did not write: ``("pipelines", name)`` or nothing.
    """
    folded = dict(document)
    at_top = {key: folded.pop(key) for key in PipelineSettings.model_fields if key in folded}
    if at_top and folded.get("pipelines") is not None:
        raise ConfigError(
            f"{next(iter(at_top))}: expected under pipelines.<name>, because pipelines is there: "
            "a pipeline stands at the top of the file or under pipelines, not both"
        )
    for key in ("dead_letter", "kafka"):
        folded[key] = {} if folded.get(key) is None else folded[key]
    if folded.get("pipelines") is None:
        if folded.get("name") is None:
            folded["name"] = _stem(at_top)
        name = str(folded["name"])
        folded["pipelines"] = {name: at_top}
        hidden: Key = ("pipelines", name)
    else:
        hidden = ()
    if not isinstance(folded["pipelines"], dict):
        got = describe(folded["pipelines"])
        raise ConfigError(f"pipelines: got {got}, expected names with a pipeline each")
    folded["pipelines"] = {
        str(name): _with_sections(pipeline, str(name)) for name, pipeline in folded["pipelines"].items()
    }
    if folded.get("name") is None:
        folded["name"] = next(map(_stem, folded["pipelines"].values()), "worker")
    return folded, hidden


def _with_sections(pipeline: Any, name: str) -> Any:
    """A pipeline with its required sections there, so that an error names the setting that is missing."""
    if pipeline is None:
        pipeline = {}
    if not isinstance(pipeline, dict):
        return pipeline
    steps = pipeline.get("steps")
    required = ("input", "model", "output") if steps is None else ("input", "output")
    sections = {key: {} if pipeline.get(key) is None else pipeline[key] for key in required}
    if steps is None:
        return pipeline | sections | {"model": _named(sections["model"], name)}
    if isinstance(steps, list):
        sections["steps"] = [_step(each) if isinstance(each, dict) else each for each in steps]
    return {key: value for key, value in pipeline.items() if value is not None} | sections


def _step(step: dict[Any, Any]) -> dict[Any, Any]:
    return step | {"model": _named(step.get("model"), str(step.get("name")))}


def _named(model: Any, name: str) -> Any:
    """The section of a model, with a name where it has none."""
    model = {} if model is None else model
    return {**model, "name": name} if isinstance(model, dict) and model.get("name") is None else model


def _stem(pipeline: Any) -> str:
    model = pipeline.get("model") if isinstance(pipeline, dict) else None
    if isinstance(pipeline, dict) and isinstance(steps := pipeline.get("steps"), list) and steps:
        return _stem(steps[0])
    if not isinstance(model, dict):
        return "worker"
    if model.get("path") is None and model.get("name"):
        return str(model["name"])
    return Path(str(model.get("path") or "")).stem or "worker"


def _known_keys(at_top: bool) -> set[Key]:
    """Every setting of one form of the file, with ``*`` for a name of the user's choice."""
    keys = set(_keys_of(Settings))
    if not at_top:
        return keys
    return {key for key in keys if key[0] != "pipelines"} | set(_keys_of(PipelineSettings))


def _keys_of(section: type[BaseModel], parent: Key = ()) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        key = (*parent, field.alias or name)
        if field.alias != INLINE:
            yield key
        choice = next((mark for mark in field.metadata if isinstance(mark, ChoiceOf)), None)
        if choice is not None:
            at = parent if field.alias == INLINE else key
            for entry, options in choice.sections():
                yield (*at, entry)
                yield from _keys_of(options, (*at, entry))
            continue
        naming = next((mark for mark in field.metadata if isinstance(mark, NameIn)), None)
        if naming is not None:
            for entry, options in naming.sections():
                yield (*key, entry)
                yield from _keys_of(options, (*key, entry))
            continue
        inner, mapping = _section_in(field.annotation)
        if inner:
            yield from _keys_of(inner, (*key, "*") if mapping else key)


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section inside ``Section``, ``Section | None`` or ``dict[str, Section]``, and whether it is the last."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    arguments = getattr(annotation, "__args__", ())
    found, many = next((inner for inner in map(_section_in, arguments) if inner[0]), (None, False))
    return found, many or (found is not None and getattr(annotation, "__origin__", None) in (dict, list))


def json_schema() -> dict[str, Any]:
    """JSON Schema of the configuration file: pipelines under ``pipelines``, or a single one at the top."""
    schema = Settings.model_json_schema(by_alias=True)
    pipeline = schema["$defs"]["PipelineSettings"]
    at_top = pipeline["properties"]
    one_or_several = [{"required": ["model"]}, {"required": ["steps"]}]
    pipeline["oneOf"] = one_or_several
    shared = [key for key in schema["required"] if key not in ("name", "pipelines")]
    schema["$defs"] |= POSTPROCESS.definitions() | CONTENT.definitions() | INPUT_FORMAT.definitions()
    del schema["$defs"][CONTENT.title]  # its entries stand among the keys of the sections that hold them
    _allow_variables(schema)
    _refer(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streaminfer configuration",
        **{key: schema[key] for key in ("description", "type", "additionalProperties")},
        "properties": schema["properties"] | at_top,
        "required": shared,
        "oneOf": [
            {"required": ["pipelines"], "not": {"anyOf": [{"required": [key]} for key in at_top]}},
            {
                "required": pipeline["required"],
                "not": {"required": ["pipelines"]},
                "oneOf": one_or_several,
            },
        ],
        "$defs": schema["$defs"]
        | {"Variable": {"type": "string", "pattern": r"\$\{[A-Za-z_]\w*(:-[^}]*)?\}"}},
    }


def _refer(schema: Any) -> None:
    """Put references in the place of the marks of :class:`ChoiceOf`."""
    for inner in (
        list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    ):
        _refer(inner)
    if isinstance(schema, dict) and isinstance(schema.get(DEFINED), str):
        schema["$ref"] = f"#/$defs/{schema.pop(DEFINED)}"


def _allow_variables(schema: Any) -> None:
    """Let ``${ENV}`` stand wherever a number, a truth value, a list or one of some words is expected."""
    for inner in (
        list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    ):
        _allow_variables(inner)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("title"), str):
        del schema["title"]  # pydantic's: the key again with capitals
    if "anyOf" in schema:
        choices = [choice for outer in schema["anyOf"] for choice in outer.get("anyOf", [outer])]
        schema["anyOf"] = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
    elif schema.get("type") in ("integer", "number", "boolean", "array") or {"enum", "const"} & schema.keys():
        typed = {key: schema.pop(key) for key in list(schema) if key not in ("description", "default")}
        schema["anyOf"] = [typed, {"$ref": "#/$defs/Variable"}]
