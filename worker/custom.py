"""Marks that custom code puts on its functions; light, because ``import worker`` imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def batched(function: F) -> F:
    """Mark a postprocess that takes many items at once: ``f(outputs)`` or ``f(outputs, items)``.

    ``outputs`` then holds, by name, one array whose first dimension counts the items, and ``items`` is a list with one
    element for each. The function returns one result for each item, in the same order; where one is a
    :class:`worker.Reject`, that record is refused.
    """
    function.batched = True  # type: ignore[attr-defined]
    return function
