"""Settings of things that lie in a store: payloads by reference, and large results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from worker.settings.kinds import Positive, Seconds, Text, Wait
from worker.settings.section import Section

Options = Mapping[str, str | Mapping[str, str]]


def _allowed(entries: list[str]) -> list[str]:
    from worker.stores.allow import Allowed

    Allowed(entries)
    return entries


def _folder(url: str) -> str:
    from worker.stores.allow import Allowed

    Allowed([url])
    return url if url.endswith("/") else f"{url}/"


def _options(value: Any) -> Any:
    """Text by name; true and numbers are text too. A mapping holds the options of the scheme that it is named by."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("expected a mapping, such as {region: eu-central-1}")
    found: dict[str, Any] = {}
    for name, option in value.items():
        if isinstance(option, Mapping):
            found[str(name)] = _options(option)
        elif isinstance(option, list):
            raise ValueError("expected one value for each option")
        elif option is not None:
            found[str(name)] = str(option).lower() if isinstance(option, bool) else str(option)
    return found


StoreOptions = Annotated[
    dict[str, str | dict[str, str]],
    BeforeValidator(_options),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": ["string", "number", "boolean"]},
                    {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
                ]
            },
        }
    ),
]


class ReferenceSettings(Section):
    """Payloads that lie in a store: each record names an object, and the object is decoded in place of the record's value."""

    from_: Text = Field(default="header:ce_dataref", alias="from")
    """Where the URL stands: `header:<name>`, or the path of a field of the record's JSON; a record without the header is its own payload."""
    allow: Annotated[list[Text], Field(min_length=1), AfterValidator(_allowed)]
    """Beginnings of the URLs that may be asked for, such as `s3://frames/`; every other one is refused and never asked for."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Objects asked for at once."""
    attempts: Positive = 5
    """How often an object is read whose SHA-256 is not the one in the record, before the record is refused."""
    timeout_s: Seconds = 10.0
    """Time for a connection, for an answer to begin, and for each pause in it; then the store counts as away."""
    appear_s: Annotated[float, Field(ge=0, le=1_000_000)] = 2.0
    """Time in which an object that is not there may still appear."""
    options: StoreOptions = Field(default={})
    """How to reach the store, by the names of obstore's configuration: `endpoint`, `region`, `access_key_id`, ...; by scheme where there are several."""


class OffloadSettings(Section):
    """Large results are written to a store; the output topic gets a small one that names the object."""

    to: Annotated[Text, AfterValidator(_folder)]
    """Where the objects go: the beginning of their URLs, such as `s3://results/digits/`."""
    over_bytes: Positive = 900_000
    """A result of more bytes is written to the store."""
    timeout_s: Wait = 10.0
    """Time for a connection, and for the store's answer; then the store counts as away."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Results written at once."""
    options: StoreOptions = Field(default={})
    """As `input.reference.options`."""


def redacted(options: Options) -> dict[str, Any]:
    """Options fit for logs: every value that may be a secret replaced."""
    from worker.stores.options import is_public

    return {
        name: redacted(value) if isinstance(value, Mapping) else value if is_public(name) else "[redacted]"
        for name, value in options.items()
    }


def secrets(options: Options) -> Iterator[str]:
    """The values that must never be shown."""
    from worker.stores.options import is_public

    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from secrets(value)
        elif not is_public(name) and len(value) >= SHORTEST_SECRET:
            yield value


SHORTEST_SECRET = 8
"""A shorter value, such as ``true``, is a word that any line may hold."""
