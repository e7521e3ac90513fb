"""From a YAML file, ``--set`` options and the environment to one plain document; from a validation error to a sentence.

Every scalar stays the text that was written (only ``null`` means something): the setting it belongs to decides what
it is, so ``version: 1.10`` keeps its zero and a password ``no`` is not a boolean.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from worker.errors import ConfigError
from worker.settings.plain import plain_or_text

Key = tuple[str, ...]
"""A setting by its path from the top: ``("input", "topics")``; ``*`` stands for a name of the user's choice."""

FLAT: tuple[Key, ...] = (("kafka",), ("registry",))
"""Sections whose keys hold dots of their own."""
_SECRET: tuple[Key, ...] = (*FLAT, ("encryption",))
"""Sections whose values no message shows."""
VALUES_MAX = 100_000
"""Values in one configuration, those behind aliases counted each time; the largest real ones have hundreds."""
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_QUOTED = re.compile(r"'([^']*)'")
"""What a YAML error quotes of the file: it may be a password that begins with ``*`` or ``!``."""
_MORE_THAN_TEXT = re.compile(r"\s*(?:[\[{].*|~|null)\s*", re.DOTALL)


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The document in ``path`` with ``overrides`` (``a.b=yaml``) laid over it and ``${ENV}`` expanded.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, a malformed override or an unset variable.
    """
    try:
        document = parse(_text_of(path))
        if not isinstance(document, dict):
            found = "nothing" if document is None else "a list" if isinstance(document, list) else "text"
            raise ConfigError(f"expected a YAML mapping of settings, got {found}")
        for override in overrides:
            _override(document, override)
        _check_size(document)
        return {key: _expand(value, (key,)) for key, value in document.items()}
    except RecursionError:
        raise ConfigError("the YAML is nested too deeply, or contains itself") from None


def _check_size(document: Any) -> None:
    """Refuse a document that a few lines of nested aliases blow up: each alias is read as a copy of what it names.

    Raises:
        ConfigError: more than ``VALUES_MAX`` values.
    """
    left, waiting = VALUES_MAX, [document]
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += inner
        left -= 1 + len(inner)
        if left < 0:
            raise ConfigError(
                f"the YAML contains itself, or has more than {VALUES_MAX:,} values once its aliases are followed"
            )


def parse(text: str) -> Any:
    """One YAML value made of dicts, lists, text and None.

    Raises:
        ConfigError: not YAML, or a mapping names the same key twice; says line and column.
    """
    try:
        return yaml.load(text, _TextLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = _QUOTED.sub(_masked, ", ".join(filter(None, (error.context, error.problem))))
        raise ConfigError(f"not valid YAML: {where}{problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None


def _masked(quoted: re.Match[str]) -> str:
    """A quotation of the file without its words; YAML's own signs and names, such as ``','`` and ``'<block end>'``."""
    text = quoted[1]
    return quoted[0] if len(text) < 2 or text.startswith("<") else "'...'"


def sentence(error: ValidationError, document: Any, known: set[Key], hidden: Key = ()) -> str:
    """The first mistake of a validation as ``field: got X, expected Y``; an unknown key comes before all others.

    Args:
        error: what validating ``document`` raised.
        document: what was validated; its keys tell settings from pydantic's own markers in an error's location.
        known: every setting there is.
        hidden: leading keys that the user did not write (one pipeline at the top of the file).
    """
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    place = _place(first["loc"], document, first["type"])
    shown = place[len(hidden) :] if place[: len(hidden)] == hidden else place
    name = dotted(shown)
    if first["type"] == "extra_forbidden":
        return f"unknown key {name}; {_hint(shown, known)}"
    if first["type"] == "missing":
        return f"{name} is required"
    message = _message(details, place, document)
    if message.startswith("expected ") and place[:1] not in _SECRET:  # what is there may be a secret
        message = f"got {describe(first['input'])}, {message}"
    return f"{name}: {message}"


