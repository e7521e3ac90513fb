"""Keeps libraries that decode files from writing to the process's standard error."""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import suppress


@functools.cache
def quiet_decoders() -> None:
    """Discard the warnings that libjpeg, libpng and mpg123 print for each broken file: they would break the log's JSON lines.

    They write to C's ``stderr`` stream. Python, ONNX Runtime and crash dumps write to the file descriptor or to streams of
    their own; their output stays visible.
    """
    with suppress(OSError, ValueError):  # this C library has no such symbol: the warnings stay visible
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(os.devnull.encode(), b"w")
        if nowhere:
            ctypes.c_void_p.in_dll(libc, "stderr").value = nowhere
