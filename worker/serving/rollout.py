"""Which servable answers a route's records, and what happens when it is sick.

The loop's thread asks and takes over; the loader's thread offers a new version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from worker.batch import Servable as AnyServable
from worker.errors import SickModel
from worker.serving.route import Route
from worker.serving.servable import Servable

Swapped = Callable[["Rollout", Servable], None]
"""Called on the loop's thread when another servable answers from now on, with the one that answered before."""


class Rollout:
    """A route with the servable that answers it.

    Args:
        stable: answers every record.
    """

    def __init__(self, route: Route, stable: Servable) -> None:
        self.route = route
        self.on_swap: Swapped = lambda _rollout, _before: None
        self._stable = stable
        self._offered: Servable | None = None

    @property
    def stable(self) -> Servable:
        """Who answers now; for any thread to ask."""
        return self._stable

    def choose(self) -> Servable:
        """Who answers the records of the slab that is being closed. Asked once for each slab, never within one."""
        if self._offered is not None:
            offered, self._offered = self._offered, None
            before, self._stable = self._stable, offered
            self.on_swap(self, before)
        return self._stable

    def offer(self, servable: Servable) -> None:
        """Let another servable answer from the next slab on; called on the loader's thread. It is warm and fits the route."""
        self._offered = servable

    @property
    def waiting(self) -> bool:
        """Whether an offered servable has not been taken over yet."""
        return self._offered is not None

    def close(self) -> None:
        """Close every servable of the route. No batch may be in the pool any more."""
        self._stable.close()
        if self._offered is not None:
            self._offered.close()

    def sick(self, servable: AnyServable, why: str) -> NoReturn:
        """Decide what a sick servable means. No other one can answer, so the process must end.

        Raises:
            SickModel: always.
        """
        raise SickModel(
            f"model {servable.model_name} is sick: {why}; nothing of this batch was committed or dead-lettered"
        )
