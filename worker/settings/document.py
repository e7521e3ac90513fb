"""From a document to settings.

A pipeline may stand at the top of the file or under ``pipelines``; both become the same :class:`Settings`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.errors import ConfigError, Mistake, NotReady, StartError, WorkerError
from worker.settings.checks import mistakes_together
from worker.settings.choice import INLINE, ChoiceOf, NameIn
from worker.settings.defaults import NAME as DEFAULTS
from worker.settings.defaults import lay_under
from worker.settings.includes import is_extra
from worker.settings.kafka_checks import kafka_mistakes
from worker.settings.mistakes import Fault, faults
from worker.settings.origins import Origins
from worker.settings.sections import PipelineSettings, Settings, with_own_names
from worker.settings.source import Document, read
from worker.settings.yaml_text import Key, describe, dotted, unshared

ROUNDS = 8
"""How often a document is looked at again with its unknown keys put right; each time finds those one level deeper."""


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Settings:
    """The settings in the YAML file ``path`` with ``--set`` overrides (``a.b=yaml``) laid over them.

    Raises:
        ConfigError: every mistake with its place; a sentence names the key, what was there and what was expected.
    """
    path = Path(path)
    return _validated(read(path, overrides), path.absolute().parent)


@contextmanager
def places_of(settings: Settings) -> Iterator[None]:
    """A mistake that is found later, such as a model that is not there, gets the place of its setting in the file.

    Raises:
        WorkerError: what was raised inside.
    """
    try:
        yield
    except WorkerError as error:
        raise located(settings, error) from error.__cause__


def located(settings: Settings, error: WorkerError) -> WorkerError:
    """The error with the places of the settings that its sentences name; itself where none is known."""
    if type(error) not in (ConfigError, StartError, NotReady):
        return error
    placed = [
        settings.origins.placed(each, [*settings.pipelines], known_only=True) for each in error.mistakes
    ]
    if placed == [*error.mistakes]:
        return error
    return type(error).of(placed, settings.origins.file)


def validate(document: dict[str, Any], base: Path) -> Settings:
    """The settings a parsed document stands for; relative paths start at the directory ``base``.

    Raises:
        ConfigError: every mistake; a sentence names the key, what was there and what was expected.
    """
    return _validated(Document(document), base)


def _validated(document: Document, base: Path) -> Settings:
    settings, found = _checked(document, base)
    origins = document.origins
    found = [*document.mistakes.values(), *found]
    if found:
        names = list(settings.pipelines) if settings is not None else []
        placed = _once(origins.placed(each, names) for each in found)
        raise ConfigError.of(sorted(placed, key=origins.order), origins.file)
    assert settings is not None
    settings._base, settings._origins = base.absolute(), origins
    if any(settings.custom_code()):
        for folder in (str(base.absolute()), os.getcwd()):
            if folder not in sys.path:
                sys.path.append(folder)
    return settings


def _checked(document: Document, base: Path) -> tuple[Settings | None, list[Mistake]]:
    """The settings, and every mistake; None where they cannot be made.

    An unknown key hides what is wrong with what stands under it, and what it was meant to be seems missing. So each
    is put right as far as it is known how, and the document is looked at again.
    """
    values, origins = document.values, document.origins
    found: list[Mistake] = []
    meant: set[str] = set()
    for _ in range(ROUNDS):
        try:
            folded, hidden = _fold(lay_under(values, origins))
            settings = Settings.model_validate(folded, context={"base": base.absolute()})
        except ConfigError as error:
            return None, [*found, *error.mistakes]
        except ValidationError as error:
            wrong = [*faults(error, folded, _known_keys(at_top=bool(hidden)), hidden)]
            unknown = [each for each in wrong if each.unknown]
            for each in unknown or wrong:
                key = _as_written(each.key, hidden, origins)
                unset = any(key[: len(other)] == other for other in document.mistakes)
                if not unset and not (each.missing and dotted(key) in meant):
                    found.append(_mistake(each, hidden, origins))
            if not unknown:
                return None, [*found, *_of_kafka(folded["kafka"], wrong)]
            values = unshared(values)
            for each in unknown:
                _put_right(values, _as_written(each.key, hidden, origins), each.slip, origins)
            meant |= {each.nearest for each in unknown if each.nearest}
        else:
            together = [] if document.mistakes else mistakes_together(settings)
            return settings, [*found, *(each for each in together if not _mentions(each, meant))]
    return None, found


def _of_kafka(properties: Any, faults: Iterable[Fault]) -> list[Mistake]:
    """What is wrong with the names of client properties, of a document that fails for other reasons."""
    if not isinstance(properties, dict) or any(each.key[:1] == ("kafka",) for each in faults):
        return []
    given = {str(name): "" if value is None else str(value) for name, value in properties.items()}
    return [Mistake(sentence) for sentence in kafka_mistakes(with_own_names(given))]


def _mentions(mistake: Mistake, names: set[str]) -> bool:
    """Whether a sentence speaks of one of these settings."""
    return any(name in mistake.sentence for name in names)


def _as_written(key: Key, hidden: Key, origins: Origins) -> Key:
    """A key of the folded document as its user wrote it: at the top of the file, or under ``defaults``."""
    shown = key[len(hidden) :] if key[: len(hidden)] == hidden else key
    origin = origins.of(shown) if shown in origins else None
    return shown if origin is None or origin.written is None else origin.written


def _mistake(fault: Fault, hidden: Key, origins: Origins) -> Mistake:
    """The mistake with its place, named as its user wrote it."""
    shown = fault.key[len(hidden) :] if fault.key[: len(hidden)] == hidden else fault.key
    written, sentence = _as_written(fault.key, hidden, origins), fault.sentence
    if written != shown and hidden:
        sentence = sentence.replace(dotted(shown), dotted(written), 1)
    elif written != shown:
        sentence = sentence.replace(f"{dotted(shown[:2])}.", f"{written[0]}.")
    return origins.mistake(sentence, shown, of_key=fault.unknown or fault.missing)


def _once(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The mistakes, one that several pipelines have from one line only once."""
    kept: dict[tuple[str, str], list[Mistake]] = {}
    for each in mistakes:
        kept.setdefault((each.place, _OF_PIPELINE.sub("", each.sentence)), []).append(each)
    return _together([_for_all(same) for same in kept.values()])


