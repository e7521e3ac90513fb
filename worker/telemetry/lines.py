"""Log lines leave on a thread of their own: logging never decides whether records are answered.

Standard error may be a pipe whose reader is gone or has stopped reading, or a file on a full disk. The caller only
puts its line into a bounded queue. A line that finds the queue full, or that the system refuses, is dropped and
counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_BYTES = 1 << 20
"""Most bytes of lines that wait to be written."""


class LineWriter:
    """Writes text to a file descriptor, in order. No method waits for the descriptor but `flush`, which has a limit.

    Args:
        fd: where to write; it stays the caller's.
        most_bytes: bound of what waits to be written.
        on_recovery: called on the writer's thread with the number of lines dropped, once writing works again.
    """

    def __init__(
        self, fd: int, most_bytes: int = MOST_BYTES, on_recovery: Callable[[int], None] = lambda _: None
    ) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._on_recovery = on_recovery
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        """Of the lines that wait and of the one that is being written."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Lines that were lost, since the start."""
        self._reported = 0

    def put(self, line: str) -> None:
        """Queue one line, with its line feed; drop it when too much waits already."""
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
        """Wait until everything queued is written, at most ``within_s`` seconds; False when some of it is not."""
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
