"""Notices that files have changed, also where a link is turned to other files, as Kubernetes does with a ConfigMap.

The files are looked at, not listened to: a mounted volume need not tell of changes, and a look costs microseconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

LOOK_S = 1.0
"""How often the files are looked at. A change counts when the files were the same at two looks: whoever writes is done."""

_Mark = tuple[int, int, int] | None
"""Inode, size and time of change of a file; None: it is not there."""


class FileWatch:
    """See the module.

    Args:
        files: the files to look at; asked for at each look.
        changed: called after a change, on the thread of this object.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], changed: Callable[[], object]) -> None:
        self._files = files
        self._changed = changed
        self._told = self._seen = self._marks()
        """As they were when a change was told last, and at the last look."""
        self._stop = threading.Event()

    def start(self) -> None:
        """Look every second from now on, until the process ends."""
        threading.Thread(target=self._run, name="configuration-watch", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """Look once."""
        now = self._marks()
        if now == self._seen != self._told and None not in now.values():
            self._told = now
            self._changed()
        self._seen = now

    def _marks(self) -> dict[Path, _Mark]:
        return {path: _mark(path) for path in self._files()}

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()


def _mark(path: Path) -> _Mark:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
