"""Copies of model versions on local disk, one folder for each content, for all processes of a machine that name the folder.

    <cache>/<key>/         the files of a version; it is there once it is whole
    <cache>/<key>.part/    the same while it is being filled
    <cache>/<key>.lock     shared by all who use or fill the folder, held exclusively by who removes it
    <cache>/<key>.fill     held exclusively by who fills it

A process that dies gives up its locks, so that the next one goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.errors import StartError

RESERVED = ".reserved"
"""A file in a folder that is being filled, as long as the whole will be: it takes no room on the disk."""
LOCK, FILL = ".lock", ".fill"
RETRY_S = 0.05


class Hold:
    """A shared lock on one copy: it stays where it is until this is closed or collected."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close


class Cache:
    """See the module.

    Args:
        folder: made when it is needed.
        most_bytes: of all copies together; those that nobody uses and that were used longest ago make room.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self._most_bytes = most_bytes

    def place(self, key: str) -> Path:
        """Where the copy with this key is, or will be."""
        return self.folder / key

    def get(
        self,
        key: str,
        nbytes: int,
        fill: Callable[[Path], None],
        wrong: Callable[[Path], str | None],
    ) -> tuple[Hold, str | None]:
        """Have a copy made if it is not there, by one process at a time; others wait for it.

        Args:
            nbytes: of the whole copy.
            fill: writes the files into a folder.
            wrong: says why a copy is not what it should be; None if it is.

        Returns:
            What keeps the copy in its place, and what is wrong with the files that ``fill`` wrote; such a copy is not kept.

        Raises:
            StartError: the folder cannot be written, or the copy does not fit.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            hold = Hold(self._locked(self._file(key, LOCK), fcntl.LOCK_SH))
            filling = self._locked(self._file(key, FILL), fcntl.LOCK_EX)
            try:
                return hold, self._made(key, nbytes, fill, wrong)
            finally:
                os.close(filling)
        except OSError as error:
            raise StartError(
                f"model.cache: {self.folder} cannot be written: {error.strerror}; "
                "expected a folder that the worker may write"
            ) from None

    def _made(
        self, key: str, nbytes: int, fill: Callable[[Path], None], wrong: Callable[[Path], str | None]
    ) -> str | None:
        """Make the copy if it is not there; returns what is wrong with it. Nobody else fills it meanwhile."""
        place, part = self.place(key), self.folder / f"{key}.part"
        shutil.rmtree(part, ignore_errors=True)
        if place.is_dir():
            if wrong(place) is None:
                os.utime(place)
                return None
            shutil.rmtree(place)
        try:
            self._reserve(part, nbytes)
            fill(part)
            if (why := wrong(part)) is not None:
                return why
            (part / RESERVED).unlink()
            part.rename(place)
            return None
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _reserve(self, part: Path, nbytes: int) -> None:
        """Make room for a copy, and count it from now on."""
        if nbytes > self._most_bytes:
            raise StartError(
                f"model.cache_bytes: got {self._most_bytes}, expected at least {nbytes}, the bytes of one version"
            )
        with self._alone():
            part.mkdir()
            with (part / RESERVED).open("wb") as reserved:
                reserved.truncate(nbytes)
            sizes = {each: _size(each) for each in self.folder.iterdir() if each.is_dir()}
            total = sum(sizes.values())
            for copy in sorted(sizes, key=_used_ns):
                if total <= self._most_bytes:
                    return
                if copy != part and self._removed(copy):
                    total -= sizes[copy]
        if total > self._most_bytes:
            raise StartError(
                f"model.cache_bytes: {self._most_bytes} are not enough: the copies in use and this one take {total}"
            )

    def _removed(self, copy: Path) -> bool:
        """Remove a copy that nobody uses; whether it is gone."""
        key = copy.name.removesuffix(".part")
        lock = self._try_lock(self._file(key, LOCK), fcntl.LOCK_EX)
        if lock is None:
            return False
        try:
            shutil.rmtree(copy, ignore_errors=True)
            if not self.place(key).is_dir():
                self._file(key, FILL).unlink(missing_ok=True)
                self._file(key, LOCK).unlink(missing_ok=True)
            return True
        finally:
            os.close(lock)

    def _file(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}{kind}"

    def _locked(self, path: Path, kind: int) -> int:
        """The descriptor of a lock file, locked; waits until others have given it up."""
        while (lock := self._try_lock(path, kind)) is None:
            time.sleep(RETRY_S)
        return lock

    def _try_lock(self, path: Path, kind: int) -> int | None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            # who removes a copy removes its lock files, too: a lock on such a file says nothing
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else makes room meanwhile."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _size(folder: Path) -> int:
    """Bytes of a copy; of one that is being filled, those that it will have."""
    with suppress(OSError):
        return (folder / RESERVED).stat().st_size
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _used_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
