"""What ``produce`` takes for a source: several, patterns, folders inside folders, and tables that leave a doubt."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.sources import opened_all
from worker.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "inner/c.png", "inner/deep/d.png", ".hidden/e.png", "notes.md"):
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "rows.jsonl").write_text("1\n2\n")
    return tmp_path


def values(*names: str, recursive: bool = False) -> list[bytes]:
    return [item.value for item in opened_all(names, None, recursive=recursive).read()]


def test_several_sources_are_sent_one_after_the_other(folder: Path) -> None:
    """Files, folders and patterns in the order given, a pattern's files in the order of their names."""
    assert values("rows.jsonl", "frames") == [b"1", b"2", b"a.png", b"b.png"]
    assert values("frames/*.png") == [b"a.png", b"b.png"]
    assert values("frames/**/d.png", "frames/a.png") == [b"inner/deep/d.png", b"a.png"]
    with pytest.raises(ConfigError, match=r"frames/\*\.jpg: no file matches"):
        opened_all(["frames/*.jpg"], None)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(folder: Path) -> None:
    """A name that exists is never taken for a pattern."""
    (folder / "f[1].png").write_bytes(b"one")
    assert values("f[1].png") == [b"one"]


def test_recursive_looks_into_folders(folder: Path) -> None:
    """With --recursive the files of inner folders are sent as well, hidden ones not; without it a folder says how."""
    assert values("frames", recursive=True) == [b"a.png", b"b.png", b"inner/c.png", b"inner/deep/d.png"]
    (folder / "outer").mkdir()
    (folder / "frames").rename(folder / "outer" / "frames")
    with pytest.raises(ConfigError, match="--recursive looks into its folders, too"):
        opened_all(["outer"], None)
    assert len(values("outer", recursive=True)) == 4


def test_totals_are_known_for_files(folder: Path) -> None:
    """A folder has as many records as files, a file one; where a source must be read first nobody knows."""
    assert opened_all(["frames"], None).total == 2
    assert opened_all(["frames", "frames/a.png"], None).total == 3
    assert opened_all(["frames", "rows.jsonl"], None).total is None
    assert opened_all(["frames"], None).left_out.startswith("1 of 3 files left out")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a,b\n1,2\n", ""),
        ("a;b\n1;2\n", "2 columns separated by ;: a, b"),
        ("a\tb\n", "2 columns separated by tab: a, b"),
        (
            "5.1,3.5\n4.9,3.0\n",
            "the first line has numbers only, and is taken for the names of the columns: 5.1, 3.5",
        ),
        ("a\n1\n", "one column, a: the first line has none of , ; tab |"),
        ("", ""),
    ],
)
def test_a_table_says_how_it_is_understood(text: str, note: str, folder: Path) -> None:
    """Another separator than a comma, one column, and a first line of numbers are said; a plain table is not talked about."""
    (folder / "t.csv").write_text(text)
    notes = opened_all(["t.csv"], None).notes
    assert notes == ((f"t.csv: {note}",) if note else ())
