"""What one record needs before and after the engine: payloads from outside, wrapping, and the body of its result."""

from __future__ import annotations

from typing import Any

import orjson

from worker.batch import Headers
from worker.errors import StartError
from worker.outside import Away, NotYet, Sized
from worker.payload.headers import marks
from worker.serving.route import Route


def fetched(route: Route, value: bytes | None, headers: Headers | None, asker: str) -> bytes | None:
    """What the record's reference names; None where it has none.

    Args:
        asker: who wants to know, for messages: an option, a record.

    Raises:
        Reject: the record would become a dead letter.
        StartError: whoever has it is away.
    """
    payload: bytes | None = None
    for outside in route.outside:
        need = outside.need(value if payload is None else payload, headers)
        if need is None:
            continue
        try:
            found = outside.ask(need, route.max_bytes)
            if isinstance(found, Sized):
                found = found.read()
        except NotYet as error:
            raise error.reject from None
        except Away as error:
            raise StartError(f"{asker}: the {need.place} cannot be reached: {error}") from None
        payload = payload if found is None else found
    return payload


def as_sent(route: Route, value: bytes, headers: Headers | None) -> tuple[bytes, Headers | None]:
    """The value wrapped as the pipeline expects it, unless its headers say that it is wrapped already."""
    if not route.opening.always or marks(headers or []):
        return value, headers
    wrapping = route.opening.wrapping(route.topics.example)
    if wrapping is None:
        return value, headers
    seal = wrapping.now()
    return seal(value), [*(headers or []), *seal.headers]


def opened_body(route: Route, body: bytes, headers: Headers | None) -> Any:
    """The body of a result without what the pipeline wraps around it; parsed where it is JSON."""
    inside = route.envelope.undo(body, headers)
    try:
        return route.envelope.read(inside)
    except orjson.JSONDecodeError:
        return inside
