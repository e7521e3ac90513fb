"""Everybody who tells of a worker in its log, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.telemetry.backlog import Backlog
from worker.telemetry.letters_told import LettersTold
from worker.telemetry.slowness import Slowness
from worker.telemetry.story import Brokers, Heartbeat, Scene, Story


def story_of(log: Any, brokers: str, scene: Callable[[], Scene | None]) -> tuple[Story, LettersTold]:
    """The story of a worker, and its part that must hear of each dead letter.

    Args:
        brokers: ``kafka.bootstrap.servers``.
        scene: the worker as it is now.
    """
    letters = LettersTold(log)
    return Story(
        [Brokers(log, brokers), letters, Slowness(log), Backlog(log), Heartbeat(log)], scene
    ), letters
