"""From a record's value to the bytes that its input format reads.

Without a reference: the filters of ``input.unwrap``, or those that header ``content-encoding`` names, then the envelope of
a structured CloudEvent. With one, the event is opened first, because it holds the reference; what was fetched is unwrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.batch import Headers
from worker.errors import ConfigError, Reject
from worker.payload import Filter, events, make_filter
from worker.payload.headers import CONTENT_ENCODING, ENCRYPTION, encodings, is_structured, last, marks
from worker.payload.wrapping import Wrapping
from worker.records.memory import json_bytes

if TYPE_CHECKING:
    from worker.payload.keys import Keys
    from worker.settings.sections import InputSettings

FOLLOWED = ("gzip", "zstd")
"""The filters that header ``content-encoding`` may name."""
_LAYERS_MAX = 4
_EVENT_TIMES = 32
"""Upper bound of the memory for parsing an event, as a multiple of its length: JSON of one-digit numbers takes most."""


class Opening:
    """How the values of one route are opened. Pool threads share it; it keeps nothing of a record.

    Args:
        filters: of ``input.unwrap``; None without that setting: header ``content-encoding`` is followed.
        at_most: most bytes that a value may have unwrapped, and between two filters.
    """

    def __init__(self, filters: Sequence[Filter] | None, at_most: int) -> None:
        self._filters = filters
        self._at_most = at_most
        self._followed: dict[str, Filter] = {}
        """By the word of header ``content-encoding``: its filter, made when a record first names it."""
        self.always = bool(filters)
        """Every record is wrapped, whatever its headers say."""
        self.secret = any(layer.exact for layer in filters or ())
        """What is inside is encrypted: no message may quote it."""
        self.hides = self.runs_code or any(not layer.exact for layer in (filters or ())[1:])
        """The length inside cannot be told before the value is unwrapped."""

    def applies(self, headers: Headers | None) -> bool:
        """Whether a record with these headers has to be opened."""
        return self.always or (bool(headers) and marks(headers or []))

    def is_event(self, headers: Headers) -> bool:
        """Whether the headers say that the value is a structured event."""
        return is_structured(headers)

    def cost(self, value: bytes, headers: Headers | None) -> tuple[int, int, int]:
        """What opening a record needs.

        Returns:
            Most bytes that may be inside; bytes of memory that unwrapping takes; most bytes that parsing the event takes,
            where it is one.

        Raises:
            Reject: the value's own header says that it cannot be unwrapped, or has too many bytes inside.
        """
        layers = self._layers(headers)
        first = layers[0].bound(value, self._at_most) if layers else len(value)
        if not headers or not is_structured(headers):
            return (first, 2 * first, 0) if len(layers) == 1 else (*self._sizes(layers, first), 0)
        inside, unwrapping = self._sizes(layers, first)
        return inside, unwrapping, 2 * inside + (_EVENT_TIMES * inside if layers else json_bytes(value))

    def cost_of_length(self, nbytes: int, headers: Headers | None) -> tuple[int, int]:
        """As the first two of :meth:`cost`, of a value of which only the length is known, and which is no event."""
        layers = self._layers(headers)
        return self._sizes(layers, min(self._at_most, layers[0].bound_of(nbytes)) if layers else nbytes)

    def open(self, value: bytes, headers: Headers | None, topic: str) -> tuple[bytes, Headers | None]:
        """The bytes to decode, and the headers as they count.

        Raises:
            Reject: ``too_large``, ``undecodable`` or ``invalid``.
        """
        for layer in self._filters if self._filters is not None else self._layers(headers):
            value = layer.unwrap(value, headers or [], topic, self._at_most)
        if headers is None or not is_structured(headers):
            return value, headers
        event = events.parse(value)
        return events.data(event), events.merged(headers, event)

    def unwrap(self, value: bytes, headers: Headers | None, topic: str) -> bytes:
        """The value without the filters around it; an event stays an event."""
        for layer in self._layers(headers):
            value = layer.unwrap(value, headers or [], topic, self._at_most)
        return value

    def counted(self, value: bytes, headers: Headers | None) -> Headers | None:
        """The headers as they count for a record that is a structured event, readable as it is; else as they are.

        Raises:
            Reject: it is a broken one.
        """
        return headers if self._layers(headers) else self.with_attributes(value, headers)

    def with_attributes(self, value: bytes, headers: Headers | None) -> Headers | None:
        """As :meth:`counted`, of an event that is not wrapped itself, because the headers are about what it refers to.

        Raises:
            Reject: it is broken.
        """
        if headers is None or not is_structured(headers):
            return headers
        return events.merged(headers, events.parse(value))

    def _sizes(self, layers: Sequence[Filter], first: int) -> tuple[int, int]:
        """Most bytes inside all layers, and the memory of all steps, if the outermost has so many inside."""
        sizes = [first]
        for layer in layers[1:]:
            sizes.append(min(self._at_most, layer.bound_of(sizes[-1])))
        # What a library grows its result in exists beside the result for a moment.
        return sizes[-1], sum(sizes) + max(sizes) if layers else 0

    def _layers(self, headers: Headers | None) -> Sequence[Filter]:
        """The filters around a record, outermost first.

        Raises:
            Reject: ``undecodable``: its headers name one that is not known, or not installed.
        """
        if self._filters is not None:
            return self._filters
        if not headers:
            return ()
        if last(headers, ENCRYPTION) is not None:
            raise Reject(
                f"the record has header {ENCRYPTION}; expected aes-256-gcm in input.unwrap for it",
                "undecodable",
            )
        names = encodings(headers)
        if len(names) > _LAYERS_MAX:
            raise Reject(
                f"header {CONTENT_ENCODING} names {len(names)} codings, expected at most {_LAYERS_MAX}"
            )
        return [self._named(name) for name in reversed(names)]

    def _named(self, encoding: str) -> Filter:
        found = self._followed.get(encoding)
        if found is None:
            if encoding not in FOLLOWED:
                raise Reject(
                    f'header {CONTENT_ENCODING} is "{encoding[:40]}"; expected {" or ".join(FOLLOWED)}, or none',
                    "undecodable",
                )
            try:
                found = self._followed[encoding] = make_filter(encoding, f"header {CONTENT_ENCODING}", None)
            except ConfigError as error:  # the library is not installed
                raise Reject(str(error), "undecodable") from None
        return found

    def within(self, at_most: int) -> Opening:
        """The same with another bound."""
        return Opening(self._filters, at_most)

    def wrapping(self, topic: str) -> Wrapping | None:
        """How a producer wraps what is opened here; None where that is nothing, or custom code, which has no way back."""
        if not self._filters or self.runs_code:
            return None
        return Wrapping([*reversed(self._filters)], topic)

    @property
    def runs_code(self) -> bool:
        """Whether opening calls custom code."""
        return any(layer.encoding is None and not layer.exact for layer in self._filters or ())


def opening_of(settings: InputSettings, keys: Keys | None) -> Opening:
    """How the records of a pipeline are opened.

    Raises:
        ConfigError: a library is missing, custom code cannot be imported, or there are no keys.
    """
    names = settings.unwrap
    filters = None if names is None else [make_filter(name, "input.unwrap", keys) for name in names]
    return Opening(filters, settings.unwrapped_bytes)
