"""From a validation error to sentences: one for each mistake, with the nearest known key where one is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from worker.settings.source import hides
from worker.settings.yaml_text import Key, describe, dotted


class Fault(NamedTuple):
    """One mistake in a document."""

    key: Key
    """The setting's place in the document that was validated."""
    sentence: str
    unknown: bool = False
    """There is no such setting."""
    nearest: str = ""
    """The setting that may be meant instead, with its dotted name."""
    slip: str = ""
    """The last part of that name, where it is of the same section and surely meant."""
    missing: bool = False


def sentence(error: ValidationError, document: Any, known: set[Key], hidden: Key = ()) -> str:
    """The first mistake of a validation as ``field: got X, expected Y``; an unknown key comes before all others.

    Args:
        error: what validating ``document`` raised.
        document: what was validated; its keys tell settings from pydantic's own markers in an error's location.
        known: every setting there is.
        hidden: leading keys that the user did not write (one pipeline at the top of the file).
    """
    found = [*faults(error, document, known, hidden)]
    return next((each for each in found if each.unknown), found[0]).sentence


def faults(error: ValidationError, document: Any, known: set[Key], hidden: Key = ()) -> Iterator[Fault]:
    """Every mistake of a validation; the arguments are those of :func:`sentence`.

    A value that may be of several kinds is refused by each of them: these refusals are one mistake.
    """
    details = error.errors(include_url=False)
    by_place: dict[Key, list[Any]] = {}
    for detail in details:
        by_place.setdefault(_place(detail["loc"], document, detail["type"]), []).append(detail)
    unknown = {place for place, each in by_place.items() if each[0]["type"] == "extra_forbidden"}
    told: list[Key] = []
    for place in sorted(by_place, key=lambda place: place not in unknown):  # stable: the rest keeps its order
        related = [other for other in told if place[: len(other)] == other or other[: len(place)] == place]
        if related and place not in unknown:
            continue  # another kind's refusal of the same value
        told.append(place)
        yield _fault(place, by_place[place], document, known, hidden)


def _fault(place: Key, details: Sequence[Any], document: Any, known: set[Key], hidden: Key) -> Fault:
    first = details[0]
    shown = place[len(hidden) :] if place[: len(hidden)] == hidden else place
    name = dotted(shown)
    if first["type"] == "extra_forbidden":
        hint, nearest, slip = _hint(shown, known)
        return Fault(place, f"unknown key {name}; {hint}", True, nearest, slip)
    if first["type"] == "missing":
        return Fault(place, f"{name} is required", missing=True)
    message = _message(details)
    if message.startswith("expected ") and not hides(place):  # what is there may be a secret
        message = f"got {describe(first['input'])}, {message}"
    return Fault(place, f"{name}: {message}" if name else message)


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


def _hint(key: Key, known: set[Key]) -> tuple[str, str, str]:
    """What to write in place of an unknown key; the dotted name in it, and its last part where it is surely meant.

    A key of the same section that is spelt much like it comes first, then a known synonym, then the same word in
    another section. If nothing is alike, the sentence lists what the section takes: a far-fetched guess misleads.
    """
    siblings = sorted(name[-1] for name in known if _is_sibling(name, key) and name[-1] != "*")
    found = max(siblings, key=lambda name: _likeness(key[-1], name), default="")
    alike = _likeness(key[-1], found)
    meant, shown = _SYNONYMS.get(key[-1], ("", ""))
    elsewhere = sorted(name for name in known if name[-1] == key[-1])
    slip = ""
    if alike >= _SLIP:
        nearest, slip = dotted((*key[:-1], found)), found
    elif meant in siblings:
        nearest = dotted((*key[:-1], shown))
    elif elsewhere:
        nearest = dotted(elsewhere[0]).replace("*", "<name>")
    elif alike >= _ALIKE:
        nearest = dotted((*key[:-1], found))
    else:
        return f"expected one of {', '.join(siblings)}" if siblings else "no key is expected there", "", ""
    return f"the nearest known key is {nearest}", nearest, slip


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


def _message(same: Sequence[Any]) -> str:
    """What the setting takes, from every branch of its type that refused the same value."""
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
