"""The names in ``input.topics``: a topic, or a pattern (``^cam-.*``) for all topics whose whole name it matches.

Three engines read a pattern: this module, librdkafka (POSIX extended expressions, in the classic protocol) and the broker
(RE2, in the consumer protocol). A pattern may hold only what means the same to all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TypeVar

T = TypeVar("T")

MARK = "^"
"""Begins a pattern: no topic's name can."""
_LITERAL = re.compile(r"[A-Za-z0-9_-]|\\\.")
_PART = re.compile(
    rf"(?:{_LITERAL.pattern}|\.|[|()]|\[\^?[A-Za-z0-9._-]+\]|(?<=[^|(])(?:[*+?]|\{{[0-9]{{1,3}}(?:,[0-9]{{0,3}})?\}}))*"
)


def is_pattern(name: str) -> bool:
    return name.startswith(MARK)


def pattern_fault(name: str) -> str | None:
    """What is expected in place of a pattern that the engines may read in different ways; None for a good one."""
    body = _body(name)
    if not body or not _PART.fullmatch(body) or re.search(r"[*+?}][*+?{]", body):
        return "expected a pattern of letters, digits, . _ - \\. [a-z] ( | ) * + ? {2,3}, such as ^cam-.*"
    try:
        re.compile(body)
    except re.error as error:
        return f"expected a regular expression: {error}"
    return None


def _body(name: str) -> str:
    return name.removeprefix(MARK).removesuffix("$")


@cache
def _compiled(name: str) -> re.Pattern[str]:
    return re.compile(_body(name))


def matches(name: str, topic: str) -> bool:
    """Whether a name of ``input.topics`` stands for this topic."""
    return name == topic or (is_pattern(name) and _compiled(name).fullmatch(topic) is not None)


def subscription(name: str) -> str:
    """The name as a consumer subscribes to it: of a pattern's match the whole topic, whichever engine reads it."""
    return f"^({_body(name)})$" if is_pattern(name) else name


def prefix(name: str) -> str:
    """How every topic that the name stands for begins."""
    if not is_pattern(name):
        return name
    body, found, at = _body(name), "", 0
    while "|" not in body and (part := _LITERAL.match(body, at)):
        if body[part.end() : part.end() + 1] in ("*", "?", "{"):
            break  # the character may be absent
        found += part[0][-1]
        at = part.end()
    return found


def may_overlap(one: str, other: str) -> bool:
    """Whether a topic can exist for which both names stand; two patterns count as such unless they begin differently."""
    if not is_pattern(one) or not is_pattern(other):
        return matches(one, other) or matches(other, one)
    begins, others = prefix(one), prefix(other)
    return begins.startswith(others) or others.startswith(begins)


class Topics(frozenset[str]):
    """Names of topics and patterns; a topic that a pattern matches is in it. Iteration gives the names."""

    patterns: tuple[str, ...]

    def __new__(cls, names: Iterable[str] = ()) -> Topics:
        made = super().__new__(cls, names)
        made.patterns = tuple(name for name in made if is_pattern(name))
        return made

    def __contains__(self, topic: object) -> bool:
        if frozenset.__contains__(self, topic):
            return True
        return isinstance(topic, str) and any(matches(pattern, topic) for pattern in self.patterns)

    def touches(self, other: Iterable[str]) -> bool:
        """Whether a topic can be in both."""
        names = [*other]
        return any(may_overlap(one, another) for one in self for another in names)

    @property
    def example(self) -> str:
        """A topic that may be in it: the first name of a topic, else how the topics of a pattern begin."""
        named = min((name for name in self if not is_pattern(name)), default=None)
        return named or prefix(min(self)) or "topic"


class ByTopic(Mapping[str, T]):
    """Values by names of topics and patterns, found by topic. A topic's own name counts before a pattern."""

    def __init__(self, values: Mapping[str, T]) -> None:
        self._values = dict(values)
        self._patterns = [name for name in values if is_pattern(name)]
        self._names: dict[str, str | None] = {}

    def name(self, topic: str) -> str | None:
        """Under which name the topic's value stands."""
        if topic in self._values:
            return topic
        if topic not in self._names:
            self._names[topic] = next((each for each in self._patterns if matches(each, topic)), None)
        return self._names[topic]

    def __getitem__(self, topic: str) -> T:
        name = self.name(topic)
        if name is None:
            raise KeyError(topic)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
