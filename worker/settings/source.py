"""From a YAML file, the files that it includes, ``--set`` options and the environment to one plain document."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worker.errors import ConfigError, Mistake
from worker.settings.includes import is_extra, read_files
from worker.settings.origins import SET, Origin, Origins
from worker.settings.yaml_text import Key, check_size, describe, dotted, parse

FLAT: tuple[Key, ...] = (("kafka",), ("registry",))
"""Sections whose keys hold dots of their own."""
RESULTS_CLUSTER: Key = ("output", "kafka")
SECRET: tuple[Key, ...] = (*FLAT, ("encryption",))
"""Sections whose values no message shows."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_MORE_THAN_TEXT = re.compile(r"\s*(?:[\[{].*|~|null)\s*", re.DOTALL)


@dataclass
class Document:
    """A configuration before it is checked."""

    values: dict[str, Any]
    origins: Origins = field(default_factory=Origins)
    mistakes: dict[Key, Mistake] = field(default_factory=dict)
    """What is wrong with values that cannot be known, such as an unset variable: the setting keeps its text."""


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """The document in ``path`` and the files that it includes, with ``overrides`` (``a.b=yaml``) laid over it and
    ``${ENV}`` expanded.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, files that do not go together or a malformed override.
    """
    try:
        values, origins = read_files(path)
        found: list[Mistake] = []
        for override in overrides:
            try:
                origins.set(*_override(values, override), Origin(note=SET))
            except ConfigError as error:
                found.append(Mistake(str(error)))
        if found:
            raise ConfigError.of([replace(each, place=str(path)) for each in found], str(path))
        check_size(values)
        document = Document({}, origins)
        extras = [key for key in values if is_extra(key)]
        document.values = {
            key: _expand(value, (key,), document) for key, value in values.items() if key not in extras
        }
        return document
    except RecursionError:
        raise ConfigError.of(
            [Mistake("the YAML is nested too deeply, or contains itself", str(path), str(path))]
        ) from None


def _override(document: dict[str, Any], override: str) -> tuple[Key, Any]:
    """Lay one ``a.b=yaml`` over the document; behind ``kafka.`` and ``registry.`` the rest is one key.

    Returns:
        The setting and its value.
    """
    name, equals, text = override.partition("=")
    name = name.strip()
    option = f"--set {dotted([name])}"
    if not equals or not all(name.split(".")):
        key = dotted([re.split("[=:]", override)[0]])
        raise ConfigError(f"--set {key}: expected key=value, such as batching.max_size=32")
    if name.partition(".")[0] == "include":
        raise ConfigError(f"{option}: expected in the file itself")
    try:
        value = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    _check_pipeline(document, name, option)
    at = document
    rest = name
    path: Key = ()
    while True:
        key, rest = _split(rest, at, whole=_is_flat(at, document))
        path = (*path, key)
        if not rest:
            at[key] = value
            return path, value
        if at.get(key) is None:
            at[key] = {}
        if not isinstance(at[key], dict):
            parent = dotted([name.removesuffix(f".{rest}")])
            found = "one value" if hides(tuple(name.split("."))) else describe(at[key])
            raise ConfigError(f"{option}: {parent} is {found}, not a mapping")
        at = at[key]


def _check_pipeline(document: Mapping[str, Any], name: str, option: str) -> None:
    """Refuse a setting of a pipeline that is not there: it would begin a new one, with nothing else in it."""
    pipelines = document.get("pipelines")
    first, _, rest = name.partition(".")
    if first != "pipelines" or not rest or not isinstance(pipelines, dict) or not pipelines:
        return
    wanted, more = _split(rest, pipelines, whole=False)
    if wanted in pipelines or not more:
        return
    near = difflib.get_close_matches(wanted, pipelines, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(map(str, pipelines))}"
    raise ConfigError(f"{option}: no pipeline {dotted([wanted])}; {hint}")


def _is_flat(mapping: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    pipelines = document.get("pipelines")
    several = [*pipelines.values()] if isinstance(pipelines, dict) else []
    for pipeline in (document, *several):
        output = pipeline.get("output") if isinstance(pipeline, dict) else None
        if isinstance(output, dict) and mapping is output.get("kafka"):
            return True
    return any(mapping is document.get(section) for (section, *_) in FLAT)


def hides(key: Key) -> bool:
    """Whether the value of a setting may be a secret, which no message shows."""
    return key[:1] in SECRET or any(key[at : at + 2] == RESULTS_CLUSTER for at in range(len(key)))


def _split(name: str, mapping: Mapping[str, Any], whole: bool) -> tuple[str, str]:
    """The first key of a dotted name and the rest; a key already there may hold dots itself (``input.1``)."""
    if whole or name in mapping:
        return name, ""
    for key in sorted(mapping, key=len, reverse=True):
        if name.startswith(f"{key}."):
            return key, name[len(key) + 1 :]
    key, _, rest = name.partition(".")
    return key, rest


def _expand(value: Any, key: Key, document: Document) -> Any:
    """``value`` with every ``${ENV}`` and ``${ENV:-default}`` in its texts replaced.

    A text that is one variable and nothing else may stand for a list, a mapping or null; not under ``kafka``
    or ``registry``, where a password may well begin with a bracket.
    """
    if isinstance(value, dict):
        return {name: _expand(inner, (*key, str(name)), document) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, (*key, str(index)), document) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    used: list[str] = []
    unset: list[str] = []

    def replacement(match: re.Match[str]) -> str:
        variable, default = match.groups()
        found = os.environ.get(variable, default)
        if found is None:
            unset.append(variable)
            return match[0]
        used.append(f"${{{variable}}}")
        return found

    expanded = _VARIABLE.sub(replacement, value)
    if unset:
        several = len(unset) > 1
        sentence = (
            f"{dotted(key)}: the environment variable{'s' * several} {' and '.join(unset)} "
            f"{'are' if several else 'is'} not set and {'have' if several else 'has'} no default"
        )
        document.mistakes[key] = document.origins.mistake(sentence, key)
        return value
    result: Any = expanded
    if not hides(key) and _VARIABLE.fullmatch(value) and _MORE_THAN_TEXT.fullmatch(expanded):
        with suppress(ConfigError):
            result = parse(expanded)
    document.origins.note(key, result, " ".join(dict.fromkeys(used)))
    return result
