"""``LOG_LEVEL=debug``: what each slab and each batch did. Without that level this observer is not there."""

from __future__ import annotations

from typing import Any

import numpy as np

from worker.batch import Batch
from worker.telemetry.observer import Microseconds, Unconcerned


class SlabLines(Unconcerned):
    """One line for each call; see :class:`worker.telemetry.observer.Observer`."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def taken(self, pipeline: str, records: int, nbytes: int = 0) -> None:
        self._log.debug("slab taken", pipeline=pipeline, records=records, value_bytes=nbytes)

    def batch(self, pipeline: str, batch: Batch) -> None:
        refused = len(batch.outcomes.rejected) if batch.outcomes is not None else 0
        for run in batch.runs:
            times = {f"{stage}_us": _middle(us) for stage, us in run.stages_us.items()}
            self._log.debug("model run", pipeline=pipeline, records=len(run.rows), refused=refused, **times)

    def counted(
        self, pipeline: str, ok: int = 0, dead_letter: int = 0, dropped: int = 0, version: str = ""
    ) -> None:
        if ok or dead_letter or dropped:
            self._log.debug(
                "slab acknowledged", pipeline=pipeline, ok=ok, dead_letter=dead_letter, dropped=dropped
            )

    def rebalance(self) -> None:
        self._log.debug("rebalance")


def _middle(us: Microseconds) -> int:
    return int(np.median(us)) if isinstance(us, np.ndarray) else us