def describe(value: Any) -> str:
    """A value as an error message shows it: short, on one line."""
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str) else _flow(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flow(value: Any) -> str:
    """A list or mapping as YAML writes it on one line: its scalars are text here, whatever the user meant."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and value.isprintable():
        return value
    return "null" if value is None else repr(value)


def dotted(key: Sequence[str]) -> str:
    """``a.b.0`` as a user writes it, on one line whatever the file holds."""
    return ".".join(part if part.isprintable() else repr(part) for part in key)


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars are text or None and whose mappings name each key once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - typed as an instance attribute in the base class
        letter: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    yaml_constructors = {  # noqa: RUF012 - other tags, such as !!int, are no text: an error
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (*(f"tag:yaml.org,2002:{name}" for name in ("str", "null", "seq", "map")), None)
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen and key.tag != _MERGE:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.add_constructor("tag:yaml.org,2002:str", plain_or_text)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file; expected a YAML configuration") from None
    except IsADirectoryError:
        raise ConfigError("is a directory; expected a YAML configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text; expected a YAML configuration") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _override(document: dict[str, Any], override: str) -> None:
    """Lay one ``a.b=yaml`` over the document; behind ``kafka.`` and ``registry.`` the rest is one key."""
    name, equals, text = override.partition("=")
    name = name.strip()
    option = f"--set {dotted([name])}"
    if not equals or not all(name.split(".")):
        key = dotted([re.split("[=:]", override)[0]])
        raise ConfigError(f"--set {key}: expected key=value, such as batching.max_size=32")
    try:
        value = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    at = document
    rest = name
    while True:
        key, rest = _split(rest, at, whole=_is_flat(at, document))
        if not rest:
            at[key] = value
            return
        if at.get(key) is None:
            at[key] = {}
        if not isinstance(at[key], dict):
            parent = dotted([name.removesuffix(f".{rest}")])
            found = "one value" if (name.partition(".")[0],) in _SECRET else describe(at[key])
            raise ConfigError(f"{option}: {parent} is {found}, not a mapping")
        at = at[key]


def _is_flat(mapping: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    return any(mapping is document.get(section) for (section, *_) in FLAT)


def _split(name: str, mapping: Mapping[str, Any], whole: bool) -> tuple[str, str]:
    """The first key of a dotted name and the rest; a key already there may hold dots itself (``input.1``)."""
    if whole or name in mapping:
        return name, ""
    for key in sorted(mapping, key=len, reverse=True):
        if name.startswith(f"{key}."):
            return key, name[len(key) + 1 :]
    key, _, rest = name.partition(".")
    return key, rest


def _expand(value: Any, key: Key) -> Any:
    """``value`` with every ``${ENV}`` and ``${ENV:-default}`` in its texts replaced.

    A text that is one variable and nothing else may stand for a list, a mapping or null; not under ``kafka``
    or ``registry``, where a password may well begin with a bracket.
    """
    if isinstance(value, dict):
        return {name: _expand(inner, (*key, str(name))) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, (*key, str(index))) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        variable, default = match.groups()
        found = os.environ.get(variable, default)
        if found is None:
            raise ConfigError(
                f"{dotted(key)}: the environment variable {variable} is not set and has no default"
            )
        return found

    expanded = _VARIABLE.sub(replacement, value)
    if (key[0],) not in _SECRET and _VARIABLE.fullmatch(value) and _MORE_THAN_TEXT.fullmatch(expanded):
        try:
            return parse(expanded)
        except ConfigError:
            return expanded
    return expanded


def _place(location: tuple[int | str, ...], document: Any, kind: str) -> Key:
    """The setting an error is about: its location without pydantic's markers for branches of a union."""
    at = document
    place: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        within = part in at if isinstance(at, dict) else isinstance(at, list) and part in range(len(at))
        if within:
            at = at[part]
        elif not (last and kind == "missing"):
            continue
        place.append(str(part))
    return tuple(place)


_SYNONYMS = {
    "letterbox": ("resize", "resize: letterbox"),
    "threshold": ("score", "score"),
    "confidence": ("score", "score"),
    "nms": ("iou", "iou"),
    "top": ("top_k", "top_k"),
    "batch_size": ("max_size", "max_size"),
    "timeout_ms": ("max_wait_ms", "max_wait_ms"),
    "normalise": ("normalize", "normalize"),
    "colour": ("color", "color"),
    "channels": ("layout", "layout"),
    "file": ("path", "path"),
}
"""What users write -> the setting that is meant, if the section has it, and how the sentence shows it."""
_SLIP, _ALIKE = 0.75, 0.6
"""From this likeness on (:class:`difflib.SequenceMatcher`) an unknown key is a slip of the pen, or may be one."""


def _hint(key: Key, known: set[Key]) -> str:
    """What to write in place of an unknown key.

    A key of the same section that is spelt much like it comes first, then a known synonym, then the same word in
    another section. If nothing is alike, the sentence lists what the section takes: a far-fetched guess misleads.
    """
    siblings = sorted(name[-1] for name in known if _is_sibling(name, key) and name[-1] != "*")
    found = max(siblings, key=lambda name: _likeness(key[-1], name), default="")
    alike = _likeness(key[-1], found)
    meant, shown = _SYNONYMS.get(key[-1], ("", ""))
    elsewhere = sorted(name for name in known if name[-1] == key[-1])
    if alike >= _SLIP:
        nearest = dotted((*key[:-1], found))
    elif meant in siblings:
        nearest = dotted((*key[:-1], shown))
    elif elsewhere:
        nearest = dotted(elsewhere[0]).replace("*", "<name>")
    elif alike >= _ALIKE:
        nearest = dotted((*key[:-1], found))
    else:
        return f"expected one of {', '.join(siblings)}" if siblings else "no key is expected there"
    return f"the nearest known key is {nearest}"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _is_sibling(pattern: Key, key: Key) -> bool:
    return len(pattern) == len(key) and all(
        expected in ("*", part) for expected, part in zip(pattern[:-1], key[:-1], strict=True)
    )


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a file path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


def _message(details: Sequence[Any], place: Key, document: Any) -> str:
    """What the setting takes, from every branch of its type that refused the same value."""
    same = [detail for detail in details if _place(detail["loc"], document, detail["type"]) == place]
    if len(same) == 1 and same[0]["type"] == "value_error":
        return str(same[0]["ctx"]["error"])
    return "expected " + " or ".join(dict.fromkeys(map(_expectation, same)))


def _expectation(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]).removeprefix("expected ")
    if kind == "literal_error":
        return str(context["expected"])
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        bound = next(context[name] for name in ("gt", "ge", "lt", "le") if name in context)
        words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
        return f"a number {next(words[name] for name in words if name in context)} {bound}"
    if kind in ("string_too_short", "too_short"):
        return "something that is not empty"
    return _EXPECTED.get(kind.split("_")[0], str(detail["msg"]))
