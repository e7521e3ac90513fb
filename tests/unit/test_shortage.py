"""What the system refuses: full disks, closed streams, few files, little memory, no threads. One sentence, and never a bug."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker import extras
from worker.cli import check, init, standard
from worker.cli import main as cli
from worker.errors import StartError, WorkerError
from worker.process.run import run as run_worker
from worker.shortage import check_address_space, shortage

START = "import sys; from worker.__main__ import main; sys.exit(main())"


def streaminfer(*arguments: str, unbuffered: bool = False, stdout: Any) -> tuple[int, str]:
    """Exit code and standard error of a command in a process of its own."""
    environ = {**os.environ, "LOG_FORMAT": "console"}
    environ.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        [sys.executable, *(["-u"] if unbuffered else []), "-c", START, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environ,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["--version"], ["schema"]], ids=" ".join)
def test_a_full_disk_under_standard_output_is_one_sentence(arguments: list[str], unbuffered: bool) -> None:
    """A command whose output cannot be written ends with 3 and says so once, without a traceback; so does --version."""
    with open("/dev/full", "w") as full:
        code, said = streaminfer(*arguments, stdout=full, unbuffered=unbuffered)
    assert (code, said) == (3, "streaminfer: standard output cannot be written: No space left on device\n")


def test_an_output_that_is_open_for_reading_only_is_one_sentence() -> None:
    """`streaminfer schema 1</dev/null` ends with 3 and names standard output."""
    with open(os.devnull) as reading:
        code, said = streaminfer("schema", stdout=reading)
    assert (code, said) == (3, "streaminfer: standard output cannot be written: Bad file descriptor\n")


def test_a_mistake_stays_a_mistake_where_output_cannot_be_written() -> None:
    """The exit code is that of the mistake, and the interpreter adds nothing of its own about standard output."""
    with open("/dev/full", "w") as full:
        code, said = streaminfer(stdout=full)  # prints the list of commands, too
    assert code == 2
    assert said.count("\n") == 1


def test_closed_streams_are_filled_before_anything_opens_a_file(tmp_path: Path) -> None:
    """A process whose three streams are closed from the start has the null device in their places, and prints into it."""
    found = tmp_path / "found"
    code = (
        "import os, sys\n"
        "from worker.cli import standard\n"
        "standard.fill_closed()\n"
        "print('nobody reads this', flush=True)\n"
        f"with open({str(found)!r}, 'w') as file:\n"
        "    file.write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))\n"
        "    file.write(f' {file.fileno() > 2} {sys.stdin.read()!r} {sys.stdout.isatty()}')\n"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False, timeout=60
    )
    assert done.returncode == 0
    assert found.read_text() == "/dev/null /dev/null /dev/null True '' False"


def test_streams_that_are_open_stay_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    """Filling changes nothing where no stream is closed."""
    before = [os.fstat(number) for number in range(3)]
    standard.fill_closed()
    print("as ever")
    assert [os.fstat(number).st_ino for number in range(3)] == [each.st_ino for each in before]
    assert capfd.readouterr().out == "as ever\n"


def test_few_open_files_are_one_sentence_with_the_limit() -> None:
    """A process that may open no file ends with 3 and names the limit and how it is set."""
    code = (
        "import resource, sys\n"
        "import worker.shortage, worker.telemetry.logs\n"
        "from worker.cli import check\n"
        "from worker.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "check.configure, check.run = lambda _: None, lambda _: open('/dev/null')\n"
        "sys.exit(main(['check']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOG_FORMAT": "console"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "streaminfer: this process has as many files and connections open as it may have, 3 (ulimit -n): allow more\n"
    )


def test_a_small_address_space_is_refused_before_libraries_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that ONNX Runtime and the Kafka client do not fit into is a sentence; a larger one and none are accepted."""

    def limited_to(limit: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))

    limited_to(800 << 20)
    with pytest.raises(
        StartError, match=r"limited to 800 MiB of memory \(ulimit -v\), expected at least 1536"
    ):
        check_address_space()
    for enough in (1536 << 20, 8 << 30, resource.RLIM_INFINITY):
        limited_to(enough)
        check_address_space()


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MEMORY, THREAD = (
    "the system gives this process no more memory",
    "the system gives this process no further thread",
)


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (MemoryError(), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (ImportError("libvpx.so.11: failed to map segment from shared object"), MEMORY),
        (
            caused(ImportError("READ THIS"), ImportError("x.so: failed to map segment from shared object")),
            MEMORY,
        ),
        (RuntimeError("std::bad_alloc"), MEMORY),
        (RuntimeError("can't start new thread"), THREAD),
        (
            ValueError("Failed to create producer: Failed to create thread: Cannot allocate memory (12)"),
            THREAD,
        ),
        (OSError(errno.ENFILE, "x"), "the system has as many files open as it may have"),
        (
            OSError(errno.ENOSPC, "x", "/cache/m.onnx"),
            "/cache/m.onnx cannot be written: No space left on device",
        ),
        (OSError(errno.EROFS, "x", b"/cache"), "/cache cannot be written: Read-only file system"),
        (OSError(errno.EFBIG, "x"), "a file cannot be written: File too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_what_ran_out_is_known(error: Exception, begins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which Python, libraries and the C library say that something ran out is one sentence with exit code 3."""
    monkeypatch.setattr(check, "configure", lambda parser: None)

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(check, "run", fail)
    sentence = shortage(error)
    assert sentence is not None
    assert sentence.startswith(begins)
    assert cli.main(["check"]) == 3


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), OSError(errno.ENOENT, "x", "f"), ImportError("No module named x"), KeyError("memory")],
    ids=repr,
)
def test_other_errors_are_none(error: Exception) -> None:
    """A missing file, a missing module and a wrong value say nothing about what the system gives."""
    assert shortage(error) is None


