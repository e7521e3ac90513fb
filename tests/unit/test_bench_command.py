"""``streaminfer bench``: what it takes as records, and how it refuses what makes no sense."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from worker.bench.values import read_values
from worker.cli.main import main
from worker.errors import ConfigError


def test_lines_are_sent_as_they_are(tmp_path: Path) -> None:
    """Each line of a JSONL file is one record, blank ones left out."""
    (tmp_path / "in.jsonl").write_bytes(b'{"a":1}\n\nnot json\r\n{"a":2}')
    assert read_values(tmp_path / "in.jsonl") == [b'{"a":1}', b"not json", b'{"a":2}']


def test_rows_of_a_table_become_json_objects(tmp_path: Path) -> None:
    """Cells that say a number are numbers, the others strings."""
    (tmp_path / "in.csv").write_text("name,height,count\nAda,1.5,3\nBob,,-2\n")
    rows = [orjson.loads(value) for value in read_values(tmp_path / "in.csv")]
    assert rows == [{"name": "Ada", "height": 1.5, "count": 3}, {"name": "Bob", "height": "", "count": -2}]


def test_a_cell_that_json_cannot_say_stays_text(tmp_path: Path) -> None:
    """NaN and infinity in a table are not turned into null."""
    (tmp_path / "in.csv").write_text("x,y\nnan,inf\n")
    assert read_values(tmp_path / "in.csv") == [b'{"x":"nan","y":"inf"}']


def test_every_file_of_a_folder_is_a_record(tmp_path: Path) -> None:
    """Files are taken whole, in the order of their names, hidden ones left out."""
    for name, data in (("b.png", b"2"), ("a.jpg", b"1"), (".DS_Store", b"x")):
        (tmp_path / name).write_bytes(data)
    assert read_values(tmp_path) == [b"1", b"2"]


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"")]
)
def test_a_source_without_a_record_is_a_mistake(tmp_path: Path, make: object) -> None:
    """A missing source, an empty folder and an empty file of lines are each one sentence naming --source."""
    source = tmp_path / "in.jsonl"
    make(source)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"^--source: .*in\.jsonl"):
        read_values(source)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rate", "0"], "--rate: got 0"),
        (["--rate", "nan"], "--rate: got nan"),
        (["--rate", "5", "--duration", "-1"], "--duration: got -1"),
        (["--rate", "5", "--p99-ms", "5"], "--p99-ms"),
        (["--search"], "--p99-ms"),
        (["--rate", "5", "--search"], "--search"),
        ([], "--rate"),
        (["--rate", "5", "--json", "/no/such/folder/out.json"], "--json: /no/such/folder/out.json"),
        (["--rate", "5"], "config.yaml"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments and a missing configuration end with exit code 2 and a sentence naming them."""
    config = ["bench", str(tmp_path / "config.yaml"), "--source", str(tmp_path)]
    assert main([*config, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert named in output.err
