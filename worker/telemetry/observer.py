"""What the loop tells about records: one call per batch, slab or event, never one per record.

The loop tells a list of observers, all on its own thread. :class:`worker.telemetry.meters.Meters` is the one that
every worker has. An observer must return at once and must not keep the batch: its arrays are used again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.batch import Batch

Microseconds = int | NDArray[np.int64]
"""One duration for all records, or one per record."""


class Observer(Protocol):
    """Told what happens to records. ``pipeline`` is the pipeline's name in the configuration."""

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None:
        """Records came from Kafka and are in flight now. ``nbytes``: the size of their values."""

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None:
        """Records are no longer in flight: their output is acknowledged, or they have none (``dropped``).

        Args:
            version: of the model that answered them; empty where none did.
        """

    def skipped(self, pipeline: str, records: int) -> None:
        """Records that ``input.keep`` leaves out; each of them is counted as dropped, too."""

    def sent(self, nbytes: int) -> None:
        """Values of this size, dead letters included, were handed to the producer."""

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1, version: str = "") -> None:
        """Records became dead letters for this reason; ``stage`` refused them, and the letters name ``version``."""

    def batch(self, pipeline: str, batch: Batch) -> None:
        """A batch came back from the engine. Its runs hold sizes and stage times in microseconds."""

    def hold_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None:
        """Time from finished to released, of ``records`` records."""

    def publish_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None:
        """Time from released to acknowledged, of ``records`` records."""

    def rebalance(self) -> None:
        """The partitions of this process changed."""

    def rewind(self, cause: str) -> None:
        """Records in flight were given up; reading goes on from the committed position."""

    def transaction(self, result: str) -> None:
        """A Kafka transaction ended: committed, aborted, fenced or unknown."""

    def loop(self, section: str, seconds: float) -> None:
        """The loop's thread spent this time in one of ``names.LOOP_SECTIONS``."""


class Unconcerned:
    """An observer to whom nothing matters; one that needs a single call begins here."""

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None: ...

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None: ...

    def skipped(self, pipeline: str, records: int) -> None: ...

    def sent(self, nbytes: int) -> None: ...

    def error(self, pipeline: str, reason: str, stage: str, records: int = 1, version: str = "") -> None: ...

    def batch(self, pipeline: str, batch: Batch) -> None: ...

    def hold_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None: ...

    def publish_us(self, pipeline: str, us: Microseconds, records: int = 1) -> None: ...

    def rebalance(self) -> None: ...

    def rewind(self, cause: str) -> None: ...

    def transaction(self, result: str) -> None: ...

    def loop(self, section: str, seconds: float) -> None: ...
