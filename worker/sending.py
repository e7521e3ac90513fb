"""Outputs on their way to a producer: what the loop hands over and what a sink takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from worker.batch import Headers, Partition

PartitionMode = Literal["key", "input"]
"""How an output topic's partition is chosen.

``key``: a record with a key goes by murmur2 of its key, as Java clients do (an empty key is a key); one without a
key goes to its input partition's number modulo the partitions of the topic. ``input``: every record goes to its
input partition's number (modulo the partitions of the topic: a dead-letter topic may have fewer).
"""


@dataclass(slots=True)
class Sending:
    """Rows that go to one topic, all from one input partition, in the order of the input.

    ``keys``, ``values`` and ``headers`` are aligned columns.
    """

    topic: str
    source: Partition
    """The input partition the rows were read from."""
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers | None] | None = None
    """Per row; None when no row has headers."""
    mode: PartitionMode = "key"
    timestamp_ms: int = 0
    """Unix milliseconds of every row, which then must have headers; 0 = the time of sending."""

    def __len__(self) -> int:
        return len(self.values)

    def advance(self, rows: int) -> None:
        """Forget the first ``rows`` rows: the producer has taken them."""
        self.keys, self.values = self.keys[rows:], self.values[rows:]
        if self.headers is not None:
            self.headers = self.headers[rows:]
