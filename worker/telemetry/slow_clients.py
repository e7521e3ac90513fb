"""Reading from and writing to clients that may be slow or hostile: each request and each answer has one deadline."""

from __future__ import annotations

import io
import socket
import time
from typing import Any, BinaryIO


class Timely(io.RawIOBase):
    """Reads a socket until a deadline, which a slow client cannot extend by sending a byte now and then.

    Args:
        seconds: from construction to the deadline.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there.

        Raises:
            TimeoutError: the deadline has passed.
        """
        self._connection.settimeout(_left_s(self._deadline, "the request took too long"))
        return self._connection.recv_into(buffer)


class Bounded:
    """The first ``limit`` bytes of a request, followed by end-of-file."""

    def __init__(self, stream: BinaryIO | io.BufferedIOBase, limit: int) -> None:
        self._stream = stream
        self.left = limit
        self.ended = False
        """Whether the client closed the connection, or the server did, before the request was complete."""

    def readline(self, size: int = -1) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        line = self._stream.readline(wanted)
        self.left -= len(line)
        self.ended = wanted > 0 and not line.endswith(b"\n") and len(line) < wanted
        return line

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed


class Sending(io.RawIOBase):
    """Writes to a socket, each write with a deadline of its own for all of its bytes.

    ``sendall`` of an encrypted connection applies its time-out to each part, so a client could read for ever.

    Args:
        seconds: from the beginning of a write to its deadline.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Send all of ``data``.

        Raises:
            TimeoutError: the client did not read it in time.
        """
        deadline, view = time.monotonic() + self._seconds, memoryview(data)
        while view.nbytes:
            self._connection.settimeout(_left_s(deadline, "the answer was read too slowly"))
            view = view[self._connection.send(view) :]
        return len(data)


def _left_s(deadline: float, why: str) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError(why)
    return left_s
