"""Objects that are files of this machine, or of a share that is mounted on it."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from pathlib import Path

from worker.errors import Reject
from worker.filesystem import is_dir
from worker.outside import Away
from worker.stores import Denied, Missing, Opened
from worker.stores.options import StoreOptions
from worker.stores.url import Url


class _File:
    """See :class:`worker.stores.Opened`."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = os.fdopen(descriptor, "rb")
        self.size: int | None = size

    def read(self, most: int) -> bytes:
        with self._file as file:
            try:
                return file.read(most)
            except OSError as error:
                raise Away(f"the file cannot be read: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


class Files:
    """Files under a folder: ``file:///folder/name``. A symbolic link that leaves the folder is not followed."""

    def __init__(self, options: StoreOptions) -> None:
        self._roots = [Path(root.path) for root in options.allowed.roots if root.scheme == "file"]

    def open(self, url: Url) -> Opened:
        path = Path(url.path)
        try:
            # The links of the folder itself are the operator's, those below it may be anybody's.
            real = Path(os.path.realpath(path))
            if not self._allowed(real):
                raise Reject(f"{url} is a link that leads out of the allowed folder", "reference_refused")
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            # A folder may have become a link since it was looked at.
            if not self._inside(descriptor):
                os.close(descriptor)
                raise Reject(f"{url} is a link that leads out of the allowed folder", "reference_refused")
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                os.close(descriptor)
                raise Denied("it is no file")
        except (FileNotFoundError, NotADirectoryError):
            self._look_at_root(path)
            raise Missing from None
        except PermissionError:
            raise Denied("the worker may not read the file") from None
        except (OSError, ValueError) as error:
            raise Away(f"the file cannot be opened: {getattr(error, 'strerror', error)}") from None
        return _File(descriptor, found.st_size)

    def size(self, url: Url) -> int | None:
        """Bytes of a file; raises as :meth:`open`."""
        opened = self.open(url)
        opened.close()
        return opened.size

    def put(self, url: Url, data: bytes, content_type: str) -> None:
        path = Path(url.path)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(data)
                beside.replace(path)  # a reader never sees half of it
            finally:
                with contextlib.suppress(OSError):
                    beside.unlink(missing_ok=True)
        except PermissionError:
            raise Denied("the worker may not write the file") from None
        except OSError as error:
            raise Away(f"the file cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Nothing is kept that needs it."""

    def _allowed(self, real: Path) -> bool:
        return any(real.is_relative_to(os.path.realpath(root)) for root in self._roots)

    def _inside(self, descriptor: int) -> bool:
        """Whether an open file lies under an allowed folder, where the system tells."""
        try:
            return self._allowed(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:
            return True

    def _look_at_root(self, path: Path) -> None:
        """A share that is not mounted now is away; that says nothing of the file."""
        roots = [root for root in self._roots if path.is_relative_to(root)]
        if roots and not any(is_dir(root) for root in roots):
            raise Away("the folder is not there")
