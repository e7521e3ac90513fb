"""Files that change are noticed, also behind links that are turned, and told of once whoever writes is done."""

from __future__ import annotations

import os
from pathlib import Path

from worker.process.file_watch import FileWatch


class Watched:
    """A watch over files, with the looks made by hand."""

    def __init__(self, *files: Path) -> None:
        self.told = 0
        self.files = [*files]
        self.watch = FileWatch(lambda: self.files, self._changed)

    def _changed(self) -> None:
        self.told += 1

    def look(self, times: int = 2) -> int:
        for _ in range(times):
            self.watch.look()
        return self.told


def test_a_change_is_told_once_when_it_is_over(tmp_path: Path) -> None:
    """While each look finds the file otherwise than the one before, somebody is writing it."""
    file = tmp_path / "worker.yaml"
    file.write_text("a")
    watched = Watched(file)
    assert watched.look() == 0
    for text in ("ab", "abc", "abcd"):
        file.write_text(text)
        assert watched.look(1) == 0
    assert watched.look(1) == 1
    assert watched.look(3) == 1


def test_a_link_that_is_turned_is_a_change(tmp_path: Path) -> None:
    """Kubernetes turns a link to the folder with a ConfigMap's files: a file of the same size and time is another one."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "worker.yaml").write_text(name)
        os.utime(tmp_path / name / "worker.yaml", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "worker.yaml").symlink_to("..data/worker.yaml")
    watched = Watched(tmp_path / "worker.yaml")
    (tmp_path / "..next").symlink_to("two")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert watched.look() == 1


def test_a_file_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    """An editor may take the old file away first: only the new one is a change."""
    file, other = tmp_path / "worker.yaml", tmp_path / "a.key"
    file.write_text("a")
    other.write_text("k")
    watched = Watched(file, other)
    file.unlink()
    assert watched.look(3) == 0
    file.write_text("b")
    assert watched.look() == 1
    other.write_text("other")
    assert watched.look() == 2


def test_a_change_and_back_is_none(tmp_path: Path) -> None:
    """What is as it was when it was told last is not told."""
    file, kept = tmp_path / "worker.yaml", tmp_path / "kept"
    file.write_text("a")
    os.link(file, kept)
    watched = Watched(file)
    (tmp_path / "new").write_text("b")
    (tmp_path / "new").rename(file)
    assert watched.look(1) == 0
    kept.rename(file)
    assert watched.look(3) == 0
