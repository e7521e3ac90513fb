"""A route: which records it takes, their limits, and where their answers go. It lives as long as the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from worker.batch import Destination
from worker.errors import ConfigError
from worker.outside import Outside
from worker.payload.events import Results
from worker.payload.opening import Opening, opening_of
from worker.payload.wrapping import wrapping_of
from worker.records import id_reader
from worker.registry import INPUT_FORMATS, OUTPUT_FORMATS
from worker.serving.cache import Entries, entries_of
from worker.serving.envelope import Envelope, Writer
from worker.topics import Topics

if TYPE_CHECKING:
    from worker.drift.watch import Watch
    from worker.payload.keys import Keys
    from worker.schema_registry.book import Schemas, Shelf
    from worker.schema_registry.opening import Registry
    from worker.serving.offload import Offload
    from worker.settings import PipelineSettings


class FramedFormat(Protocol):
    """An input format whose records name their schema."""

    def shelf_of(self, schemas: Schemas) -> Shelf[Any]:
        """The readers of its schemas."""


class RegisteredFormat(Protocol):
    """An output format whose results have a schema in a registry."""

    def writer(self, registry: Registry, topic: str) -> Writer:
        """Registers the schema under the topic's subject."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """See :class:`worker.batch.Route`, which says what each field means."""

    name: str
    topics: Topics
    when: tuple[str, bytes] | None
    max_bytes: int
    tombstone: str
    priority: int
    max_wait_s: float
    keep: Literal["all", "latest"] | int
    destination: Destination
    envelope: Envelope
    opening: Opening
    schemas: Schemas | None = None
    """Of the records that name theirs; None where there is no schema registry."""
    outside: tuple[Outside, ...] = ()
    """Whom its records need before they can be decoded, in the order in which they are asked."""
    offload: Offload | None = None
    """Where large results go."""
    drift: Watch | None = None
    """What compares its records with a profile; None where nobody asks for it."""
    entries: Entries | None = None
    """The answers that its servables keep; None where it has no cache."""


def route_of(
    name: str, settings: PipelineSettings, keys: Keys | None = None, registry: Registry | None = None
) -> Route:
    """The route of one pipeline.

    Args:
        name: the pipeline's key in the configuration.
        keys: of ``encryption``; None without that section.
        registry: the schema registry; None where no pipeline needs one.

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
        _writer(settings, registry),
    )
    return Route(
        name=name,
        topics=wanted.names,
        when=(settings.when.header, settings.when.equals.encode()) if settings.when else None,
        max_bytes=wanted.max_bytes,
        tombstone=wanted.tombstone,
        priority=settings.priority,
        max_wait_s=settings.batching.max_wait_ms / 1000,
        keep=wanted.keep if isinstance(wanted.keep, str) else wanted.keep.every,
        destination=Destination(output.topic, output.partition, output.errors),
        envelope=envelope,
        opening=opening,
        outside=(*_outside(settings), *_schemas(settings, opening, registry)),
        schemas=registry.schemas if registry is not None else None,
        offload=_offload(settings, envelope),
        drift=_watch(settings),
        entries=entries_of(settings.cache),
    )


def _offload(settings: PipelineSettings, envelope: Envelope) -> Offload | None:
    wanted = settings.output
    if wanted.offload is None:
        return None
    from worker.serving.offload import Offload

    return Offload(wanted.offload, wanted.format, envelope)


def _watch(settings: PipelineSettings) -> Watch | None:
    if settings.drift is None:
        return None
    from worker.serving.gauge import watch_of

    return watch_of(settings)


def _outside(settings: PipelineSettings) -> tuple[Outside, ...]:
    wanted = settings.input
    if wanted.reference is None:
        return ()
    from worker.stores.references import References

    return (References(wanted.reference, wanted.max_bytes),)


def _schemas(settings: PipelineSettings, opening: Opening, registry: Registry | None) -> tuple[Outside, ...]:
    """The schema registry, where the records of a format name their schemas."""
    entry = INPUT_FORMATS.entry(settings.input.format)
    if registry is None or not getattr(entry, "needs_schemas", False):
        return ()
    from worker.schema_registry.outside import SchemasNeeded

    shelf = cast("FramedFormat", entry).shelf_of(registry.schemas)
    return (SchemasNeeded(shelf, registry.place, opening.applies),)


def _writer(settings: PipelineSettings, registry: Registry | None) -> Writer | None:
    """What writes the values of a format whose schema is in a registry, where it is registered now; None for the others.

    Raises:
        StartError: the registry does not answer, or does not take the schema.
    """
    written = OUTPUT_FORMATS.entry(settings.output.format)
    if not getattr(written, "needs_schemas", False):
        return None
    if registry is None:
        raise ConfigError(f"output.format: {settings.output.format} needs registry: {{url: ...}}")
    return cast("RegisteredFormat", written).writer(registry, settings.output.topic)
