"""Custom code as a payload filter: one function, called in ``input.unwrap`` to unwrap and in ``output.wrap`` to wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker import frames
from worker.batch import Headers
from worker.errors import Reject, Retry
from worker.payload import Making
from worker.settings.references import import_attribute

_FACTOR = 16
"""Assumed length of what custom code gives, as a multiple of what it takes."""


class CustomFilter:
    """Custom code: `f(value: bytes, headers) -> bytes` in `input.unwrap`, `f(value: bytes) -> bytes` in `output.wrap`.

    What it raises refuses the record: for the reason of a :class:`worker.Reject`, else as ``undecodable``. Its own message
    is not shown, because it may quote what was inside.
    """

    encoding = None
    exact = False

    def __init__(self, making: Making) -> None:
        self.function: Callable[..., Any] = import_attribute(making.name, making.setting)
        self._name = making.name

    def bound(self, value: bytes, at_most: int) -> int:
        return min(at_most, self.bound_of(len(value)))

    def bound_of(self, nbytes: int) -> int:
        return _FACTOR * nbytes

    def unwrap(self, value: bytes, headers: Headers, topic: str, at_most: int) -> bytes:
        """See :class:`worker.payload.Filter`."""
        found = self._called(value, headers)
        if len(found) > at_most:
            raise Reject(
                f"custom code {self._name} gave {len(found)} bytes, expected at most {at_most} (input.max_unwrapped_bytes)",
                "too_large",
            )
        return found

    def wrapper(self, topic: str) -> tuple[Callable[[bytes], bytes], Headers]:
        return self._called, []

    def _called(self, *arguments: Any) -> bytes:
        try:
            found = self.function(*arguments)
        except (Reject, Retry):
            raise
        except Exception as error:
            frames.mark(error)
            refusal = Reject(f"custom code {self._name} raised {type(error).__name__}", "undecodable")
            raise frames.at(frames.marked(error), refusal) from None
        if not isinstance(found, bytes | bytearray | memoryview):
            raise Reject(f"custom code {self._name} gave {type(found).__name__}, expected bytes")
        return bytes(found)
