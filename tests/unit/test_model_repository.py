"""A folder of model versions: which of them count, and which one a setting means."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import models
import pytest

from worker.errors import StartError
from worker.model.repository import Repository
from worker.model.versions import version_of


def put(repository: Path, version: str, model: bytes | None = None) -> Path:
    """One version."""
    folder = repository / "digits" / version
    folder.mkdir(parents=True)
    models.write(folder, models.identity() if model is None else model)
    return folder


def checksum(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "model.sha256").write_text(f"{digest}\n")


def at(repository: Path, ahead_s: float = 60.0) -> Repository:
    """The repository as somebody sees it who looks so much later."""
    return Repository(repository, "digits", lambda: time.time() + ahead_s)


def names(repository: Path) -> list[str]:
    return [each.version.name for each in at(repository).versions()]


def test_versions_are_ordered_as_numbers_and_as_semantic_versions(tmp_path: Path) -> None:
    """The newest comes first: 10 before 9, 1.10.0 before 1.9.0, a release before its pre-releases."""
    for name in ("9", "10", "1.9.0", "1.10.0", "1.10.0-rc.2", "1.10.0-rc.10"):
        put(tmp_path, name)
    assert names(tmp_path) == ["10", "9", "1.10.0", "1.10.0-rc.10", "1.10.0-rc.2", "1.9.0"]


@pytest.mark.parametrize("name", [".3.tmp", "3.tmp", "v3", "03", "1.2", "latest", "3 ", ""])
def test_other_names_are_no_versions(name: str) -> None:
    """A folder that is being written under another name does not count."""
    assert version_of(name) is None


def test_latest_is_the_newest_release(tmp_path: Path) -> None:
    """latest passes over pre-releases, which have to be named."""
    for name in ("1.0.0", "2.0.0-beta"):
        put(tmp_path, name)
    assert at(tmp_path).find("latest").version.name == "1.0.0"
    assert at(tmp_path).find("2.0.0-beta").version.name == "2.0.0-beta"


def test_an_alias_names_a_version(tmp_path: Path) -> None:
    """aliases.yaml gives versions other names; one that is not there is named with those that are."""
    put(tmp_path, "1")
    put(tmp_path, "2")
    (tmp_path / "digits" / "aliases.yaml").write_text("stable: 1\nnext: 2\n")
    assert at(tmp_path).find("stable").version.name == "1"
    with pytest.raises(StartError, match=r"got best, expected .*there are 2, 1.*there are next, stable"):
        at(tmp_path).find("best")


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "\x00"])
def test_aliases_that_are_none_are_one_sentence(tmp_path: Path, text: str) -> None:
    """A broken aliases.yaml is named, and says what was expected or what is wrong."""
    put(tmp_path, "1")
    (tmp_path / "digits" / "aliases.yaml").write_text(text)
    with pytest.raises(StartError, match=r"aliases\.yaml"):
        at(tmp_path).find("stable")


def test_a_version_without_a_checksum_counts_once_it_is_quiet(tmp_path: Path) -> None:
    """Files that changed a moment ago may still be copied: the version before them counts until they rest."""
    checksum(put(tmp_path, "1"))
    now = (put(tmp_path, "2") / "model.onnx").stat().st_ctime
    assert Repository(tmp_path, "digits", lambda: now + 0.5).find("latest").version.name == "1"
    assert Repository(tmp_path, "digits", lambda: now + 5).find("latest").version.name == "2"


def test_a_start_waits_until_the_only_version_is_quiet(tmp_path: Path) -> None:
    """Who asks for a version at a start gets one that was copied a moment ago, a little later."""
    put(tmp_path, "1")
    assert Repository(tmp_path, "digits").find("latest", patient=True).version.name == "1"


def test_a_version_counts_when_its_checksum_matches(tmp_path: Path) -> None:
    """With model.sha256 a version counts at once if the files match, and not at all if they do not."""
    folder = put(tmp_path, "1")
    checksum(folder)
    digest = (folder / "model.sha256").read_text().strip()
    assert Repository(tmp_path, "digits").find("1").incomplete is None
    (folder / "model.sha256").write_text(f"{digest}  model.onnx\n")
    assert at(tmp_path).find("1").incomplete is None
    (folder / "model.onnx").write_bytes(b"half")
    (found,) = at(tmp_path).versions()
    assert found.damaged
    with pytest.raises(StartError, match=r"is not complete: model\.onnx does not match model\.sha256"):
        at(tmp_path).find("1")


def test_a_checksum_covers_external_data(tmp_path: Path) -> None:
    """A list of sums must have the model's external data; one digest covers the model and its data together."""
    folder = tmp_path / "digits" / "1"
    folder.mkdir(parents=True)
    models.external(folder)
    model = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "model.sha256").write_text(f"{model}  model.onnx\n")
    assert "does not list" in (at(tmp_path).versions()[0].incomplete or "")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}"
        for path in folder.iterdir()
        if path.name != "model.sha256"
    ]
    (folder / "model.sha256").write_text("\n".join(lines))
    assert at(tmp_path).versions()[0].incomplete is None


@pytest.mark.parametrize("line", ["", "nonsense", "0" * 64 + "  ../other", "0" * 64 + "  /etc/passwd"])
def test_a_checksum_file_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    """An empty or strange model.sha256, or one that leaves the folder, makes the version incomplete and says why."""
    folder = put(tmp_path, "1")
    (folder / "model.sha256").write_text(line)
    assert "model.sha256" in (at(tmp_path).versions()[0].incomplete or "")


def test_a_repository_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """A missing folder is named with its setting."""
    with pytest.raises(StartError, match=r"^model\.repository: .*digits cannot be read"):
        at(tmp_path).find("latest")


def test_a_version_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    """A version that was asked for and is not there is one sentence with those there are."""
    put(tmp_path, "1")
    with pytest.raises(StartError, match=r"has no version 7; there are 1"):
        at(tmp_path).find("7")
