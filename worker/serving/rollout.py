"""Which servable answers a route's records, and what happens when it is sick. The loop's thread alone calls this."""

from __future__ import annotations

from typing import NoReturn

from worker.batch import Servable as AnyServable
from worker.errors import SickModel
from worker.serving.route import Route
from worker.serving.servable import Servable


class Rollout:
    """A route with the one servable that answers it.

    Args:
        stable: answers every record.
    """

    def __init__(self, route: Route, stable: Servable) -> None:
        self.route = route
        self._stable = stable

    def choose(self) -> Servable:
        """Who answers the records of the slab that is being closed. Asked once for each slab."""
        return self._stable

    def close(self) -> None:
        """Close every servable of the route. No batch may be in the pool any more."""
        self._stable.close()

    def sick(self, servable: AnyServable, why: str) -> NoReturn:
        """Decide what a sick servable means. No other one can answer, so the process must end.

        Raises:
            SickModel: always.
        """
        raise SickModel(
            f"model {servable.model_name} is sick: {why}; nothing of this batch was committed or dead-lettered"
        )
