"""Models with versions: which versions there are, which of them are complete, and which one is meant; and the folder of them.

    <repository>/<name>/<version>/model.onnx      and what belongs to it: external data, labels.txt, golden.jsonl, ...
    <repository>/<name>/<version>/model.sha256    optional: the version counts once its files match
    <repository>/<name>/aliases.yaml              optional: name -> version

Nothing here is kept between two looks: the folder is the only state. :mod:`worker.model.stored` is the same in a store.
"""

from __future__ import annotations

import hashlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from worker.errors import StartError
from worker.filesystem import read_bytes
from worker.model.fingerprint import external_locations, model_sha256
from worker.model.versions import Version, version_of

LATEST = "latest"
MODEL, SUM, ALIASES = "model.onnx", "model.sha256", "aliases.yaml"
QUIET_S = 2.0
"""A version without ``model.sha256`` counts when none of its files changed for so long: it may be copied in place."""
MOST_SUM_BYTES = 64 << 10
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64})(?:[ \t]+\*?(\S.*))?")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Of each file of a version: relative path, bytes, and when its content and its entry changed, in nanoseconds."""


@dataclass(frozen=True)
class Candidate:
    """A version that is there."""

    version: Version
    folder: Path
    fingerprint: Fingerprint
    incomplete: str | None = None
    """Why it does not count yet; None where it counts."""
    fresh: bool = False
    """Whether that is only because its files have just changed."""
    damaged: bool = False
    """Whether it does not match its ``model.sha256``, and nobody seems to write it any more."""
    hold: object = None
    """Keeps its files where they are for as long as it lives, if they are a copy that would be cleared away."""

    @property
    def path(self) -> Path:
        return self.folder / MODEL

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size, _, _ in self.fingerprint)


class RepositoryAway(StartError):
    """The repository cannot be reached now."""


class Damaged(StartError):
    """A version is not what its checksum says. It does not count any more until its files change."""


