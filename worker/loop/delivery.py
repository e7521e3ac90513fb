"""What the loop needs of a delivery guarantee: when outputs count as acknowledged, and how positions are committed.

Two objects give it: :class:`worker.loop.at_least_once.AtLeastOnce` and
:class:`worker.loop.exactly_once.ExactlyOnce`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from worker.batch import Partition
from worker.loop.slab import Slab
from worker.loop.window import Window

Annotate = Callable[[dict[Partition, int]], dict[Partition, str]]
"""Positions about to be committed -> the commit metadata of those that get any."""


class Delivery(Protocol):
    """One delivery guarantee. Every method is called on the loop's thread and returns without waiting for the
    broker, unless it says otherwise."""

    commits: int
    """Commits confirmed by the broker since the loop last set this to 0."""

    @property
    def waiting(self) -> bool:
        """Whether some slab is handed over and not acknowledged."""

    @property
    def ready(self) -> bool:
        """Whether outputs may be handed to the producer now. False while a transaction is committed or undone."""

    def on_delivery(self, slab: Slab) -> Callable[..., None] | None:
        """What the producer calls about the slab's outputs (see :class:`worker.loop.outbox.Sink`).

        None where a transaction answers for the outputs; that transaction is open after this call.

        Raises:
            DeliveryFailed: no transaction can be begun.
        """

    def handed_over(self, slab: Slab) -> None:
        """The producer has every output of the slab."""

    def acknowledged(self) -> list[Slab]:
        """Slabs for which nothing is awaited any more, each returned once.

        Raises:
            DeliveryFailed: an output was refused for good, or a transaction failed.
        """

    def due(self, now_ns: int) -> bool:
        """Whether it is time for :meth:`commit`; ``now_ns`` is on the monotonic clock."""

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        """Commit the positions that may be committed.

        Args:
            wait: block until the broker has answered.

        Returns:
            Slabs that are acknowledged by this (none, where the broker acknowledges outputs one by one).

        Raises:
            DeliveryFailed: a transaction failed.
        """

    def hurry(self, window: Window) -> list[Slab]:
        """Get acknowledged what is handed over, without waiting for the commit interval. Blocks.

        Called while a revocation or a drain waits. Returns and raises as :meth:`commit`.
        """

    def lost(self, partitions: Iterable[Partition]) -> None:
        """These partitions may have another owner: none of their outputs may become visible any more."""

    def abandon(self) -> None:
        """Begin to give up every output on its way. Nothing is acknowledged or committed until :meth:`recovered`."""

    def recovered(self, window: Window) -> dict[Partition, int] | None:
        """After :meth:`abandon`: rewind the window and return the offsets to read from again.

        Returns:
            None while it is not known yet what was delivered: ask again.

        Raises:
            WorkerError: no output can be delivered any more.
        """
