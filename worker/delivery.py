"""When outputs count as delivered and how positions are committed: the two delivery guarantees as two objects.

:class:`AtLeastOnce` counts acknowledgements per slab and commits positions of settled slabs at an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from worker.batch import Partition
from worker.window import Slab, Window


class DeliveryFailed(Exception):
    """An output can never be delivered, or a transaction was aborted: rewind.

    Args:
        cause: one word for the counter ``rewinds_total{cause}``.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Commits(Protocol):
    """The part of a source that commits."""

    def commit(self, positions: dict[Partition, int], wait: bool) -> dict[Partition, int]:
        """Ask the broker to take these positions; returns what it confirmed so far.

        With ``wait`` the answer is complete (a partition missing from it was refused); without, confirmations
        arrive through :meth:`confirmed`.
        """

    def confirmed(self) -> dict[Partition, int]:
        """Positions confirmed since the last call."""


class Purges(Protocol):
    """The part of a sink that gives up."""

    def poll(self, timeout_s: float = 0.0) -> None: ...

    def purge(self) -> None: ...


class Delivery(Protocol):
    """What the conductor needs of a delivery guarantee."""

    commits: int
    """Commits confirmed since the conductor last looked."""

    @property
    def waiting(self) -> bool:
        """Whether outputs are handed over and not acknowledged."""

    def on_delivery(self, slab: Slab) -> Callable[[Any, Any], None] | None:
        """What the producer calls per output; the slab's transaction, if there are any, is open from here on."""

    def handed_over(self, slab: Slab) -> None:
        """Every output of the slab is with the producer."""

    def settled(self) -> list[Slab]:
        """Slabs whose every output was acknowledged since the last call.

        Raises:
            DeliveryFailed: an output was refused for good.
        """

    def due(self, now_ns: int) -> bool: ...

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        """Commit what may be committed; returns slabs that this settled."""

    def hurry(self, window: Window) -> list[Slab]:
        """Settle what is handed over without waiting for the interval (a revocation or a drain waits for it)."""

    def abandon(self) -> None:
        """Give up every output on its way."""


class AtLeastOnce:
    """Acknowledgements counted per slab, positions committed behind them.

    Args:
        interval_s: time between commits; what a killed process may repeat.
    """

    def __init__(self, source: Commits, sink: Purges, interval_s: float, clock_ns: Callable[[], int]) -> None:
        self.commits = 0
        self._source = source
        self._sink = sink
        self._interval_ns = int(interval_s * 1e9)
        self._clock_ns = clock_ns
        self._last_ns = clock_ns()
        self._pending = 0
        self._done: list[Slab] = []
        self._refused: DeliveryFailed | None = None

    @property
    def waiting(self) -> bool:
        return self._pending > 0

    def on_delivery(self, slab: Slab) -> Callable[[Any, Any], None]:
        done = self._done

        def acknowledged(error: Any, _message: Any) -> None:
            slab.unacknowledged -= 1
            if error is not None and slab.ends:
                self._refused = DeliveryFailed("delivery", f"an output was refused for good: {error}")
            if not slab.unacknowledged:
                done.append(slab)

        return acknowledged

    def handed_over(self, slab: Slab) -> None:
        self._pending += 1
        if not slab.unacknowledged and slab not in self._done:
            self._done.append(slab)  # nothing to publish: dropped, or not ours any more

    def settled(self) -> list[Slab]:
        if self._refused is not None:
            failure, self._refused = self._refused, None
            raise failure
        settled = self._done[:]
        self._done.clear()
        self._pending -= len(settled)
        return settled

    def due(self, now_ns: int) -> bool:
        return now_ns - self._last_ns >= self._interval_ns

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        self._last_ns = self._clock_ns()
        confirmed = self._source.confirmed()
        window.committed(confirmed)
        positions = window.committable()
        if positions:
            confirmed |= self._source.commit(positions, wait)
            window.committed(confirmed)
        self.commits += bool(confirmed)
        return []

    def hurry(self, window: Window) -> list[Slab]:
        return []

    def abandon(self) -> None:
        self._sink.purge()
        self._sink.poll()
