"""The end of the process from any thread, whatever other threads are stuck in."""

from __future__ import annotations

import os
from typing import NoReturn

from worker.telemetry import logs

LAST_LINES_S = 1.0
"""How long the last log lines may take. A reader that has stopped reading does not get them."""


def leave(code: int) -> NoReturn:
    """End the process now with this exit code, once the last log lines are written."""
    logs.flush(LAST_LINES_S)
    os._exit(code)
