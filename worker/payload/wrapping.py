"""From a result's body to what is sent: the filters of ``output.wrap``, and the headers that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from worker.batch import Headers
from worker.payload import Filter, make_filter
from worker.payload.headers import CONTENT_ENCODING

if TYPE_CHECKING:
    from worker.payload.keys import Keys
    from worker.settings.sections import OutputSettings

SHOWN_BYTES = 1 << 28
"""Most bytes of a result that a command unwraps."""


class Wrapping:
    """How the results of one route are wrapped. Pool threads and the loop's thread share it.

    Args:
        filters: of ``output.wrap``, in the order in which they are put on.
        topic: where the results go.
    """

    def __init__(self, filters: Sequence[Filter], topic: str) -> None:
        self._filters = filters
        self._topic = topic
        named = [layer.encoding for layer in filters if layer.encoding is not None]
        self._encoding: Headers = [(CONTENT_ENCODING, ", ".join(named).encode())] if named else []

    def undo(self, value: bytes, headers: Headers | None) -> bytes:
        """A result as it was before; for commands that show it to whoever has the keys.

        Raises:
            Reject: it cannot be read.
        """
        for layer in reversed(self._filters):
            value = layer.unwrap(value, headers or [], self._topic, SHOWN_BYTES)
        return value

    def now(self) -> Seal:
        """What wraps bodies now. Good for one batch: a key may follow another one, and a salt a salt."""
        layers = [layer.wrapper(self._topic) for layer in self._filters]
        headers = [*self._encoding, *(header for _, needed in layers for header in needed)]
        return Seal([wrap for wrap, _ in layers], headers)


class Seal:
    """See :meth:`Wrapping.now`."""

    def __init__(self, steps: Sequence[Callable[[bytes], bytes]], headers: Headers) -> None:
        self._steps = steps
        self.headers = headers
        """Of every body that it wraps."""

    def __call__(self, body: bytes) -> bytes:
        """Wrap one body.

        Raises:
            Reject: custom code refused it.
        """
        for step in self._steps:
            body = step(body)
        return body


def wrapping_of(settings: OutputSettings, keys: Keys | None) -> Wrapping | None:
    """How the results of a pipeline are wrapped; None where they are not.

    Raises:
        ConfigError: a library is missing, custom code cannot be imported, or there are no keys.
    """
    if settings.wrap is None:
        return None
    return Wrapping([make_filter(name, "output.wrap", keys) for name in settings.wrap], settings.topic)
