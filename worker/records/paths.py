"""Dotted paths into a record: ``user.age``, ``items[0].price``, ``"unit.name".value``.

A path is compiled once. It walks mappings by name and lists by index, whatever format they were read from (JSON, Avro,
Protobuf).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import Reject

_STEP = re.compile(
    r'(?P<dot>\.)?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^.\[\]"]+)|\[(?P<index>-?\d{1,9})\])'
)
"""One step: a name, a quoted name or an index, with the dot before it."""


class Absent:
    """The type of :data:`ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()
"""What :meth:`Path.find` returns where the record does not have the field; null is a value and stays None."""


@dataclass(frozen=True)
class Path:
    """The way to one field of a record.

    A name follows a dot, an index stands in brackets; a negative index counts from the end of the list. A name with a dot,
    a bracket or a quotation mark of its own stands in double quotes, written as in JSON. A text that is not of this form,
    such as ``speed[m/s]``, is the name of one field.

    If a record has a field whose name is the whole text, such as ``{"user.age": 5}`` for ``user.age``, that field counts.
    """

    text: str
    """As it is written in a configuration."""
    steps: tuple[str | int, ...]

    @classmethod
    @functools.cache
    def of(cls, text: str) -> Path:
        """The path that a text stands for; every text stands for one."""
        steps: list[str | int] = []
        position = 0
        while position < len(text):
            found = _STEP.match(text, position)
            if found is None or (found["dot"] is not None) != (bool(steps) and found["index"] is None):
                return cls(text, (text,))
            if found["index"] is not None:
                steps.append(int(found["index"]))
            elif found["quoted"] is not None:
                try:
                    steps.append(json.loads(f'"{found["quoted"]}"'))
                except ValueError:
                    return cls(text, (text,))
            else:
                steps.append(found["bare"])
            position = found.end()
        if not steps or isinstance(steps[0], int):
            return cls(text, (text,))
        return cls(text, tuple(steps))

    @property
    def plain(self) -> bool:
        """Whether the text is the name of a field of the record itself."""
        return self.steps == (self.text,)

    @property
    def name(self) -> str:
        """The last name on the way: what stands before the value, or before the list that holds it."""
        return next(step for step in reversed(self.steps) if isinstance(step, str))

    def find(self, record: Mapping[str, Any]) -> Any:
        """The field's value; :data:`ABSENT` if it, or something on the way to it, is not there or is null.

        Raises:
            Reject: ``invalid``: something on the way is neither an object nor a list, as the path says.
        """
        whole = record.get(self.text, ABSENT)
        if whole is not ABSENT or self.plain:
            return whole
        value: Any = record
        for place, step in enumerate(self.steps):
            if isinstance(step, str):
                if not isinstance(value, Mapping):
                    return self._not_there(value, place, "an object")
                value = value.get(step, ABSENT)
            else:
                if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                    return self._not_there(value, place, "a list")
                value = value[step] if -len(value) <= step < len(value) else ABSENT
        return value

    def _not_there(self, value: Any, place: int, expected: str) -> Any:
        if value is None or value is ABSENT:
            return ABSENT
        way = written(self.steps[:place])
        raise Reject(f'the field "{self.text}": {way} is {kind_of(value)}, expected {expected}')

    def __str__(self) -> str:
        return self.text


def written(steps: Sequence[str | int]) -> str:
    """Steps as a path is written."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            bare = re.fullmatch(r'[^.\[\]"]+', step) is not None
            text += ("." if text else "") + (step if bare else json.dumps(step, ensure_ascii=False))
    return text


def kind_of(value: Any) -> str:
    """What a value is, for a message: ``a string``, ``an object``."""
    if isinstance(value, bool):
        return "a boolean"
    for kind, text in _KINDS.items():
        if isinstance(value, kind):
            return text
    return "null" if value is None else "something else"


_KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bytes: "bytes",
    Mapping: "an object",
    Sequence: "a list",
}