class Versions(ABC):
    """The versions of one model, wherever they lie.

    Args:
        place: where that is, for people.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    @abstractmethod
    def versions(self) -> list[Candidate]:
        """Every version, the newest first.

        Raises:
            RepositoryAway: the repository cannot be read.
        """

    @abstractmethod
    def alias_file(self) -> bytes:
        """The content of ``aliases.yaml``; empty if there is none.

        Raises:
            RepositoryAway: the repository cannot be read.
        """

    def local(self, candidate: Candidate) -> Candidate:
        """The version with its files on this machine.

        Raises:
            Damaged: it is not what its checksum says.
            StartError: its files cannot be had now.
        """
        return candidate

    def named(self, name: str, found: Sequence[Candidate] | None = None) -> Candidate | None:
        """One version; None where it is not there."""
        found = self.versions() if found is None else found
        return next((each for each in found if each.version.name == name), None)

    def find(self, wanted: str, patient: bool = False, found: Sequence[Candidate] | None = None) -> Candidate:
        """The version that a setting means.

        Args:
            wanted: ``latest`` (the newest complete one that is no pre-release), a version, or an alias.
            patient: wait until a version counts whose files have just changed.
            found: what :meth:`versions` has just said; None = look.

        Raises:
            StartError: there is no such version, or it is not complete.
        """
        if patient and any(each.fresh for each in self.versions()):
            time.sleep(QUIET_S)
        if wanted == LATEST:
            found = self.versions() if found is None else found
            complete = (each for each in found if each.incomplete is None and not each.version.pre_release)
            newest = next(complete, None)
            if newest is not None:
                return newest
            reason = (
                f"{found[0].version.name} is not complete: {found[0].incomplete}"
                if found
                else "there is none"
            )
            raise StartError(f"model.version: {self.place} has no complete version: {reason}")
        name = wanted if version_of(wanted) else self._aliased(wanted)
        candidate = self.named(name, found)
        if candidate is None:
            raise StartError(f"model.version: {self.place} has no version {name}; there are {self._names()}")
        if candidate.incomplete is not None:
            raise StartError(f"model.version: {self.place}/{name} is not complete: {candidate.incomplete}")
        return candidate

    def aliases(self) -> dict[str, str]:
        """The aliases and the version that each stands for.

        Raises:
            StartError: the file is no mapping of names to versions.
        """
        path = f"{self.place}/{ALIASES}"
        try:
            document = yaml.safe_load(self.alias_file() or b"{}")
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            raise StartError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise StartError(f"{path}: expected names with a version each, such as stable: 3")
        return {str(name): str(version) for name, version in document.items()}

    def _aliased(self, alias: str) -> str:
        aliases = self.aliases()
        if alias not in aliases:
            raise StartError(
                f"model.version: got {alias}, expected latest, a version (there are {self._names()}) or an alias of "
                f"{self.place}/{ALIASES} (there are {', '.join(sorted(aliases)) or 'none'})"
            )
        if version_of(aliases[alias]) is None:
            raise StartError(
                f"{self.place}/{ALIASES}: {alias} is {aliases[alias]}, expected a version such as 3 or 1.2.0"
            )
        return aliases[alias]

    def _names(self) -> str:
        return ", ".join(each.version.name for each in self.versions()[:10]) or "none"


class Repository(Versions):
    """A folder with the versions of one model.

    Args:
        folder: the repository.
        name: the model's folder inside.
        clock: Unix seconds.
        needs: a file that a version must have; None = any.
    """

    def __init__(
        self, folder: Path, name: str, clock: Callable[[], float] = time.time, needs: str | None = MODEL
    ) -> None:
        super().__init__(str(folder / name))
        self.folder = folder / name
        self._clock = clock
        self._needs = needs
        self._summed: dict[Path, tuple[Fingerprint, str | None]] = {}
        """What the check against ``model.sha256`` said, so that large files are read again only when they change."""

    def versions(self) -> list[Candidate]:
        try:
            entries = [*self.folder.iterdir()]
        except OSError as error:
            raise RepositoryAway(
                f"model.repository: {self.folder} cannot be read: {error.strerror}"
            ) from None
        found = [(version, entry) for entry in entries if (version := version_of(entry.name)) is not None]
        found.sort(key=lambda pair: pair[0], reverse=True)
        return [self._look(version, entry) for version, entry in found if entry.is_dir()]

    def named(self, name: str, found: Sequence[Candidate] | None = None) -> Candidate | None:
        version = version_of(name)
        folder = self.folder / name
        return self._look(version, folder) if version is not None and folder.is_dir() else None

    def alias_file(self) -> bytes:
        try:
            return read_bytes(self.folder / ALIASES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RepositoryAway(f"{self.folder / ALIASES} cannot be read: {error.strerror}") from None

    def _look(self, version: Version, folder: Path) -> Candidate:
        files = _fingerprint(folder)
        names = {name for name, *_ in files}
        if why := lacking(names, self._needs):
            return Candidate(version, folder, files, why)
        changed_s = max(max(modified, entered) for _, _, modified, entered in files) / 1e9
        quiet = self._clock() - changed_s >= QUIET_S
        if SUM in names:
            wrong = self._mismatch(folder, files)
            return Candidate(version, folder, files, wrong, damaged=wrong is not None and quiet)
        if quiet:
            return Candidate(version, folder, files)
        return Candidate(version, folder, files, f"its files changed less than {QUIET_S:g} s ago", fresh=True)

    def _mismatch(self, folder: Path, files: Fingerprint) -> str | None:
        known, said = self._summed.get(folder, (None, None))
        if known != files:
            said = mismatch(folder, self._needs)
            self._summed[folder] = files, said
        return said


def lacking(names: Collection[str], needs: str | None) -> str | None:
    """Why a version with these files does not count whatever they hold; None where it may."""
    if needs is not None and needs not in names:
        return f"{needs} is not there"
    return None if set(names) - {SUM} else "no file is there"


def _fingerprint(folder: Path) -> Fingerprint:
    """Of every file below a folder; what cannot be looked at is left out, as it comes and goes."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            state = path.stat()
        except OSError:
            continue
        if path.is_file():
            name = str(path.relative_to(folder))
            found.append((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def mismatch(folder: Path, needs: str | None = MODEL) -> str | None:
    """Why ``model.sha256`` does not agree with the files; None where it does.

    The file is what ``sha256sum`` writes, one line for each file; or one digest, of ``model.onnx`` followed by its external
    data, the same as ``model.sha256`` in the configuration.

    Args:
        needs: the ONNX file; None where the files are those of custom code, which must be listed one by one.
    """
    try:
        with (folder / SUM).open("rb") as stream:
            text = stream.read(MOST_SUM_BYTES).decode()
        lines = [line for line in text.splitlines() if line.strip()]
        sums = [_SUM_LINE.fullmatch(line.strip()) for line in lines]
        if not sums:
            return f"{SUM} is empty"
        for line, found in zip(lines, sums, strict=True):
            if found is None:
                return f"{SUM} has a line that is no SHA-256: {line[:80]!r}"
            digest, name = found.groups()
            if name is None and needs is None:
                return f"{SUM} names no file; expected a line for each file, as sha256sum writes it"
            if not inside(name or MODEL):
                return f"{SUM} names {name}, which is not inside the folder"
            have = _sha256(folder / name) if name else model_sha256(folder / MODEL)
            if have != digest.lower():
                return f"{name or MODEL} does not match {SUM}"
        listed = {found[2] for found in sums if found is not None}
        if None not in listed and needs is not None:
            missing = {MODEL, *external_locations(folder / MODEL)} - listed
            if missing:
                return f"{SUM} does not list {min(missing)}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is not there"
    except (OSError, UnicodeDecodeError) as error:
        return f"{SUM} cannot be checked: {error}"
    return None


def inside(name: str) -> bool:
    """Whether a relative path stays inside its folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
