"""What may lie around a value: compression, encryption, an event's envelope, or what custom code takes off and puts on.

:mod:`worker.payload.opening` is how a record's value becomes the bytes that its input format reads,
:mod:`worker.payload.wrapping` how a result's body becomes what is sent. Each filter is one module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from worker.batch import Headers
from worker.registry import PAYLOAD_FILTERS

if TYPE_CHECKING:
    from worker.payload.keys import Keys

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Making:
    """What a filter is made of."""

    name: str
    """As the configuration names it: an entry of the registry, or ``module:attribute``."""
    setting: str
    """The setting that names it, for the sentence of an error."""
    keys: Keys | None = None
    """The keys of ``encryption``; None without that section."""


class Filter(Protocol):
    """One layer around a value. Pool threads call it at once, on different records; it keeps nothing of a record."""

    encoding: str | None
    """The word that stands for it in header ``content-encoding``; None where it writes none."""
    exact: bool
    """Whether the length of a wrapped value alone tells the length of what is inside."""

    def bound(self, value: bytes, at_most: int) -> int:
        """Most bytes that can be inside this value, by its header or trailer alone; never more than ``at_most``.

        The loop's thread calls it, so it unpacks nothing.

        Raises:
            Reject: ``too_large``: the value states more than ``at_most``; ``undecodable``: it cannot be unwrapped.
        """
        ...

    def bound_of(self, nbytes: int) -> int:
        """Most bytes that can be inside a wrapped value of this length."""
        ...

    def unwrap(self, value: bytes, headers: Headers, topic: str, at_most: int) -> bytes:
        """What is inside. It never takes more memory than ``at_most`` and the value call for.

        Args:
            headers: of the record. topic: where the record was read.

        Raises:
            Reject: ``too_large``: more than ``at_most`` bytes are inside; ``undecodable``: it cannot be unwrapped. The
                message says nothing of the content.
        """
        ...

    def wrapper(self, topic: str) -> tuple[Callable[[bytes], bytes], Headers]:
        """What wraps values that go to this topic now, and the headers that they then need."""
        ...


class FilterEntry(Protocol):
    """An entry of ``worker.registry.PAYLOAD_FILTERS``: a class of :class:`Filter`."""

    def __call__(self, making: Making) -> Filter: ...


def make_filter(name: str, setting: str, keys: Keys | None) -> Filter:
    """The filter that a configuration names.

    Raises:
        ConfigError: a library is missing, custom code cannot be imported, or there are no keys.
    """
    return PAYLOAD_FILTERS.entry(name)(Making(name, setting, keys))
