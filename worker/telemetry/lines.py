"""A separate thread writes the log lines, so that a blocked standard error never blocks the worker.

Standard error may be a pipe whose reader is gone or has stopped reading, or a file on a full disk. The caller only
puts its line into a bounded queue. If the queue is full, or the system refuses the line, it is dropped and counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_BYTES = 1 << 20
"""Most bytes of lines that may wait to be written."""


class LineWriter:
    """Writes text to a file descriptor, in order. Only `flush` waits for the descriptor, and for a limited time.

    Args:
        fd: the descriptor to write to; the caller owns it and closes it.
        most_bytes: most bytes that may wait to be written.
        on_recovery: called on the writer's thread with the number of dropped lines, when writing works again.
    """

    def __init__(
        self, fd: int, most_bytes: int = MOST_BYTES, on_recovery: Callable[[int], None] = lambda _: None
    ) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._on_recovery = on_recovery
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        """Bytes of the waiting lines and of the line that is being written."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Lines lost since the start."""
        self._reported = 0

    def put(self, line: str) -> None:
        """Queue one line, which includes its line feed; drop it if too many bytes wait already."""
        data = line.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._held_bytes + len(data) > self._most_bytes:
                self.dropped += 1
                return
            self._lines.append(data)
            self._held_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, within_s: float) -> bool:
        """Wait up to ``within_s`` seconds until every queued line is written; False if one is not."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while self._held_bytes:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                data = self._lines.popleft()
            written = self._write(data)
            with self._changed:
                self._held_bytes -= len(data)
                self.dropped += not written
                lost = self.dropped - self._reported if written else 0
                self._reported += lost
                self._changed.notify_all()
            if lost:
                self._on_recovery(lost)

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:  # nobody reads the pipe, or the disk is full
            return False
        return True
