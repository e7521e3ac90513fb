"""Files that settings and commands name, looked at and read with care: a name may be too long, a link to itself, or lead
through a folder that is closed to us, and a file may be a device that never ends.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

MIB = 1 << 20
TEXT_MAX = 4 * MIB
"""Bytes of a file that people write: a configuration, a schema, a key."""
LIST_MAX = 16 * MIB
"""Bytes of a file of labels or characters; the largest real ones have a few hundred thousand lines."""
MADE_MAX = 256 * MIB
"""Bytes of a file that a program writes: a tokenizer, a profile; the largest real tokenizers have about 40 MiB."""
RECORD_MAX = 1024 * MIB
"""Bytes of a file that is one record."""
PATH_MAX = 4095
"""Bytes of a path, as Linux has it."""


class TooLarge(OSError):
    """A file has more bytes than its kind may have; its text and ``strerror`` say so in words."""

    def __init__(self, limit: int) -> None:
        super().__init__(errno.EFBIG, f"is larger than {limit // MIB:,} MiB")

    def __str__(self) -> str:
        return str(self.strerror)


def read_bytes(path: Path, limit: int = TEXT_MAX) -> bytes:
    """A file's bytes; a pipe or terminal is read to its end, a device only as far as the limit.

    Raises:
        TooLarge: there are more bytes than the limit.
        OSError: it cannot be read.
        ValueError: the path holds a NUL.
    """
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(limit)
    return content


def read_text(path: Path, limit: int = TEXT_MAX, encoding: str = "utf-8") -> str:
    """A file's text, line ends as ``\\n``.

    Raises:
        UnicodeDecodeError: it is no text of the encoding.
        OSError: as :func:`read_bytes`.
        ValueError: as :func:`read_bytes`.
    """
    text = read_bytes(path, limit).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_file(path: Path) -> bool:
    """Whether there is a regular file that we may look at; :meth:`pathlib.Path.is_file` raises for some paths that there is none of."""
    return os.path.isfile(path)


def is_dir(path: Path) -> bool:
    """Whether there is a folder that we may look at."""
    return os.path.isdir(path)


def exists(path: Path) -> bool:
    """Whether there is anything that we may look at."""
    return os.path.exists(path)


def instead_of_file(path: Path) -> str:
    """What there is at a path where :func:`is_file` found no file, for the error's sentence."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    return "is a directory" if is_dir(path) else "is no regular file"
