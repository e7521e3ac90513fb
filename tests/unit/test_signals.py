"""SIGTERM, SIGINT and SIGHUP: obeyed at once, whatever the main thread does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from worker.process.signals import Stop

BUSY = """
import os, sys, time
from worker.process.signals import listening

def stuck_in_c():  # a call that no Python signal handler interrupts, and that lets other threads run
    os.write(1, b"busy\\n")
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 100_000_000)

with listening() as stop:
    if sys.argv[1] == "working":
        stop.drain_then_leave(lambda: os.write(1, b"drain\\n"))
        stop.read_again(lambda: os.write(1, b"read again\\n"))
    stuck_in_c()
"""


def start(state: str, ignore_hangup: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUSY, state]
    if ignore_hangup:
        command = ["nohup", *command]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    assert process.stdout
    assert process.stdout.readline() == "busy\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_there_is_anything_to_drain_a_signal_ends_the_process_with_0(number: int) -> None:
    """A warm-up that never ends in C++ does not keep the process from leaving."""
    with start("warming up") as process:
        process.send_signal(number)
        assert process.wait(10) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_drains_and_the_second_ends_the_process(number: int, code: int) -> None:
    """Although the main thread is inside a long call, the drain is asked for at once and the second signal obeyed."""
    with start("working") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert process.stdout.readline() == "drain\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == code


def test_a_hangup_that_the_parent_ignores_stays_ignored() -> None:
    """Under nohup a closed terminal changes nothing; SIGTERM still ends the process."""
    with start("warming up", ignore_hangup=True) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_hangup_has_the_keys_read_again_and_stops_nothing() -> None:
    """SIGHUP, however often, is no signal to end; the first SIGTERM after it still drains."""
    with start("working") as process:
        assert process.stdout
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "read again\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "drain\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def test_a_hangup_during_the_start_is_not_lost() -> None:
    """Whoever reads the keys may have read the old ones: they are read again as soon as somebody can."""
    left: list[int] = []
    read: list[int] = []
    stop = Stop(left.append)
    stop.arrived(signal.SIGHUP)
    assert left == []
    stop.read_again(lambda: read.append(1))
    assert read == [1]


def test_a_closed_terminal_drains() -> None:
    """A hangup because the terminal is gone ends the process as SIGTERM does: its user is gone, too."""
    has_terminal = True
    got: list[int] = []
    stop = Stop(got.append, lambda: has_terminal)
    stop.give_to(got.append)
    stop.read_again(lambda: got.append(0))
    stop.arrived(signal.SIGHUP)
    has_terminal = False
    stop.arrived(signal.SIGHUP)
    assert got == [0, signal.SIGHUP]


def test_closing_a_real_terminal_is_told_from_a_hangup() -> None:
    """A process on a pseudo-terminal takes SIGHUP for its keys; when the terminal closes, it drains."""
    said, says = os.pipe()
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.set_inheritable(says, True)
        script = BUSY.replace("os.write(1,", f"os.write({says},")
        os.execv(sys.executable, [sys.executable, "-c", script, "working"])
    os.close(says)
    with open(said, encoding="ascii") as lines:
        assert lines.readline() == "busy\n"
        os.kill(pid, signal.SIGHUP)
        assert lines.readline() == "read again\n"
        os.close(terminal)
        assert lines.readline() == "drain\n"
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


def test_every_signal_is_passed_on_once_somebody_asks() -> None:
    """The supervisor gets the numbers and decides by itself."""
    got: list[int] = []
    left: list[int] = []
    stop = Stop(left.append)
    stop.give_to(got.append)
    stop.arrived(signal.SIGINT)
    stop.arrived(signal.SIGTERM)
    assert got == [signal.SIGINT, signal.SIGTERM]
    assert left == []


def test_signals_are_listened_to_only_inside() -> None:
    """Afterwards the handlers are those of before."""
    script = (
        "import os, signal\n"
        "from worker.process.signals import listening\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "with listening():\n"
        "    assert signal.getsignal(signal.SIGTERM) != before\n"
        "assert signal.getsignal(signal.SIGTERM) == before\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30, env=os.environ)
