"""Wrapped payloads on the command line: what is sent is wrapped as the pipeline expects it, what is shown unwrapped if asked for."""

from __future__ import annotations

from collections.abc import Callable

from worker.batch import Headers
from worker.errors import Reject
from worker.payload.keys import Keys
from worker.payload.opening import opening_of
from worker.payload.wrapping import Wrapping, wrapping_of
from worker.settings import Settings

Read = Callable[[bytes, Headers], bytes]
"""Unwraps a value, given its headers."""


def keys_of(settings: Settings) -> Keys | None:
    """The keys of ``encryption``; None without that section."""
    return Keys(settings.encryption) if settings.encryption is not None else None


def sent_to(settings: Settings, topic: str) -> Wrapping | None:
    """How values that go to an input topic are wrapped; None where they are sent as they are."""
    for pipeline in settings.pipelines.values():
        if topic in pipeline.input.names and pipeline.input.unwrap:
            return opening_of(pipeline.input, keys_of(settings)).wrapping(topic)
    return None


def reader_of_results(settings: Settings) -> Callable[[str], Read | None]:
    """For an output topic: what unwraps its values; None where they are not wrapped."""
    keys = keys_of(settings)
    found: dict[str, Read] = {}
    for pipeline in settings.pipelines.values():
        wrapping = wrapping_of(pipeline.output, keys)
        if wrapping is not None:
            found[pipeline.output.topic] = wrapping.undo
    return found.get


def reader_of_requests(settings: Settings) -> Callable[[str, str], Read | None]:
    """For the name of a pipeline and an input topic: what unwraps the values that were read there."""
    keys = keys_of(settings)
    openings = {name: opening_of(pipeline.input, keys) for name, pipeline in settings.pipelines.items()}

    def read(name: str, topic: str) -> Read | None:
        opening = openings.get(name)
        return (lambda value, headers: opening.unwrap(value, headers, topic)) if opening is not None else None

    return read


def unwrapped(read: Read | None, value: bytes | None, headers: Headers) -> bytes | None:
    """A value unwrapped; as it is where it cannot be."""
    if read is None or value is None:
        return value
    try:
        return read(value, headers)
    except Reject:
        return value


def described(settings: Settings) -> str:
    """What is around the values of each pipeline and whose keys are there; empty where nothing is."""
    parts = []
    for name, pipeline in settings.pipelines.items():
        taken, sent = pipeline.input, pipeline.output
        if taken.unwrap or sent.wrap:
            steps = f"{name}: unwraps {', '.join(taken.unwrap or ['nothing'])}"
            if taken.unwrap:
                steps += f" (at most {taken.unwrapped_bytes} bytes inside)"
            parts.append(f"{steps}, wraps in {', '.join(sent.wrap or ['nothing'])}")
    if settings.encryption is not None:
        use = f", results use {settings.encryption.use}" if settings.encryption.use else ""
        parts.append(f"keys {', '.join(settings.encryption.keys)}{use}")
    return "; ".join(parts)