def _together(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The mistakes, with all that one section lacks as one of them."""
    kept: dict[tuple[str, ...], list[Mistake]] = {}
    for index, each in enumerate(mistakes):
        name, required, rest = each.sentence.partition(_REQUIRED)
        parts = name.split(".")
        section = tuple(parts[: 3 if parts[0] == "pipelines" else 1])
        lacks = required and not rest
        kept.setdefault((each.place, *section) if lacks else (str(index),), []).append(each)
    joined = []
    for first, *others in kept.values():
        names = [each.sentence.removesuffix(_REQUIRED) for each in others]
        verb = "are" if len(names) > 1 else "is"
        more = f", and so {verb} {' and '.join(names)}" if names else ""
        joined.append(replace(first, sentence=first.sentence + more))
    return joined


_REQUIRED = " is required"


def _for_all(same: list[Mistake]) -> Mistake:
    others = len({each.sentence for each in same}) - 1
    if not others:
        return same[0]
    return replace(same[0], sentence=f"{same[0].sentence} (and {others} other pipeline{'s' * (others > 1)})")


_OF_PIPELINE = re.compile(r"pipelines\.[^.\s:]+")


def _put_right(values: dict[str, Any], key: Key, slip: str, origins: Origins) -> None:
    """Give an unknown key the name that was surely meant, or take it away."""
    at: Any = values
    for part in key[:-1]:
        at = at[int(part)] if isinstance(at, list) else at.get(part)
        if not isinstance(at, dict | list):
            return  # put right already: several pipelines have it from the defaults
    if not isinstance(at, dict) or key[-1] not in at:
        return
    value = at.pop(key[-1])
    if slip and at.get(slip) is None:
        at[slip] = value
        origins.move(key, (*key[:-1], slip))


def _fold(document: dict[str, Any]) -> tuple[dict[str, Any], Key]:
    """The document with a pipeline at its top moved under ``pipelines``, names filled in.

    Returns it with the leading keys that the user did not write: ``("pipelines", name)`` or nothing.
    """
    folded = {key: value for key, value in document.items() if not is_extra(key)}
    at_top = {key: folded.pop(key) for key in PipelineSettings.model_fields if key in folded}
    if at_top and folded.get("pipelines") is not None:
        raise ConfigError(
            f"{next(iter(at_top))}: expected under pipelines.<name>, because pipelines is there: "
            "a pipeline stands at the top of the file or under pipelines, not both"
        )
    for key in ("dead_letter", "kafka"):
        folded[key] = {} if folded.get(key) is None else folded[key]
    if folded.get("pipelines") is None:
        if folded.get("name") is None:
            folded["name"] = _stem(at_top)
        name = str(folded["name"])
        folded["pipelines"] = {name: at_top}
        hidden: Key = ("pipelines", name)
    else:
        hidden = ()
    if not isinstance(folded["pipelines"], dict):
        got = describe(folded["pipelines"])
        raise ConfigError(f"pipelines: got {got}, expected names with a pipeline each")
    folded["pipelines"] = {
        str(name): _with_sections(pipeline, str(name)) for name, pipeline in folded["pipelines"].items()
    }
    if folded.get("name") is None:
        folded["name"] = next(map(_stem, folded["pipelines"].values()), "worker")
    return folded, hidden


def _with_sections(pipeline: Any, name: str) -> Any:
    """A pipeline with its required sections there, so that an error names the setting that is missing."""
    if pipeline is None:
        pipeline = {}
    if not isinstance(pipeline, dict):
        return pipeline
    pipeline = {key: value for key, value in pipeline.items() if not is_extra(key)}
    steps = pipeline.get("steps")
    required = ("input", "model", "output") if steps is None else ("input", "output")
    sections = {key: {} if pipeline.get(key) is None else pipeline[key] for key in required}
    if steps is None:
        return pipeline | sections | {"model": _named(sections["model"], name)}
    if isinstance(steps, list):
        sections["steps"] = [_step(each) if isinstance(each, dict) else each for each in steps]
    return {key: value for key, value in pipeline.items() if value is not None} | sections


def _step(step: dict[Any, Any]) -> dict[Any, Any]:
    return step | {"model": _named(step.get("model"), str(step.get("name")))}


def _named(model: Any, name: str) -> Any:
    """The section of a model, with a name where it has none."""
    model = {} if model is None else model
    return {**model, "name": name} if isinstance(model, dict) and model.get("name") is None else model


def _stem(pipeline: Any) -> str:
    model = pipeline.get("model") if isinstance(pipeline, dict) else None
    if isinstance(pipeline, dict) and isinstance(steps := pipeline.get("steps"), list) and steps:
        return _stem(steps[0])
    if not isinstance(model, dict):
        return "worker"
    if model.get("path") is None and model.get("name"):
        return str(model["name"])
    return Path(str(model.get("path") or "")).stem or "worker"


def _known_keys(at_top: bool) -> set[Key]:
    """Every setting of one form of the file, with ``*`` for a name of the user's choice."""
    keys = set(_keys_of(Settings)) | {(DEFAULTS,), ("include",)}
    if not at_top:
        return keys
    return {key for key in keys if key[0] != "pipelines"} | set(_keys_of(PipelineSettings))


def _keys_of(section: type[BaseModel], parent: Key = ()) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        key = (*parent, field.alias or name)
        if field.alias != INLINE:
            yield key
        choice = next((mark for mark in field.metadata if isinstance(mark, ChoiceOf)), None)
        if choice is not None:
            at = parent if field.alias == INLINE else key
            for entry, options in choice.sections():
                yield (*at, entry)
                yield from _keys_of(options, (*at, entry))
            continue
        naming = next((mark for mark in field.metadata if isinstance(mark, NameIn)), None)
        if naming is not None:
            for entry, options in naming.sections():
                yield (*key, entry)
                yield from _keys_of(options, (*key, entry))
            continue
        inner, mapping = _section_in(field.annotation)
        if inner:
            yield from _keys_of(inner, (*key, "*") if mapping else key)


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section inside ``Section``, ``Section | None`` or ``dict[str, Section]``, and whether it is the last."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    arguments = getattr(annotation, "__args__", ())
    found, many = next((inner for inner in map(_section_in, arguments) if inner[0]), (None, False))
    return found, many or (found is not None and getattr(annotation, "__origin__", None) in (dict, list))
