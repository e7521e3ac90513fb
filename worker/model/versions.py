"""Names of model versions: integers, or semantic versions (https://semver.org, version 2.0.0, clause 11 for the order)."""

from __future__ import annotations

import re
from functools import total_ordering

_INTEGER = re.compile(r"0|[1-9]\d{0,17}")
_SEMANTIC = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


@total_ordering
class Version:
    """A version's name that knows its place among others. An integer counts as the first of three numbers."""

    def __init__(self, name: str, numbers: tuple[int, int, int], before: tuple[str, ...]) -> None:
        self.name = name
        self.pre_release = bool(before)
        self._key = (
            numbers,
            not before,
            # a number comes before a word, and numbers compare as numbers
            tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in before),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key == other._key

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<Version {self.name}>"


def version_of(name: str) -> Version | None:
    """The version that a folder's name stands for; None where it is none, as of a folder that is being written."""
    if _INTEGER.fullmatch(name):
        return Version(name, (int(name), 0, 0), ())
    found = _SEMANTIC.fullmatch(name)
    if found is None:
        return None
    major, minor, patch, before = found.groups()
    return Version(name, (int(major), int(minor), int(patch)), tuple(before.split(".")) if before else ())
