"""The three standard streams of the process: what takes their place when they are closed, and when one cannot be written."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""No room, the end of a file's allowed size, a broken device, a stream that is open for reading only."""


def fill_closed() -> None:
    """Open the null device in the place of each standard stream that was closed when the process started.

    Otherwise the next file or connection gets the number of the stream, and what a library prints goes into it: ONNX
    Runtime and librdkafka write to number 2. Standard error stays silent: the log has nowhere to go.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)  # for replicas, too
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)


def unwritten() -> OSError | None:
    """Why what waits in the buffer of standard output cannot be written; None if there is nothing, or it was written."""
    try:
        if not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        return error
    return None


def refuses(error: OSError) -> bool:
    """Whether this error, which names no file, came from standard output.

    With a buffer, what was refused is still there. Without one (``PYTHONUNBUFFERED``) only a further write can tell.
    """
    if error.filename is not None or error.errno not in _REFUSALS:
        return False
    if (again := unwritten()) is not None:
        return again.errno == error.errno
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except (OSError, ValueError) as again:
        return getattr(again, "errno", None) == error.errno
    return False


def let_go() -> None:
    """Give standard output a place where what is left can be written: the interpreter tries again at its exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
