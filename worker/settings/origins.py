"""Where each setting comes from: a line of a file, a ``--set`` option, or the environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from worker.errors import Mistake
from worker.settings.yaml_text import Key, Spot

SET = "--set"
_NOWHERE = Spot(0, 0, 0, 0)


@dataclass(frozen=True)
class Origin:
    """Where one setting comes from."""

    file: str = ""
    """As the user named it; empty: no file."""
    spot: Spot = _NOWHERE
    note: str = ""
    """What else it comes from: ``--set``, or the variables of the environment as ``${SIZE}``."""
    written: Key | None = None
    """How the user named it, where that is not its key: a setting of ``defaults``."""

    def place(self, of_key: bool) -> str:
        """For people: ``k.yaml:7:3``, with the variables behind it, or ``--set``."""
        if not self.file:
            return self.note
        line, column = (self.spot.line, self.spot.column) if of_key else self.spot[2:]
        return f"{self.file}:{line}:{column}" + f" {self.note}" * bool(self.note)

    def short(self) -> str:
        """The same without the column, as a comment beside a setting has it."""
        return f"{self.file}:{self.spot.line} {self.note}".strip() if self.file else self.note


class Origins:
    """The origins of a document's settings.

    Args:
        file: the main file, as the user named it.
        text: its bytes.
        found: where its settings stand.
    """

    def __init__(self, file: str = "", text: bytes = b"", found: Mapping[Key, Spot] | None = None) -> None:
        self.file = file
        self._read = [(Path(file), text)] if file else []
        self._found = {key: Origin(file, spot) for key, spot in (found or {}).items()}

    @property
    def files(self) -> list[Path]:
        """Every file that was read, in that order."""
        return [path for path, _ in self._read]

    @property
    def digest(self) -> str:
        """The SHA-256 over every file that was read, one after the other, in hexadecimal."""
        return sha256(b"".join(text for _, text in self._read)).hexdigest()

    def add_files(self, other: Origins) -> None:
        """The files of another document were read as well."""
        self._read += other._read

    def of(self, key: Key) -> Origin | None:
        """Where a setting comes from; where the section around it does if the setting is not there itself."""
        while key:
            if (origin := self._found.get(key)) is not None:
                return origin
            key = key[:-1]
        return None

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def is_last(self, key: Key) -> bool:
        """Whether the setting is there and nothing under it is: a text in place of a mapping."""
        return key in self._found and not any(rest for rest, _ in self.under(key))

    def set(self, key: Key, value: Any, origin: Origin) -> None:
        """Everything at and under a key comes from here."""
        for inner in [each for each in self._found if each[: len(key)] == key]:
            del self._found[inner]
        self._spread(key, value, origin)

    def note(self, key: Key, value: Any, note: str) -> None:
        """Say what else a setting comes from; ``value`` is what it is by that."""
        if (origin := self.of(key)) is not None:
            self._spread(key, value, replace(origin, note=" ".join(filter(None, (origin.note, note)))))

    def _spread(self, key: Key, value: Any, origin: Origin) -> None:
        self._found[key] = origin
        entries = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for name, inner in entries:
            self._spread((*key, str(name)), inner, origin)

    def under(self, key: Key) -> Iterator[tuple[Key, Origin]]:
        """The origins at and under a key, by what follows the key."""
        for each, origin in [*self._found.items()]:
            if each[: len(key)] == key:
                yield each[len(key) :], origin

    def copy(self, source: Origins, key: Key) -> None:
        """What another file has at and under a key comes from there."""
        for rest, origin in source.under(key):
            self._found[(*key, *rest)] = origin

    def inherit(self, key: Key, origin: Origin, written: Key) -> None:
        """A setting comes from the ``defaults``; messages name it as it is there."""
        self._found[key] = replace(origin, written=written)

    def move(self, at: Key, to: Key) -> None:
        """What was at ``at`` is at ``to``."""
        for rest, origin in [*self.under(at)]:
            del self._found[(*at, *rest)]
            self._found[(*to, *rest)] = origin

    def mistake(self, sentence: str, key: Key, of_key: bool = False) -> Mistake:
        """A mistake with its place.

        Args:
            key: the setting; its section counts if the setting is not there.
            of_key: the key is wrong, not its value.
        """
        origin = self.of(key)
        if origin is None:
            return Mistake(sentence, self.file, self.file)
        of_key = of_key or key not in self._found
        if not origin.file:
            return Mistake(sentence, origin.note)
        line, column = origin.spot[:2] if of_key else origin.spot[2:]
        return Mistake(sentence, origin.place(of_key), origin.file, line, column)

    def placed(self, mistake: Mistake, pipelines: Sequence[str], known_only: bool = False) -> Mistake:
        """A mistake whose sentence begins with the dotted name of a setting, with its place.

        Args:
            pipelines: their names; with one, its settings may be named as if it stood at the top.
            known_only: leave a mistake as it is if it names nothing that is in the file; else it gets the file.
        """
        if mistake.place:
            return mistake
        name = _NAME.match(mistake.sentence)
        key = self._key(name[1], pipelines) if name is not None else ()
        if not key:
            return mistake if known_only else Mistake(mistake.sentence, self.file, self.file)
        return self.mistake(mistake.sentence, key, of_key=bool(_ABOUT_NAME.search(mistake.sentence)))

    def _key(self, name: str, pipelines: Sequence[str]) -> Key:
        """The key that a dotted name stands for: of itself, or of the nearest section that is there."""
        by_name = {".".join(key): key for key in self._found}
        while name:
            for prefix in ("", *(f"pipelines.{only}." for only in pipelines if len(pipelines) == 1)):
                if (key := by_name.get(prefix + name)) is not None:
                    return key
            name = name.rpartition(".")[0]
        return ()

    def order(self, mistake: Mistake) -> tuple[bool, str, int, int]:
        """For sorting: by file and line, the main file first, then what has no line."""
        return (
            mistake.line == 0,
            "" if mistake.file == self.file else mistake.file,
            mistake.line,
            mistake.column,
        )


_NAME = re.compile(r"(?:unknown key )?([^\s:;,]+)(?=: | is required|; )")
"""A sentence about a setting begins with its dotted name."""
_ABOUT_NAME = re.compile(r"^unknown key |: librdkafka knows no such property|: expected not to be set")
"""The key itself is wrong, whatever its value."""
