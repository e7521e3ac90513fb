"""A folder of models with versions: which versions there are, which of them are complete, and which one is meant.

    <repository>/<name>/<version>/model.onnx      and what belongs to it: external data, labels.txt, golden.jsonl, ...
    <repository>/<name>/<version>/model.sha256    optional: the version counts once its files match
    <repository>/<name>/aliases.yaml              optional: name -> version

Nothing here is kept between two looks: the folder is the only state.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from worker.errors import StartError
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

    @property
    def path(self) -> Path:
        return self.folder / MODEL

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size, _, _ in self.fingerprint)


class Repository:
    """The versions of one model.

    Args:
        folder: the repository.
        name: the model's folder inside.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path, name: str, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder / name
        self._clock = clock
        self._summed: dict[Path, tuple[Fingerprint, str | None]] = {}
        """What the check against ``model.sha256`` said, so that large files are read again only when they change."""

    def versions(self) -> list[Candidate]:
        """Every version, the newest first.

        Raises:
            StartError: the folder cannot be read.
        """
        try:
            entries = [*self.folder.iterdir()]
        except OSError as error:
            raise StartError(f"model.repository: {self.folder} cannot be read: {error.strerror}") from None
        found = [(version, entry) for entry in entries if (version := version_of(entry.name)) is not None]
        found.sort(key=lambda pair: pair[0], reverse=True)
        return [self._look(version, entry) for version, entry in found if entry.is_dir()]

    def find(self, wanted: str, patient: bool = False) -> Candidate:
        """The version that a setting means.

        Args:
            wanted: ``latest`` (the newest complete one that is no pre-release), a version, or an alias.
            patient: wait until a version counts whose files have just changed.

        Raises:
            StartError: there is no such version, or it is not complete.
        """
        if patient and any(each.fresh for each in self.versions()):
            time.sleep(QUIET_S)
        if wanted == LATEST:
            found = self.versions()
            complete = (each for each in found if each.incomplete is None and not each.version.pre_release)
            newest = next(complete, None)
            if newest is not None:
                return newest
            reason = (
                f"{found[0].folder.name} is not complete: {found[0].incomplete}" if found else "there is none"
            )
            raise StartError(f"model.version: {self.folder} has no complete version: {reason}")
        name = wanted if version_of(wanted) else self._aliased(wanted)
        version = version_of(name)
        folder = self.folder / name
        if version is None or not folder.is_dir():
            raise StartError(f"model.version: {self.folder} has no version {name}; there are {self._names()}")
        candidate = self._look(version, folder)
        if candidate.incomplete is not None:
            raise StartError(f"model.version: {folder} is not complete: {candidate.incomplete}")
        return candidate

    def aliases(self) -> dict[str, str]:
        """The aliases and the version that each stands for.

        Raises:
            StartError: the file is no mapping of names to versions.
        """
        path = self.folder / ALIASES
        try:
            document = yaml.safe_load(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            raise StartError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise StartError(f"{path}: expected names with a version each, such as stable: 3")
        return {str(name): str(version) for name, version in document.items()}

    def _aliased(self, alias: str) -> str:
        aliases = self.aliases()
        if alias not in aliases:
            raise StartError(
                f"model.version: got {alias}, expected latest, a version (there are {self._names()}) or an alias of "
                f"{self.folder / ALIASES} (there are {', '.join(sorted(aliases)) or 'none'})"
            )
        if version_of(aliases[alias]) is None:
            raise StartError(
                f"{self.folder / ALIASES}: {alias} is {aliases[alias]}, expected a version such as 3 or 1.2.0"
            )
        return aliases[alias]

    def _names(self) -> str:
        return ", ".join(each.version.name for each in self.versions()[:10]) or "none"

    def _look(self, version: Version, folder: Path) -> Candidate:
        files = _fingerprint(folder)
        names = {name for name, *_ in files}
        if MODEL not in names:
            return Candidate(version, folder, files, f"{MODEL} is not there")
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
            said = _mismatch(folder)
            self._summed[folder] = files, said
        return said


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


def _mismatch(folder: Path) -> str | None:
    """Why ``model.sha256`` does not agree with the files; None where it does.

    The file is what ``sha256sum`` writes, one line for each file; or one digest, of ``model.onnx`` followed by its external
    data, the same as ``model.sha256`` in the configuration.
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
            if not _inside(name or MODEL):
                return f"{SUM} names {name}, which is not inside the folder"
            have = _sha256(folder / name) if name else model_sha256(folder / MODEL)
            if have != digest.lower():
                return f"{name or MODEL} does not match {SUM}"
        listed = {found[2] for found in sums if found is not None}
        if None not in listed:
            missing = {MODEL, *external_locations(folder / MODEL)} - listed
            if missing:
                return f"{SUM} does not list {min(missing)}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is not there"
    except (OSError, UnicodeDecodeError) as error:
        return f"{SUM} cannot be checked: {error}"
    return None


def _inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
