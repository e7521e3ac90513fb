"""Tells what watches have found: as figures, and in one log line when features begin to drift and one when they are back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.drift.watch import Watch
from worker.telemetry.meters import Meters

LOOK_EVERY_S = 2.0
FEATURES_TOLD = 8
"""Most features that one line names."""


class DriftReports:
    """See the module; for the loop's thread.

    Args:
        watches: by pipeline.
    """

    def __init__(self, watches: Mapping[str, Watch], meters: Meters, log: Any) -> None:
        self._watches = watches
        self._meters = meters
        self._log = log

    def look(self) -> None:
        """Ask each watch, and tell what is new."""
        for pipeline, watch in self._watches.items():
            news = watch.look()
            self._meters.drift(pipeline, news.psi, watch.measured)
            if news.drifted:
                told = list(news.drifted.items())[:FEATURES_TOLD]
                self._log.warning(
                    "records differ from the profile",
                    pipeline=pipeline,
                    psi={feature: round(psi, 3) for feature, psi in told},
                    features=len(news.drifted),
                )
            if news.back:
                self._log.info(
                    "records are like the profile again",
                    pipeline=pipeline,
                    features=news.back[:FEATURES_TOLD],
                    drifted=watch.drifted,
                )
