"""Hostile files and paths in a configuration: each costs one sentence that names the setting, never a traceback."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

import worker
from worker import filesystem
from worker.cli.main import main
from worker.errors import ConfigError, StartError
from worker.settings import load
from worker.settings.model_checks import check_model_file
from worker.settings.references import labels_of

CONFIG = """name: worker
input: {{topics: [digits], format: image}}
model: {{path: {model}}}
output: {{topic: o}}
dead_letter: {{topic: d}}
kafka: {{bootstrap.servers: "localhost:1", group.id: g}}
"""
PATHLIB = re.compile(r"\.(is_file|is_dir|exists)\(\)")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The sentences of a `check` that refuses its configuration."""
    code = main(["check", "--offline", *args])
    told = capsys.readouterr()
    assert code == 2, told
    assert "Traceback" not in told.out + told.err
    return told.out + told.err


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_configuration_without_end_is_refused(capsys: pytest.CaptureFixture[str], device: str) -> None:
    """A configuration is read as far as its limit, however much there is."""
    assert f"{device}: is larger than 4 MiB; expected a YAML configuration" in refused(capsys, device)


def test_a_large_configuration_is_not_parsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file above the limit is refused by its size, one of the limit's size is read; an included file likewise."""
    text = CONFIG.format(model="m.onnx")
    file, part = tmp_path / "c.yaml", tmp_path / "part.yaml"
    file.write_text(f"{text}#{'x' * (filesystem.TEXT_MAX - len(text) - 1)}")
    assert load(file).dead_letter.topic == "d"
    file.write_text(f"{text}#{'x' * (filesystem.TEXT_MAX - len(text))}")
    assert "c.yaml: is larger than 4 MiB; expected" in refused(capsys, str(file))
    file.write_text(f"{text}include: [part.yaml]\n")
    part.write_text("#" * (filesystem.TEXT_MAX + 1))
    assert "part.yaml: is larger than 4 MiB; expected" in refused(capsys, str(file))


def test_a_configuration_comes_through_a_pipe(tmp_path: Path) -> None:
    """A named pipe, and so `<(...)` of a shell, is read to its end, however its writer cuts the text."""
    pipe, text = tmp_path / "pipe", CONFIG.format(model="m.onnx").encode()
    os.mkfifo(pipe)

    def write() -> None:
        with open(pipe, "wb", buffering=0) as end:
            for byte in range(0, len(text), 7):
                end.write(text[byte : byte + 7])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert load(pipe).dead_letter.topic == "d"
    finally:
        writer.join()


def test_a_pattern_does_not_search_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pattern of `include` that matches more than 1,000 files is refused when that many are found."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(model="m.onnx") + "include: ['/**/*']\n")
    assert "include.0: more than 1,000 files match /**/*; expected a narrower pattern" in refused(
        capsys, str(file)
    )


@pytest.mark.parametrize("key", ["~: 2", "null: 2", "? \n: 2"])
def test_a_key_that_is_nothing_is_told_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """A key must be text: a null among the settings is told with its line."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(model="m.onnx") + key)
    assert re.search(r"c\.yaml:7:\d+: .*: a key must be text\n", refused(capsys, str(file)))


def test_half_a_character_is_told_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An escape for half of a surrogate pair is refused with its line, wherever it stands: nothing could print it."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(model='"a\\uD800b"'))
    assert "c.yaml:3:15: not valid YAML: line 3, column 15: a text has half of a surrogate pair" in refused(
        capsys, str(file)
    )


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("x" * 5000, "expected a path of at most 4,095 bytes, this one has 5,"),
        ("x" * 300, "cannot be reached (File name too long); expected an ONNX file"),
        ("loop/m.onnx", "cannot be reached (Too many levels of symbolic links); expected an ONNX file"),
        ("file/m.onnx", "does not exist; expected an ONNX file"),
        ("pipe", "is no regular file; expected an ONNX file"),
        ('"a\\0b"', "expected a path without NUL characters"),
    ],
)
def test_a_path_that_cannot_be_costs_one_sentence(tmp_path: Path, model: str, sentence: str) -> None:
    """A path that is too long, that no file can have or that leads nowhere is told as what it is, with its setting."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(model=model))
    with pytest.raises((ConfigError, StartError)) as caught:
        check_model_file(load(file), "worker")
    assert re.search(rf"model\.path: .*{re.escape(sentence)}", str(caught.value))


def test_a_closed_folder_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rights are missing to look at a file, the sentence says so and not that there is none."""

    def closed(path: object, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", closed)
    assert filesystem.instead_of_file(tmp_path / "m.onnx") == "cannot be reached (Permission denied)"
    assert not filesystem.is_file(tmp_path / "m.onnx")
    assert not filesystem.is_dir(tmp_path)


def test_labels_without_end_are_refused() -> None:
    """A file of labels is read as far as its limit."""
    with pytest.raises(
        ConfigError, match=r"^labels: /dev/zero is larger than 16 MiB; expected a text file with one label"
    ):
        labels_of(Path("/dev/zero"))


def test_settings_and_commands_look_at_files_with_care() -> None:
    """Settings and commands ask :mod:`worker.filesystem` about paths that users name: pathlib's own questions may raise."""
    package = Path(worker.__file__).parent
    asked = [
        str(path.relative_to(package))
        for part in ("settings", "cli", "local", "optimize", "quantize")
        for path in (package / part).rglob("*.py")
        if PATHLIB.search(path.read_text(encoding="utf-8"))
    ]
    assert asked == []
