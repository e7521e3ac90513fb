"""SIGTERM, SIGINT and SIGHUP, obeyed from the first moment, whatever the main thread is stuck in.

SIGTERM and SIGINT end the process, SIGHUP makes it read its configuration again. A SIGHUP that comes because the terminal was
closed is one to end, because whoever started the process there is gone.

Python runs a signal handler on the main thread, between two of its instructions: a model that is loaded or warmed up in
C++ would hold it up for as long as that takes. So the interpreter only writes the signal's number into a pipe, and a
thread of its own acts on it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.process.leaving import leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def on_terminal() -> bool:
    """Whether the process has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Stop:
    """What a signal does. Until somebody asks for them, there is nothing to drain: the process ends with 0.

    Args:
        leave: ends the process.
        on_terminal: whether the process has a terminal; asked now and at each SIGHUP.
    """

    def __init__(
        self, leave: Callable[[int], object] = leave, on_terminal: Callable[[], bool] = on_terminal
    ) -> None:
        self._leave = leave
        self._on_terminal = on_terminal
        self._had_terminal = on_terminal()
        self._lock = threading.Lock()
        self._receive: Callable[[int], object] | None = None
        self._reread: Callable[[], object] | None = None
        self._reread_due = False

    def give_to(self, receive: Callable[[int], object]) -> None:
        """From now on ``receive`` is called with the number of each signal, on the thread of this module."""
        with self._lock:
            self._receive = receive

    def drain_then_leave(
        self, drain: Callable[[], object], last: Callable[[], object] = lambda: None
    ) -> None:
        """From now on the first signal calls ``drain``; the second calls ``last``, which must be short, and ends the
        process with 128 + its number."""
        asked: list[int] = []

        def receive(number: int) -> None:
            asked.append(number)
            if len(asked) == 1:
                drain()
            else:
                last()
                self._leave(128 + number)

        self.give_to(receive)

    def read_again(self, reread: Callable[[], object]) -> None:
        """From now on ``reread`` is called at SIGHUP, on the thread of this module; at once if one came before."""
        with self._lock:
            self._reread = reread
            if self._reread_due:
                reread()

    def reread(self) -> None:
        """Have what was given to :meth:`read_again` called, as a SIGHUP does; for any thread."""
        with self._lock:
            self._reread_now()

    def _reread_now(self) -> None:
        self._reread_due = True
        if self._reread is not None:
            self._reread()

    def arrived(self, number: int) -> None:
        """A signal came."""
        with self._lock:
            if number == signal.SIGHUP and not (self._had_terminal and not self._on_terminal()):
                self._reread_now()
            elif self._receive is None:
                self._leave(0)
            else:
                self._receive(number)


@contextmanager
def listening() -> Iterator[Stop]:
    """Act on the signals as the yielded object says. To be entered on the main thread.

    A SIGHUP that the parent has set to be ignored (``nohup``) stays ignored.
    """
    stop = Stop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = [
        number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # a parent may hand its signal mask down: a blocked SIGTERM would never drain the worker
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def watch() -> None:
        while data := os.read(reader, 16):
            for number in data:
                if number in numbers:
                    stop.arrived(number)
        os.close(reader)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(pipe_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
