"""The line between the supervisor and one replica: orders down, a name up, and the end of either noticed.

Orders come as one JSON line on the replica's standard input, which stays open for as long as the supervisor lives.
Settings with passwords in them travel this way, because any user of the machine can read a command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Orders:
    """What the supervisor tells a replica."""

    overrides: list[str]
    """The ``--set`` options."""
    report_fd: int
    """Where the replica says that it is up."""
    predecessor: str | None = None
    """The id in the consumer group of the process that died in this replica's place."""

    def report_up(self, member: str) -> None:
        """Tell the supervisor that configuration, model and broker are good: the group let this replica in.

        Args:
            member: the id that the group gave to this process. Told at every assignment: it may change.
        """
        with suppress(OSError):
            os.write(self.report_fd, member.encode() + b"\n")


def take_orders() -> Orders:
    """For a replica, first of all: read the orders, and drain when the supervisor is gone, even by SIGKILL."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            os._exit(0)  # the supervisor died before it could say anything
        line += part

    drain_with_parent()
    return Orders(**json.loads(line))


def drain_with_parent() -> None:
    """Drain (SIGTERM to this process) when standard input ends: the parent that holds it is gone, even by SIGKILL."""

    def watch() -> None:
        os.read(0, 1)  # returns when the parent's end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class Replica:
    """A replica's process, seen by the supervisor."""

    def __init__(
        self, command: Sequence[str], overrides: Sequence[str], predecessor: str | None = None
    ) -> None:
        """Start it. ``predecessor``: see :class:`Orders`.

        It gets a process group of its own: a Ctrl-C in the terminal reaches the supervisor alone, which passes it on
        once. A replica takes a second signal for "stop now".

        Raises:
            OSError: the system cannot start a process now.
        """
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(writer,), process_group=0
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._reports = reader
        self._reported = b""
        assert self._process.stdin is not None
        orders = {"overrides": [*overrides], "report_fd": writer, "predecessor": predecessor}
        with suppress(BrokenPipeError):  # it died at once; `poll` tells
            self._process.stdin.write(json.dumps(orders).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def member(self) -> str | None:
        """Its id in the consumer group, as last reported; None: it was never up."""
        with suppress(BlockingIOError):
            while data := os.read(self._reports, 4096):
                self._reported += data
        *whole, part = self._reported.split(b"\n")
        if not whole:
            return None
        self._reported = whole[-1] + b"\n" + part
        return whole[-1].decode()

    def poll(self) -> int | None:
        """None while it runs, else its exit code, or minus the signal that killed it."""
        return self._process.poll()

    def send_signal(self, sig: int) -> None:
        self._process.send_signal(sig)

    def close(self) -> None:
        """It has ended: give its pipes back."""
        os.close(self._reports)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
