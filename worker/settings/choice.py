"""Settings that name a component of a registry: checked, and written into the JSON Schema, from its entries.

The section of a component stands beside its code. It is imported when a configuration names the component, or when
the JSON Schema or a "nearest key" asks for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Named(str):
    """The name of a registry's entry, with the options that stand beside it: ``{pcm16: {rate: 16000}}``."""

    options: Section | None = None
    """Of the entry's class ``settings``; None where the entry has no options."""


@dataclass(frozen=True)
class NameIn:
    """Marks a text setting whose value names a registry's entry, or custom code where the registry takes any.

    An entry that has a class ``settings`` owns options. They stand as the only value of a mapping whose key is the name;
    the name alone gives all of them their defaults. The value is then a :class:`Named`.

    Args:
        registry: what can be named.
    """

    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_wrap_validator_function(
            self._checked,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        choices: list[JsonSchemaValue] = [{"enum": list(self.registry)}]
        if properties := {name: {DEFINED: section.__name__} for name, section in self.sections()}:
            mapping = {"type": "object", "properties": properties, "additionalProperties": False}
            choices.append({**mapping, "minProperties": 1, "maxProperties": 1})
        if self.registry.takes_custom("a:b"):
            choices.append(CUSTOM_CODE_SCHEMA)
        return {"anyOf": choices} if len(choices) > 1 else choices[0]

    def sections(self) -> Iterator[tuple[str, type[Section]]]:
        """The name and the section of every entry that has options."""
        for name in self.registry:
            if (section := self._section(name)) is not None:
                yield name, section

    def definitions(self) -> dict[str, JsonSchemaValue]:
        """The definitions that the markers ``DEFINED`` of this setting name."""
        return _defined(section for _, section in self.sections())

    def _section(self, name: str) -> type[Section] | None:
        section: type[Section] | None = getattr(self.registry.entry(name), "settings", None)
        return section

    def _checked(
        self, value: Any, handler: core_schema.ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> str:
        if isinstance(value, Named):
            return value
        if isinstance(value, dict):
            return self._with_options(value, info)
        name: str = handler(value)
        if name not in self.registry and not self.registry.takes_custom(name):
            raise ValueError(f"expected {self.registry.expected()}")
        if name in self.registry and (section := self._section(name)) is not None:
            if needed := [key for key, field in section.model_fields.items() if field.is_required()]:
                options = ", ".join(f"{key}: ..." for key in needed)
                raise ValueError(f"expected {{{name}: {{{options}}}}}")
            return self._with_options({name: {}}, info)
        return name

    def _with_options(self, value: dict[Any, Any], info: ValidationInfo) -> Named:
        names = [name for name in value if name in self.registry]
        if len(names) != 1 or len(value) != 1:
            raise ValueError(f"expected one of {self.registry.expected()}")
        section = self._section(names[0])
        if section is None:
            raise ValueError(f"expected {names[0]} alone, because it has no options")
        fields: Any = {names[0]: (section, ...)}
        checked = create_model("Named", __base__=Section, **fields).model_validate(
            value, context=info.context
        )
        named = Named(names[0])
        named.options = getattr(checked, names[0])
        return named


def _written(name: str, info: core_schema.FieldSerializationInfo) -> Any:
    """A name as it stands in a configuration."""
    options = name.options if isinstance(name, Named) else None
    return {str(name): options.model_dump(mode=info.mode, by_alias=info.by_alias)} if options else str(name)


def _defined(sections: Iterable[type[Section]]) -> dict[str, JsonSchemaValue]:
    """The definitions of these sections, and of the sections inside them."""
    found: dict[str, JsonSchemaValue] = {}
    for section in sections:
        schema = section.model_json_schema(by_alias=True)
        found |= schema.pop("$defs", {})
        found[section.__name__] = schema
    return found


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
        return found | _defined(section for _, section in self.sections())

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
