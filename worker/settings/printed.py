"""The configuration that counts, as YAML: every setting with its value, and where that comes from as a comment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from worker.settings.origins import Origins
from worker.settings.sections import Settings, aliases
from worker.settings.yaml_text import Key

DEFAULT = "default"
_LONGEST = 60
"""Characters of a value behind which comments are not aligned any more."""


def printed(settings: Settings) -> str:
    """A file that means the same settings without its ``defaults``, includes, variables and ``--set`` options.

    Secrets are replaced: whoever uses the file puts them in again.
    """
    plain = settings.redacted()
    for pipeline in plain["pipelines"].values():
        if pipeline["steps"] is not None:  # which stand in place of these
            pipeline |= dict.fromkeys(("preprocess", "model", "postprocess"))
    names = [*plain["pipelines"]]
    if len(names) == 1 and not any(settings.origins.under(("pipelines",))):
        pipeline = plain.pop("pipelines")[names[0]]
        plain = {"name": plain.pop("name"), **pipeline, **plain}
    lines = [*_lines(plain, (), settings.origins)]
    width = min(_LONGEST, max(len(text) for text, origin in lines if origin))
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def _lines(section: dict[str, Any], at: Key, origins: Origins) -> Iterator[tuple[str, str]]:
    """Each line with its origin; a line that opens a section has none. What is not set is left out."""
    indent = "  " * len(at)
    for name, value in section.items():
        key = (*at, name)
        if isinstance(value, dict) and value:
            inner = [*_lines(value, key, origins)]
            if inner:
                yield f"{indent}{_scalar(name)}:", ""
                yield from inner
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield f"{indent}{_scalar(name)}:", ""
            yield from _items(value, key, origins)
        else:
            origin = _origin(key, value, origins)
            if origin or value not in (None, {}):
                yield f"{indent}{_scalar(name)}: {_scalar(value)}", origin or DEFAULT


def _items(values: list[Any], at: Key, origins: Origins) -> Iterator[tuple[str, str]]:
    """A list with mappings in it, such as ``steps``."""
    indent = "  " * len(at)
    for index, value in enumerate(values):
        key = (*at, str(index))
        if not isinstance(value, dict) or not value:
            yield f"{indent}- {_scalar(value)}", _origin(key, value, origins) or DEFAULT
            continue
        (text, origin), *rest = _lines(value, key, origins)
        yield f"{indent}- {text.lstrip()}", origin
        yield from rest


def _origin(key: Key, value: Any, origins: Origins) -> str:
    """Where a value comes from; empty for a default."""
    if key[0] == "kafka":  # it may be given by another name of librdkafka's
        key = next(
            (each for each in (key, *(("kafka", a) for a in aliases(key[-1]))) if each in origins), key
        )
    origin = origins.of(key) if key in origins or (value == {} and origins.is_last(key[:-1])) else None
    return origin.short() if origin is not None else ""


def _scalar(value: Any) -> str:
    """A value on one line, as YAML that is read back as the same."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text
