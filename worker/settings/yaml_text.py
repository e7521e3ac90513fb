"""One YAML text as dicts, lists, text and None, and where each of its values stands.

Every scalar stays the text that was written (only ``null`` means something): the setting it belongs to decides what
it is, so ``version: 1.10`` keeps its zero and a password ``no`` is not a boolean.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import yaml

from worker.errors import ConfigError
from worker.settings.plain import plain_or_text

Key = tuple[str, ...]
"""A setting by its path from the top: ``("input", "topics")``; ``*`` stands for a name of the user's choice."""

VALUES_MAX = 100_000
"""Values in one configuration, those behind aliases counted each time; the largest real ones have hundreds."""
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_QUOTED = re.compile(r"'([^']*)'")
"""What a YAML error quotes of the file: it may be a password that begins with ``*`` or ``!``."""


class Spot(NamedTuple):
    """Where an entry stands in its text; lines and columns begin with 1."""

    line: int
    column: int
    """Of its key; of the value in a list."""
    value_line: int
    value_column: int


class NotYaml(ConfigError):
    """The text is not YAML.

    Args:
        problem: what YAML objects to, without words of the text.
        line: from 1 on; 0 = YAML does not say.
        column: from 1 on.
    """

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        where = f"line {line}, column {column}: " if line else ""
        super().__init__(f"not valid YAML: {where}{problem}")
        self.problem, self.line, self.column = problem, line, column


def parse(text: str) -> Any:
    """One YAML value made of dicts, lists, text and None.

    Raises:
        ConfigError: not YAML, or a mapping names the same key twice; says line and column.
    """
    return parse_with_node(text)[0]


def parse_with_node(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a text and the node that :func:`spots` takes; None of an empty text.

    Raises:
        NotYaml: not YAML, or a mapping names the same key twice.
    """
    try:
        loader = _TextLoader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else loader.construct_document(node), node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _QUOTED.sub(_masked, ", ".join(filter(None, (error.context, error.problem))))
        raise NotYaml(problem, *((mark.line + 1, mark.column + 1) if mark else ())) from None
    except yaml.YAMLError as error:
        raise NotYaml(" ".join(str(error).split())) from None


def check_size(document: Any) -> None:
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


def spots(node: yaml.Node | None) -> dict[Key, Spot]:
    """Where every entry of a document stands. What comes by an alias or a merge key stands where it was written.

    Args:
        node: of a document that :func:`check_size` has let through, after its value was made: merge keys are
            followed by then.
    """
    found: dict[Key, Spot] = {}
    waiting: list[tuple[Key, yaml.Node | None]] = [((), node)]
    while waiting:
        at, here = waiting.pop()
        if isinstance(here, yaml.MappingNode):
            for key, value in here.value:
                name = (*at, str(key.value))
                found[name] = _spot(key, value)
                waiting.append((name, value))
        elif isinstance(here, yaml.SequenceNode):
            for index, value in enumerate(here.value):
                name = (*at, str(index))
                found[name] = _spot(value, value)
                waiting.append((name, value))
    return found


def _spot(key: yaml.Node, value: yaml.Node) -> Spot:
    first, second = key.start_mark, value.start_mark
    return Spot(first.line + 1, first.column + 1, second.line + 1, second.column + 1)


def _masked(quoted: re.Match[str]) -> str:
    """A quotation of the file without its words; YAML's own signs and names, such as ``','`` and ``'<block end>'``."""
    text = quoted[1]
    return quoted[0] if len(text) < 2 or text.startswith("<") else "'...'"


def unshared(value: Any) -> Any:
    """A copy in which nothing is there twice."""
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


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
            if not isinstance(key, yaml.ScalarNode) or key.tag == _NULL:
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen and key.tag != _MERGE:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.add_constructor("tag:yaml.org,2002:str", plain_or_text)
