"""Scalars that were written without quotation marks, for the few settings where 7 and "7" are not the same.

Everywhere else a scalar is its text, and the setting decides what it stands for.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None, ".nan": math.nan, ".inf": math.inf}
_WHOLE = re.compile(r"[-+]?[0-9]{1,300}")
_HALF = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")


class Plain(str):
    """A scalar without quotation marks. It is a text like any other, and only :func:`typed` looks at the difference."""

    __slots__ = ()


def plain_or_text(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """The constructor for a loader whose scalars are all text.

    Raises:
        yaml.constructor.ConstructorError: an escape such as ``\\ud800`` stands for half of a character.
    """
    text: str = node.value
    if _HALF.search(text):
        raise yaml.constructor.ConstructorError(
            None, None, "a text has half of a surrogate pair, expected whole characters", node.start_mark
        )
    return Plain(text) if node.style is None else text


def typed(value: Any) -> Any:
    """The value with every plain scalar as the number, truth value or nothing that the core schema of YAML 1.2 takes it for."""
    if isinstance(value, dict):
        return {str(key): typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    if not isinstance(value, Plain):
        return value
    text = str(value)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


yaml.SafeDumper.add_representer(Plain, yaml.representer.SafeRepresenter.represent_str)

AnyValue = Annotated[Any, BeforeValidator(typed)]
"""Any value that JSON can hold; quotation marks say that a number is meant as text."""
