"""One number per partition that says whose records these are: a late result carries a dead number."""

from __future__ import annotations

from worker.batch import Partition, Span


class Epochs:
    """The current epoch of every partition. Assign, revoke, lost and rewind each begin a new one.

    A span keeps the epoch in which its records were taken; it is live while that epoch is the current one.
    """

    def __init__(self) -> None:
        self._numbers: dict[Partition, int] = {}

    def of(self, partition: Partition) -> int:
        return self._numbers.get(partition, 0)

    def bump(self, partition: Partition) -> None:
        """Begin a new epoch: every span taken before is dead."""
        self._numbers[partition] = self._numbers.get(partition, 0) + 1

    def current(self, span: Span) -> bool:
        """Whether the span's records are still ours to answer."""
        return span.epoch == self._numbers.get(span.partition, 0)
