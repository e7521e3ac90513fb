"""The kinds of values a setting may have, each with its check and its form in the JSON Schema."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from worker.filesystem import PATH_MAX
from worker.registry import CUSTOM_CODE, INPUT_FORMATS, OUTPUT_FORMATS, PAYLOAD_FILTERS
from worker.settings.choice import NameIn
from worker.topics import is_pattern, pattern_fault

MIB = 1 << 20


def _topic_name(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) or name in (".", ".."):
        raise ValueError("expected a topic name: 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    return name


def _topic_or_pattern(name: str) -> str:
    if not is_pattern(name):
        return _topic_name(name)
    if fault := pattern_fault(name):
        raise ValueError(fault)
    return name


def from_file(path: Path, info: ValidationInfo) -> Path:
    """Relative to the configuration file, whatever the working directory is.

    Raises:
        ValueError: no file can have this path.
    """
    whole = Path(os.path.abspath(info.context["base"] / path)) if info.context else path
    if "\0" in str(path):
        raise ValueError("expected a path without NUL characters")
    nbytes = len(os.fsencode(whole))
    if nbytes > PATH_MAX:
        raise ValueError(f"expected a path of at most {PATH_MAX:,} bytes, this one has {nbytes:,}")
    return whole


def _custom_code(name: str) -> str:
    if not CUSTOM_CODE.fullmatch(name):
        raise ValueError('expected "module:Class"')
    return name


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _non_zero(values: list[float]) -> list[float]:
    if 0 in values:
        raise ValueError("expected numbers other than 0, because they are divided by")
    return values


def _open_size(value: Any) -> Any:
    try:
        height, width = (None if side is None else int(side) for side in value)
    except (TypeError, ValueError):
        height = width = 0
    if any(side is not None and side < 1 for side in (height, width)) or isinstance(value, str):
        raise ValueError(
            "expected [height, width] in pixels, both at least 1, or null for a side that is open"
        )
    return height, width


def _body(body: dict[str, Any]) -> dict[str, Any]:
    for name, value in body.items():
        if isinstance(value, dict):
            _body(value)
        elif not isinstance(value, str) or not value:
            raise ValueError(f"expected a path, or a mapping of names to paths, under {name}")
    if not body:
        raise ValueError("expected at least one name with its path")
    return body


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if re.search(r"[\s/]", host) or (":" in host and not bracketed):
        host = ""
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('expected "host:port" with a port from 0 to 65535, such as "127.0.0.1:9464"')
    return address


def _missing(value: Any) -> Any:
    """YAML has a NaN of its own, ``.nan``; every spelling is one word here."""
    return "nan" if isinstance(value, str) and value.lower() in ("nan", ".nan") else value


def _sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError("expected 64 hexadecimal digits")
    return digest.lower()


def _distinct(values: list[str]) -> list[str]:
    if not values or len(set(values)) != len(values):
        raise ValueError("expected at least one entry and none of them twice")
    return values


Text = Annotated[str, Field(min_length=1)]
Label = Annotated[str, Field(min_length=1), AfterValidator(str.strip)]
Topic = Annotated[str, AfterValidator(_topic_name)]
File = Annotated[Path, AfterValidator(from_file)]
CustomClass = Annotated[str, AfterValidator(_custom_code)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Wait = Annotated[float, Field(gt=0, le=1_000_000)]
"""Seconds of one wait; the operating system limits how long a wait can be."""
Pixels = Annotated[int, Field(ge=1, le=1 << 62)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[Text], AfterValidator(_distinct)]
Given = int | float | bool | Annotated[str, Field(strict=True)] | list[int | float | bool | str]
"""A value, or a list of values, that a configuration gives for a model input. The input decides what a text stands for."""
Body = Annotated[
    dict[str, Any],
    AfterValidator(_body),
    WithJsonSchema(
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1}]},
        }
    ),
]
"""Names of a body of one's own: each stands for a path, or for an object of such names."""
Numbers = Annotated[
    list[float],
    BeforeValidator(_one_or_more),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
    ),
    Field(min_length=1),
]
Divisors = Annotated[Numbers, AfterValidator(_non_zero)]
INPUT_FORMAT = NameIn(INPUT_FORMATS)
InputFormat = Annotated[str, INPUT_FORMAT]
OutputFormat = Annotated[str, NameIn(OUTPUT_FORMATS)]
Filters = Annotated[list[Annotated[str, NameIn(PAYLOAD_FILTERS)]], Field(min_length=1, max_length=4)]
OpenSize = Annotated[
    tuple[int | None, int | None],
    BeforeValidator(_open_size),
    WithJsonSchema(
        {"type": "array", "items": {"type": ["integer", "null"], "minimum": 1}, "minItems": 2, "maxItems": 2}
    ),
]
Providers = Annotated[list[Literal["cpu", "cuda", "tensorrt"]], AfterValidator(_distinct)]
Missing = Annotated[float | Literal["reject", "nan"], BeforeValidator(_missing)]
Topics = Annotated[list[Annotated[str, AfterValidator(_topic_or_pattern)]], AfterValidator(_distinct)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
