"""At least once: acknowledgements are counted per slab, and positions are committed behind them at an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from worker.batch import Partition
from worker.errors import DeliveryFailed
from worker.loop.delivery import Annotate
from worker.loop.slab import Slab
from worker.loop.window import Window


class Commits(Protocol):
    """The part of a source that commits."""

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]:
        """Ask the broker to take these positions, each with its metadata.

        Returns:
            What the broker has confirmed so far. With ``wait`` that is complete: a partition that is missing from
            it was refused. Without, confirmations arrive through :meth:`confirmed`.
        """

    def confirmed(self) -> dict[Partition, int]:
        """Positions the broker has confirmed since the last call."""


class Purges(Protocol):
    """The part of a sink that gives up outputs."""

    def poll(self, timeout_s: float = 0.0) -> None: ...

    def purge(self) -> None: ...


class AtLeastOnce:
    """See the module and :class:`worker.loop.delivery.Delivery`.

    Args:
        interval_s: time between commits: a process that is killed repeats at most the records of that time.
        clock_ns: the monotonic clock.
        annotate: gives the metadata of committed positions.
    """

    def __init__(
        self,
        source: Commits,
        sink: Purges,
        interval_s: float,
        clock_ns: Callable[[], int],
        annotate: Annotate = lambda _positions: {},
    ) -> None:
        self._annotate = annotate
        self.commits = 0
        self._source = source
        self._sink = sink
        self._interval_ns = int(interval_s * 1e9)
        self._clock_ns = clock_ns
        self._last_ns = clock_ns()
        self._pending = 0
        """Slabs handed over and not returned by :meth:`acknowledged` yet."""
        self._done: list[Slab] = []
        self._refused: DeliveryFailed | None = None

    @property
    def waiting(self) -> bool:
        return self._pending > 0

    @property
    def ready(self) -> bool:
        return True

    def on_delivery(self, slab: Slab) -> Callable[..., None]:
        done = self._done

        def reported(error: Any, _message: Any, rows: int = 1) -> None:
            # A slab without partitions was revoked or rewound: whoever reads its records next answers them.
            if error is not None and slab.turn.ends:
                self._refused = DeliveryFailed("delivery", f"an output was refused for good: {error}")
            if slab.receipt.acknowledge(rows):
                done.append(slab)

        return reported

    def handed_over(self, slab: Slab) -> None:
        self._pending += 1
        if slab.receipt.close():  # every report has come already, or the slab has no outputs
            self._done.append(slab)

    def acknowledged(self) -> list[Slab]:
        if self._refused is not None:
            failure, self._refused = self._refused, None
            raise failure
        slabs = self._done[:]
        self._done.clear()
        self._pending -= len(slabs)
        return slabs

    def due(self, now_ns: int) -> bool:
        return now_ns - self._last_ns >= self._interval_ns

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        self._last_ns = self._clock_ns()
        confirmed = self._source.confirmed()
        window.committed(confirmed)
        positions = window.committable()
        if positions:
            confirmed |= self._source.commit(positions, wait, self._annotate(positions))
            window.committed(confirmed)
        self.commits += bool(confirmed)
        return []

    def hurry(self, window: Window) -> list[Slab]:
        """Acknowledgements come by themselves."""
        return []

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Outputs on their way may still arrive: that is what "at least once" allows."""

    def abandon(self) -> None:
        self._sink.purge()
        self._sink.poll()
        self._refused = None

    def recovered(self, window: Window) -> dict[Partition, int]:
        return window.rewind()  # the positions that this process saw acknowledged are the truth
