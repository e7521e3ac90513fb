"""How far the outputs of one slab have come: planned, handed over to the producer, acknowledged by the broker."""

from __future__ import annotations

from dataclasses import dataclass

from worker.batch import Span


@dataclass(slots=True)
class Receipt:
    """The outputs of one slab, counted. The outbox and the delivery are the only ones that write here.

    The counts only rise. A slab is *handed over* when every output of it is planned and the producer has taken
    each of them; it is *acknowledged* when the broker has also answered for each of them.
    """

    planned: bool = False
    """Every output is known. With ``order: none`` a slab's outputs are planned batch by batch before that."""
    expected: int = 0
    """Outputs planned so far, without those that were withdrawn."""
    taken: int = 0
    """Outputs the producer has taken."""
    answered: int = 0
    """Outputs for which the producer has reported delivery or failure. A report may come before ``took`` does."""
    kept_bytes: int = 0
    """Keys and headers of the outputs. The producer holds them until they are acknowledged, and the limit of its own
    queue does not count them."""
    closed: bool = False
    """The delivery guarantee knows that every output is handed over."""
    committed: list[Span] | None = None
    """Set when the slab's transaction was given up and the broker had committed it nevertheless: the spans that
    nobody reads again. None: its transaction was not given up."""

    def expect(self, outputs: int) -> None:
        """So many more outputs will be handed to the producer."""
        self.expected += outputs

    def withdraw(self, outputs: int) -> None:
        """So many planned outputs will not be handed over after all."""
        self.expected -= outputs

    def took(self, outputs: int) -> None:
        """The producer has taken so many more outputs."""
        self.taken += outputs

    @property
    def handed_over(self) -> bool:
        """Whether the producer has every output."""
        return self.planned and self.taken == self.expected

    @property
    def unanswered(self) -> int:
        """Outputs planned for which no report has come."""
        return self.expected - self.answered

    def close(self) -> bool:
        """Every output is handed over; returns whether every one is acknowledged already."""
        self.closed = True
        return self.acknowledged

    def acknowledge(self, outputs: int) -> bool:
        """The producer reports on so many outputs; returns whether the slab is acknowledged by this."""
        self.answered += outputs
        return self.acknowledged

    def acknowledge_all(self) -> None:
        """A transaction answers for every output at once."""
        self.answered = self.expected

    @property
    def acknowledged(self) -> bool:
        """Whether every output was handed over and reported on."""
        return self.closed and self.answered == self.expected
