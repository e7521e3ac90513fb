"""What the system refuses a process: files, threads, memory, room on a disk. It is one sentence for the user, and no bug."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

from worker.errors import StartError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_THREAD = ("can't start new thread", "Failed to create thread", "pthread_create")
"""How Python, librdkafka and native libraries say it."""
_NO_MEMORY = (
    "failed to map segment",
    "annot allocate memory",
    "cannot create shared object descriptor",
    "std::bad_alloc",
    "bad allocation",
)
"""How the loader of shared libraries, the C library and C++ say it."""


_MANY_THREADS = 10_000
"""A higher limit of threads is the default of the system, and never the reason."""
LEAST_ADDRESS_SPACE = 1536 << 20
"""ONNX Runtime, OpenCV and a Kafka client with their threads take more (measured on two cores: 1.5 to 1.7 GiB). Where they
get no more, they do not always say so. Some end the process with a signal. librdkafka, when it is refused a thread while a
client is made, may wait for another of its threads for ever, and Python with it: then no signal is obeyed."""


def check_address_space() -> None:
    """Called before the large libraries are loaded.

    Raises:
        StartError: the limit of this process leaves no room for them.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_ADDRESS_SPACE:
        raise StartError(
            f"this process is limited to {soft >> 20} MiB of memory (ulimit -v), expected at least "
            f"{LEAST_ADDRESS_SPACE >> 20} MiB: the libraries of models and of Kafka reserve as much"
        )


def shortage(error: BaseException) -> str | None:
    """What ran out, with the limits that may be the reason; None for an error of another kind.

    The causes of the error count, too: NumPy, for example, wraps what the loader of its library says.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if (sentence := _of(each)) is not None:
            return sentence
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return None


def _of(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return _no_memory()
    if not isinstance(error, Exception):
        return None
    text = str(error)
    if any(said in text for said in _NO_THREAD):
        return _no_thread()
    return _no_memory() if any(said in text for said in _NO_MEMORY) else None


def _of_system(error: OSError) -> str | None:
    match error.errno:
        case errno.EMFILE:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"this process has as many files and connections open as it may have, {soft} (ulimit -n): allow more"
        case errno.ENFILE:
            return "the system has as many files open as it may have (sysctl fs.file-max): allow more"
        case errno.ENOMEM:
            return _no_memory()
        case number if number in _NO_ROOM:
            what = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
            return f"{what} cannot be written: {os.strerror(number)}"
    return None


def _no_memory() -> str:
    limits = [*_limits()]
    return "the system gives this process no more memory" + (
        f": it is limited to {', '.join(limits)}; allow more"
        if limits
        else ": look at the memory of the machine and at the limit of the container"
    )


def _no_thread() -> str:
    limits = [*_limits(threads=True)]
    return "the system gives this process no further thread" + (
        f": it is limited to {', '.join(limits)}; allow more"
        if limits
        else ": look at the memory of the machine, and at the limits of memory and processes of the container (pids.max)"
    )


def _limits(threads: bool = False) -> Iterator[str]:
    """The limits that are set for this process. The stacks of threads count as memory."""
    for number, name in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            yield f"{soft >> 20} MiB of memory ({name})"
    if threads:
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        if soft != resource.RLIM_INFINITY and soft < _MANY_THREADS:
            yield f"{soft} threads and processes of this user (ulimit -u)"