def test_limits_are_named_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the limits of this process, and where none is set, the machine and the container."""
    limits = {resource.RLIMIT_AS: 2 << 30, resource.RLIMIT_NPROC: 50}
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind],) * 2 if kind in limits else none)
    assert str(shortage(MemoryError())).endswith(
        ": it is limited to 2048 MiB of memory (ulimit -v); allow more"
    )
    assert "(ulimit -v), 50 threads and processes of this user (ulimit -u); allow more" in str(
        shortage(RuntimeError("can't start new thread"))
    )
    limits.clear()
    assert "container" in str(shortage(MemoryError()))
    assert "pids.max" in str(shortage(RuntimeError("can't start new thread")))


def test_a_configuration_that_finds_no_room_leaves_no_half_file(tmp_path: Path) -> None:
    """`init` says that the file cannot be written and takes away what it made; the next try is not told that it exists."""
    path = tmp_path / "made.yaml"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(StartError, match=r"made\.yaml cannot be written: File too large"):
            init._save(path, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()


def test_an_extra_that_finds_no_memory_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is installed and cannot be mapped is not answered with how to install it."""

    def refused(_: str) -> object:
        raise ImportError("av.so: failed to map segment from shared object", name="av")

    monkeypatch.setattr("importlib.import_module", refused)
    with pytest.raises(StartError, match="no more memory"):
        extras.load("av", extra="video", why="input.format")


def test_a_worker_that_runs_out_later_may_be_started_again() -> None:
    """What runs out during the run ends with 1, which a supervisor restarts, and with the sentence; a bug stays a bug."""

    def ends(error: Exception) -> None:
        def work() -> None:
            raise error

        parts: Any = {name: lambda *_: None for name in ("ask_to_stop", "end_now", "read_again", "close")}
        worker: Any = SimpleNamespace(run=work, recycles=None, give_up=lambda: None, **parts)
        stop: Any = SimpleNamespace(drain_then_leave=lambda *_: None, read_again=lambda *_: None)
        run_worker(None, lambda _: worker, stop)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        with pytest.raises(WorkerError, match="no more memory") as caught:
            ends(MemoryError())
        assert caught.value.exit_code == 1
        with pytest.raises(ZeroDivisionError):
            ends(ZeroDivisionError())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
