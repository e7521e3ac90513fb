"""What can stand where on the command line: every command with its options and arguments, read from the parsers themselves."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worker.cli.main import COMMANDS
from worker.cli.parser import Parser

Kind = Literal["none", "words", "file", "folder", "yaml", "setting"]
"""What a value is: nothing that can be known, one of some words, a path, a YAML file, or ``key=value`` of a setting."""
_OTHERS = ("pipelines", "defaults", "include", "tests")
"""Sections that nobody sets by an option."""
_FOLDERS = {"DIR"}
_FILES = {"FILE", "MODEL", "SOURCE", "DIR|FILE", "[PIPELINE=]FILE"}


@dataclass(frozen=True, slots=True)
class Value:
    """What an option or an argument takes."""

    kind: Kind
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """An option with all its names; ``value`` is None for a flag."""

    names: tuple[str, ...]
    help: str
    value: Value | None


@dataclass(frozen=True, slots=True)
class Command:
    """One command, or an action of one."""

    path: tuple[str, ...]
    """Such as ``("dlq", "list")``; empty for ``streaminfer`` itself."""
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Value, ...]
    """In their order, without the name of an inner command."""
    inner: tuple[str, ...] = ()
    """Names of the commands inside it."""


def commands() -> list[Command]:
    """Every command, ``streaminfer`` itself first."""
    found: list[Command] = []
    names: list[str] = []
    for name, line in COMMANDS.items():
        module = f"worker.cli.{name}"
        if importlib.util.find_spec(module) is None:
            continue
        parser = Parser(prog=f"streaminfer {name}", allow_abbrev=False)
        importlib.import_module(module).configure(parser)
        names.append(name)
        found += _command(parser, (name,), line)
    top = (
        Option(("-h", "--help"), "show this help message and exit", None),
        Option(("--version",), "show the version and exit", None),
    )
    return [Command((), "", top, (), tuple(names)), *found]


def _command(parser: argparse.ArgumentParser, path: tuple[str, ...], line: str) -> Iterator[Command]:
    options: list[Option] = []
    arguments: list[Value] = []
    inner: dict[str, argparse.ArgumentParser] = {}
    lines: dict[str, str] = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            inner = dict(action.choices)
            lines = {each.dest: each.help or "" for each in action._choices_actions}
        elif action.option_strings:
            value = None if action.nargs == 0 else _value(action)
            options.append(Option(tuple(action.option_strings), _help(parser, action), value))
        else:
            arguments.append(_value(action))
    yield Command(path, line, tuple(options), tuple(arguments), tuple(inner))
    for name, subparser in inner.items():
        yield from _command(subparser, (*path, name), lines.get(name, ""))


def _value(action: argparse.Action) -> Value:
    if action.choices is not None:
        return Value("words", tuple(map(str, action.choices)))
    if action.dest == "start":  # or a time
        return Value("words", ("earliest", "latest"))
    if action.dest == "overrides":
        return Value("setting")
    if action.metavar == "CONFIG":
        return Value("yaml")
    if action.metavar in _FOLDERS:
        return Value("folder")
    return Value("file" if action.type is Path or action.metavar in _FILES else "none")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return " ".join(text.split())


def setting_keys() -> dict[str, tuple[str, ...]]:
    """Every key that ``--set`` takes for a single pipeline, with the words that it may be, where these are known."""
    from worker.settings import json_schema

    schema = json_schema()
    found: dict[str, tuple[str, ...]] = {}

    def visit(node: dict[str, Any], at: str, within: tuple[str, ...]) -> None:
        words: list[str] = []
        for each, seen in _alternatives(node, schema, within):
            if "properties" in each:
                for name, inner in each["properties"].items():
                    visit(inner, f"{at}.{name}" if at else name, seen)
            words += [str(word) for word in [*each.get("enum", ()), each.get("const")] if word is not None]
            words += ["true", "false"] if each.get("type") == "boolean" else []
        if at:
            found[at] = tuple(dict.fromkeys((*found.get(at, ()), *words)))

    visit({"properties": schema["properties"]}, "", ())
    sections = {key.rpartition(".")[0] for key in found}
    return {
        key: words
        for key, words in sorted(found.items())
        if (words or key not in sections) and key.partition(".")[0] not in _OTHERS
    }


def _alternatives(
    node: dict[str, Any], schema: dict[str, Any], within: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The schemas that a value may fit, behind references; with the definitions on the way, each at most once."""
    name = str(node.get("$ref", "")).rpartition("/")[2]
    if name:
        if name in within:
            return
        yield from _alternatives(schema["$defs"][name], schema, (*within, name))
    for each in node.get("anyOf", ()):
        if isinstance(each, dict):
            yield from _alternatives(each, schema, within)
    yield node, within
