"""A TCP proxy as a process: what comes by it arrives half a round trip later, in each direction.

Prints the port it listens on, then obeys `upstream PORT` and `rtt MS` lines. Threads that sleep, and no event loop:
the loops' timers count whole milliseconds, which here would be as long as the delay itself.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from queue import SimpleQueue

CHUNK_BYTES = 1 << 18


class Distance:
    """Where connections go and how far that is; may change at any time."""

    def __init__(self) -> None:
        self.upstream = 0
        self.delay_s = 0.0

    def serve(self, listener: socket.socket) -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", self.upstream))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                for work in ((self._read, one), (self._write, other)):
                    threading.Thread(target=work[0], args=(work[1], waiting), daemon=True).start()

    def _read(self, one: socket.socket, waiting: SimpleQueue[tuple[float, bytes]]) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = one.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            waiting.put((time.monotonic() + self.delay_s, chunk))

    def _write(self, other: socket.socket, waiting: SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            due, chunk = waiting.get()
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            try:
                if not chunk:
                    other.shutdown(socket.SHUT_RDWR)
                    return
                other.sendall(chunk)
            except OSError:
                return


if __name__ == "__main__":
    distance = Distance()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=distance.serve, args=(listener,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for line in sys.stdin:
        match line.split():
            case ["upstream", port]:
                distance.upstream = int(port)
            case ["rtt", ms]:
                distance.delay_s = float(ms) / 2000
