"""Models with versions in a store: the same folders as :mod:`worker.model.repository`, read into a cache on local disk.

An object appears whole, but a version has several of them. So a version counts once its ``model.sha256`` is there, which is
written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from worker.errors import StartError
from worker.model.cache import Cache
from worker.model.repository import (
    ALIASES,
    MODEL,
    MOST_SUM_BYTES,
    SUM,
    Candidate,
    Damaged,
    Fingerprint,
    RepositoryAway,
    Versions,
    inside,
    lacking,
    mismatch,
)
from worker.model.versions import version_of
from worker.outside import Away
from worker.stores import Denied, Missing
from worker.stores.trees import Changed, Entry, Tree

MOST_ALIAS_BYTES = 1 << 20


class StoredVersions(Versions):
    """The versions of one model in a store.

    Args:
        place: the model's folder in the store, for people, without a slash at its end.
        tree: the same, for asking.
        cache: where the files of versions are copied to.
        needs: a file that a version must have; None = any.
    """

    def __init__(self, place: str, tree: Tree, cache: Cache, needs: str | None = MODEL) -> None:
        super().__init__(place)
        self._tree = tree
        self._cache = cache
        self._needs = needs
        self._damaged: dict[str, tuple[Fingerprint, str]] = {}
        """Versions whose files were not what their checksum says, and why."""

    def versions(self) -> list[Candidate]:
        try:
            listed = self._tree.entries()
        except (Away, Denied, Missing) as error:
            raise self._away(error) from None
        files: dict[str, list[Entry]] = {}
        for entry in listed:
            name, slash, rest = entry.name.partition("/")
            if slash and rest and not rest.endswith("/") and version_of(name) is not None:
                files.setdefault(name, []).append(Entry(rest, entry.size, entry.stamp))
        found = [self._candidate(name, entries) for name, entries in files.items()]
        return sorted(found, key=lambda each: each.version, reverse=True)

    def alias_file(self) -> bytes:
        try:
            return self._tree.read(ALIASES, MOST_ALIAS_BYTES)
        except Missing:
            return b""
        except (Away, Denied) as error:
            raise self._away(error) from None

    def local(self, candidate: Candidate) -> Candidate:
        """The version with its files in the cache, compared with its checksum.

        Raises:
            Damaged: they are not what the checksum says.
            RepositoryAway: the store cannot be reached.
            StartError: they changed meanwhile, or the cache cannot be written.
        """
        name = candidate.version.name
        try:
            sums = self._tree.read(f"{name}/{SUM}", MOST_SUM_BYTES)
            key = _key(sums, candidate.fingerprint)
            hold, wrong = self._cache.get(
                key,
                candidate.nbytes,
                lambda folder: self._copy(candidate, folder),
                lambda folder: mismatch(folder, self._needs),
            )
        except (Away, Denied) as error:
            raise self._away(error) from None
        except (Missing, Changed):
            raise StartError(
                f"model.repository: {self.place}/{name} has changed while it was read; it is read again"
            ) from None
        if wrong is not None:
            hold.close()
            self._damaged[name] = candidate.fingerprint, wrong
            raise Damaged(f"model.version: {self.place}/{name} is not complete: {wrong}")
        return Candidate(candidate.version, self._cache.place(key), candidate.fingerprint, hold=hold)

    def _candidate(self, name: str, entries: Sequence[Entry]) -> Candidate:
        version = version_of(name)
        assert version is not None
        files = tuple(sorted((each.name, each.size, _number(each.stamp), 0) for each in entries))
        names = {each.name for each in entries}
        why = lacking(names, self._needs)
        if why is None and SUM not in names:
            why = f"{SUM} is not there; expected it to be written last"
        if why is None and not all(map(inside, names)):
            why = "a file has a name that leads out of its folder"
        known, said = self._damaged.get(name, (None, ""))
        damaged = why is None and known == files
        folder = Path(self.place, name)
        return Candidate(version, folder, files, said if damaged else why, damaged=damaged)

    def _copy(self, candidate: Candidate, folder: Path) -> None:
        """Write the files of a version into a folder."""
        prefix = f"{candidate.version.name}/"
        now = {
            each.name.removeprefix(prefix): each
            for each in self._tree.entries()
            if each.name.startswith(prefix)
        }
        for name, size, stamp, _ in candidate.fingerprint:
            entry = now.get(name)
            if entry is None or (entry.size, _number(entry.stamp)) != (size, stamp):
                raise Changed
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in self._tree.pieces(entry):
                    file.write(piece)

    def _away(self, error: Exception) -> RepositoryAway:
        why = "it is not there" if isinstance(error, Missing) else str(error)
        return RepositoryAway(f"model.repository: {self.place} cannot be read: {why}")


def _number(stamp: str) -> int:
    """What stands for a stamp in a fingerprint."""
    return int.from_bytes(hashlib.sha256(stamp.encode()).digest()[:8], "big")


def _key(sums: bytes, files: Fingerprint) -> str:
    """The name of a copy: equal for equal content, wherever it lies."""
    return hashlib.sha256(sums + repr(files).encode()).hexdigest()
