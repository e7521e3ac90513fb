"""Settings that name a component of a registry: checked, and written into the JSON Schema, from its entries.

The section of a component stands beside its code. It is imported when a configuration names the component, or when
the JSON Schema or a "nearest key" asks for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from worker.registry import Registry
from worker.settings.section import Section

CUSTOM_CODE_SCHEMA = {
    "type": "string",
    "pattern": r"^[\w.]+:[\w.]+$",
    "description": "Custom code: module:attribute.",
}
DEFINED = "x-defined"
"""Marks in a JSON Schema where a reference to a definition of this name belongs."""
INLINE = "<content>"
"""The alias of a choice whose entry stands among the keys of its section; nothing that a user would write."""


class CustomSettings(Section):
    """Custom code, named by plain text instead of a mapping."""

    code: str
    """``module:attribute``."""


@dataclass(frozen=True)
class Chosen:
    """A component that a configuration names, with its options."""

    name: str
    """Its name in the registry; ``module:attribute`` for custom code."""
    options: Section

    @property
    def code(self) -> str | None:
        """``module:attribute`` where this is custom code."""
        return self.options.code if isinstance(self.options, CustomSettings) else None


@dataclass(frozen=True)
class NameIn:
    """Marks a text setting whose value is the name of a registry's entry, or custom code where it takes any."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        names: JsonSchemaValue = {"enum": list(self.registry)}
        return {"anyOf": [names, CUSTOM_CODE_SCHEMA]} if self.registry.takes_custom("a:b") else names

    def _checked(self, name: str) -> str:
        if name not in self.registry and not self.registry.takes_custom(name):
            raise ValueError(f"expected {self.registry.expected()}")
        return name


@dataclass(frozen=True)
class ChoiceOf:
    """Marks a setting that is a :class:`Chosen`: a mapping with one entry, one word, or custom code.

    Args:
        registry: what can be chosen.
        title: name of its definition in the JSON Schema, and ``doc`` what that says.
        default: chosen where nothing is there; None = the setting is then None.
    """

    registry: Registry[Any]
    title: str
    doc: str
    default: str | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._chosen,
            serialization=core_schema.plain_serializer_function_ser_schema(
                plain, info_arg=True, when_used="unless-none"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {DEFINED: self.title}

    def sections(self) -> Iterator[tuple[str, type[Section]]]:
        """Every entry's name and section."""
        for name in self.registry:
            yield name, self.registry.entry(name).settings

    def properties(self) -> dict[str, JsonSchemaValue]:
        """Every entry's name as a property whose value is its section or nothing."""
        return {
            name: {"anyOf": [{DEFINED: section.__name__}, {"type": "null"}], "default": None}
            for name, section in self.sections()
        }

    def definitions(self) -> dict[str, JsonSchemaValue]:
        """The definitions that the markers ``DEFINED`` of this choice name."""
        choices: list[JsonSchemaValue] = [{"enum": list(self.registry)}]
        if self.registry.takes_custom("a:b"):
            choices.append(CUSTOM_CODE_SCHEMA)
        mapping = {"type": "object", "properties": self.properties(), "additionalProperties": False}
        choices.append({**mapping, "minProperties": 1, "maxProperties": 1})
        found: dict[str, JsonSchemaValue] = {self.title: {"description": self.doc, "anyOf": choices}}
        for _, section in self.sections():
            schema = section.model_json_schema(by_alias=True)
            found |= schema.pop("$defs", {})
            found[section.__name__] = schema
        return found

    def _chosen(self, value: Any, info: ValidationInfo) -> Chosen | None:
        if value is None or value == {}:
            if self.default is None:
                return None
            value = self.default
        if isinstance(value, Chosen):
            return value
        if isinstance(value, str):
            if value not in self.registry:
                if not self.registry.takes_custom(value):
                    raise ValueError(f"expected one of {self.registry.expected()}")
                return Chosen(value, CustomSettings(code=value))
            value = {value: {}}
        if not isinstance(value, dict):
            raise ValueError(f"expected one of {self.registry.expected()}")
        known = [name for name in value if name in self.registry]
        if len(known) == len(value) > 1:
            raise ValueError(f"got {' and '.join(known)}, expected exactly one of them")
        # one field per entry that is there: errors then name the setting as the user wrote it
        fields: Any = {name: (self.registry.entry(name).settings, ...) for name in known}
        checked = create_model("Choice", __base__=Section, **fields).model_validate(
            value, context=info.context
        )
        return Chosen(known[0], getattr(checked, known[0]))


def plain(chosen: Chosen, info: core_schema.FieldSerializationInfo) -> Any:
    """The choice as it stands in a configuration."""
    return chosen.code or {chosen.name: chosen.options.model_dump(mode=info.mode, by_alias=info.by_alias)}
