"""What the loop asks of whoever follows records from service to service: see :mod:`worker.telemetry.tracer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from worker.batch import Batch, Span
from worker.loop.laying import Sheet
from worker.loop.slab import Slab


class Tracer(Protocol):
    """Told per slab or batch, on the loop's thread."""

    def leaving(self, slab: Slab, sheet: Sheet, batch: Batch | None) -> None:
        """The rows of a sheet are about to be published; here the results of traced ones get their trace context.

        Args:
            batch: the rows are those of this batch, counted as it counts them; None: they are those of the slab. What
                this puts into ``slab.traced`` the loop gives back with :meth:`settled`.
        """

    def settled(self, slab: Slab, spans: Sequence[Span]) -> None:
        """Every output of the slab is acknowledged, or it was given up.

        Args:
            spans: the rows that are still ours; all others are answered by whoever reads them next.
        """
