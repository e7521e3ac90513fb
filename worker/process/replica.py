"""The line between the supervisor and one replica: orders down, one word up, and the end of either noticed.

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

    def report_up(self) -> None:
        """Tell the supervisor that configuration, model and broker are good: the group let this replica in."""
        with suppress(OSError):
            os.write(self.report_fd, b"u")
            os.close(self.report_fd)


def take_orders() -> Orders:
    """For a replica, first of all: read the orders, and drain when the supervisor is gone, even by SIGKILL."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            os._exit(0)  # the supervisor died before it could say anything
        line += part

    def watch() -> None:
        os.read(0, 1)  # returns when the supervisor's end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
    return Orders(**json.loads(line))


class Replica:
    """A replica's process, seen by the supervisor."""

    def __init__(self, command: Sequence[str], overrides: Sequence[str]) -> None:
        """Start it.

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
        self._up = False
        assert self._process.stdin is not None
        orders = {"overrides": [*overrides], "report_fd": writer}
        with suppress(BrokenPipeError):  # it died at once; `poll` tells
            self._process.stdin.write(json.dumps(orders).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def up(self) -> bool:
        """Whether it has ever said that it is up."""
        with suppress(BlockingIOError):
            self._up = self._up or bool(os.read(self._reports, 1))
        return self._up

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
