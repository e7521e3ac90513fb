"""A servable that is to take the place of the one that answers: loaded and warmed beside it, and checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import structlog

from worker.errors import ConfigError, StartError, WorkerError
from worker.serving.golden import check_golden
from worker.serving.load import load_servable
from worker.serving.misfit import misfit
from worker.serving.rollout import Rollout
from worker.serving.servable import Servable
from worker.settings import Settings

Reason = Literal["checksum", "unsigned", "unloadable", "signature", "golden", "memory"]

log = structlog.get_logger()


class Refused(Exception):
    """A version does not answer this pipeline.

    Args:
        reason: for the metric.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_memory(need_bytes: int, memory_left: Callable[[], int | None]) -> None:
    """Refuse what does not fit beside the one that answers.

    Raises:
        Refused: for memory.
    """
    left = memory_left()
    if left is not None and need_bytes > left:
        raise Refused(
            "memory",
            f"it needs about {need_bytes >> 20} MiB beside the one that answers, {left >> 20} MiB are left",
        )


def successor(
    settings: Settings, rollout: Rollout, other_labels: Callable[[Settings], str] = lambda _settings: ""
) -> Servable:
    """The servable that the settings describe for a rollout's route, warm and fit to take the place of the stable one.

    Args:
        settings: with the file of the model.
        other_labels: why its labels do not fit; empty if they do.

    Raises:
        Refused: it does not answer this pipeline.
    """
    before, route = rollout.stable, rollout.route
    started_s = time.monotonic()
    try:
        servable = load_servable(settings, route, time.perf_counter(), like=before)
    except WorkerError as error:
        raise Refused("signature" if isinstance(error, ConfigError) else "unloadable", str(error)) from None
    except Exception as error:  # whatever a file makes of the runtime: the one that answers goes on
        raise Refused("unloadable", f"{type(error).__name__}: {error}") from error
    try:
        wrong = misfit(before, servable) or other_labels(settings)
        if wrong:
            raise Refused("signature", wrong)
        model = settings.pipelines[route.name].model
        if model.golden is not None:
            try:
                check_golden(model.golden, route, servable, model.tolerance)
            except StartError as error:
                raise Refused("golden", str(error)) from None
    except BaseException:
        servable.close()
        raise
    log.info(
        "model version loaded",
        pipeline=route.name,
        model=servable.label,
        seconds=round(time.monotonic() - started_s, 2),
    )
    return servable
