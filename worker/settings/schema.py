"""The JSON Schema of configuration files, for editors."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from worker.settings.choice import DEFINED
from worker.settings.kinds import INPUT_FORMAT
from worker.settings.schema_hover import for_editors
from worker.settings.sections import CONTENT, POSTPROCESS, Settings

EXTRAS = "^x-"
"""Keys that nobody reads."""
DEFAULTS_DOC = (
    "Settings of a pipeline that every pipeline has unless it has its own: mappings are merged key by key, anything else "
    "of the pipeline stands in place of the default, and null takes the default away."
)
INCLUDE_DOC = (
    "Files whose settings count as if they stood here, relative to this file; `*` and `?` stand for any characters. A file "
    "with a single pipeline at its top gives the pipeline its name."
)
_VARIABLE = "#/$defs/Variable"


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
    _allow_extras(pipeline)
    some = _in_parts("PipelineSettings", schema["$defs"])
    with_defaults = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"$ref": f"#/$defs/{some}"},
    }
    pipelines = schema["properties"]["pipelines"]
    whole = {
        "required": shared,
        "properties": {"pipelines": {key: pipelines[key] for key in pipelines if key != "description"}},
        "oneOf": [
            {"required": ["pipelines"], "not": {"anyOf": [{"required": [key]} for key in at_top]}},
            {
                "required": pipeline["required"],
                "not": {"required": ["pipelines"]},
                "oneOf": one_or_several,
            },
        ],
    }
    elsewhere = {
        "defaults": {"$ref": f"#/$defs/{some}", "description": DEFAULTS_DOC},
        "include": {"type": "array", "items": {"type": "string", "minLength": 1}, "description": INCLUDE_DOC},
    }
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streaminfer configuration",
        **{key: schema[key] for key in ("description", "type", "additionalProperties")},
        "patternProperties": {EXTRAS: {}},
        "properties": schema["properties"]
        | at_top
        | {"pipelines": {**with_defaults, "description": pipelines["description"]}}
        | elsewhere,
        # what a file with defaults or includes lacks may stand there
        "if": {"not": {"anyOf": [{"required": [key]} for key in elsewhere]}},
        "then": whole,
        "$defs": schema["$defs"]
        | {"Variable": {"type": "string", "pattern": r"\$\{[A-Za-z_]\w*(:-[^}]*)?\}"}},
    }
    return for_editors(document)


def _allow_extras(section: dict[str, Any]) -> None:
    section["patternProperties"] = {EXTRAS: {}}


def _in_parts(name: str, sections: dict[str, Any]) -> str:
    """The name of a section's definition in which nothing is required, for settings that are put together of several
    places; the section's own where it and what it holds require nothing."""
    made = f"Some{name}"
    if made in sections or not _requires(name, sections, set()):
        return made if made in sections else name
    sections[made] = copy = deepcopy(sections[name])
    _relax(copy, sections)
    return made


def _relax(schema: Any, sections: dict[str, Any]) -> None:
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _relax(inner, sections)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict):
        schema.pop("required", None)
        for either in ("oneOf", "anyOf"):
            if any(set(choice) == {"required"} for choice in schema.get(either, ())):
                del schema[either]
    if isinstance(schema.get("$ref"), str) and schema["$ref"] != _VARIABLE:
        schema["$ref"] = f"#/$defs/{_in_parts(schema['$ref'].rpartition('/')[2], sections)}"


def _requires(name: str, sections: dict[str, Any], seen: set[str]) -> bool:
    """Whether a section, or one that it holds, requires something."""
    if name in seen or name not in sections:
        return False
    seen.add(name)
    waiting: list[Any] = [sections[name]]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, list):
            waiting += schema
        elif isinstance(schema, dict):
            waiting += schema.values()
            reference = schema.get("$ref")
            inner = reference.rpartition("/")[2] if isinstance(reference, str) else ""
            if "required" in schema or _requires(inner, sections, seen):
                return True
    return False


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
