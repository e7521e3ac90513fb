"""A route: which records it takes, their limits, and where their answers go. It lives as long as the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from worker.batch import Destination
from worker.outside import Outside
from worker.payload.events import Results
from worker.payload.opening import Opening, opening_of
from worker.payload.wrapping import wrapping_of
from worker.records import id_reader
from worker.registry import OUTPUT_FORMATS
from worker.serving.envelope import Envelope

if TYPE_CHECKING:
    from worker.payload.keys import Keys
    from worker.serving.offload import Offload
    from worker.settings import PipelineSettings


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """See :class:`worker.batch.Route`, which says what each field means."""

    name: str
    topics: frozenset[str]
    when: tuple[str, bytes] | None
    max_bytes: int
    tombstone: str
    max_wait_s: float
    keep: Literal["all", "latest"] | int
    destination: Destination
    envelope: Envelope
    opening: Opening
    outside: tuple[Outside, ...] = ()
    """Whom its records need before they can be decoded, in the order in which they are asked."""
    offload: Offload | None = None
    """Where large results go."""


def route_of(name: str, settings: PipelineSettings, keys: Keys | None = None) -> Route:
    """The route of one pipeline.

    Args:
        name: the pipeline's key in the configuration.
        keys: of ``encryption``; None without that section.

    Raises:
        ConfigError: a payload filter cannot be made.
    """
    opening = opening_of(settings.input, keys)
    wanted, output = settings.input, settings.output
    written = OUTPUT_FORMATS.entry(output.format)
    envelope = Envelope(
        output.headers,
        written.reserved,
        written.names_source or output.body is not None,
        id_reader(wanted.format),
        written.expires_as_error,
        wrapping_of(output, keys),
        Results(output.cloudevents, written.content_type) if output.cloudevents else None,
        opening,
    )
    return Route(
        name=name,
        topics=frozenset(wanted.topics),
        when=(settings.when.header, settings.when.equals.encode()) if settings.when else None,
        max_bytes=wanted.max_bytes,
        tombstone=wanted.tombstone,
        max_wait_s=settings.batching.max_wait_ms / 1000,
        keep=wanted.keep if isinstance(wanted.keep, str) else wanted.keep.every,
        destination=Destination(output.topic, output.partition, output.errors),
        envelope=envelope,
        opening=opening,
        outside=_outside(settings),
        offload=_offload(settings, envelope),
    )


def _offload(settings: PipelineSettings, envelope: Envelope) -> Offload | None:
    wanted = settings.output
    if wanted.offload is None:
        return None
    from worker.serving.offload import Offload

    return Offload(wanted.offload, wanted.format, envelope)


def _outside(settings: PipelineSettings) -> tuple[Outside, ...]:
    wanted = settings.input
    if wanted.reference is None:
        return ()
    from worker.stores.references import References

    return (References(wanted.reference, wanted.max_bytes),)
