"""Completion in real shells: what Tab gives is what the parsers and the schema know."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from worker import settings
from worker.cli.completion_shells import SHELLS
from worker.cli.completion_tree import commands, setting_keys
from worker.cli.main import COMMANDS, main
from worker.cli.schema import FILE

ROOT = Path(__file__).resolve().parents[2]


def script(shell: str, folder: Path) -> Path:
    path = folder / ("_streaminfer" if shell == "zsh" else f"streaminfer.{shell}")
    path.write_text(SHELLS[shell](commands(), setting_keys()))
    return path


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


LINES: dict[str, tuple[list[str], list[str]]] = {
    # the words of a line as bash cuts them, the last one being completed -> what must be offered, and what must not
    "commands": ([""], ["run", "dlq", "completion", "--"]),
    "a beginning": (["pl"], ["plan", "-run"]),
    "inner commands": (["dlq", ""], ["list", "show", "replay", "-run"]),
    "options": (["dlq", "list", "--w"], ["--where", "---rate"]),
    "options of an inner command": (["dlq", "replay", "--"], ["--rate", "--dry-run", "--set"]),
    "words of an option": (["tail", "--what", ""], ["results", "metrics", "dead-letter"]),
    "words after =": (["tail", "--what", "=", "me"], ["metrics", "-results"]),
    "words after an address": (
        ["tail", "--bootstrap", "localhost", ":", "9092", "--from", "e"],
        ["earliest", "-latest"],
    ),
    "words of an argument": (["model", "here.yaml", "st"], ["status", "start", "-pin"]),
    "a flag takes no value": (["run", "--watch", "he"], ["here.yaml"]),
    "an option takes one": (["run", "--replicas", "2", "he"], ["here.yaml"]),
    "configurations": (["run", ""], ["here.yaml", "folder", "-picture.png"]),
    "files": (["check", "here.yaml", "--sample", "pic"], ["picture.png", "-here.yaml"]),
    "folders": (["optimize", "here.yaml", "--out", ""], ["folder", "-here.yaml"]),
    "keys of settings": (["run", "here.yaml", "--set", "batching."], ["batching.max_size=", "-delivery="]),
    "words of a setting": (["run", "here.yaml", "--set", "delivery", "=", "ex"], ["exactly_once"]),
    "true and false": (["run", "here.yaml", "--set", "output.errors", "="], ["true", "false"]),
    "nothing that is known": (["tail", "--topic", ""], ["-here.yaml", "-results"]),
    "an unknown command": (["bogus", ""], ["-here.yaml", "-run"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    (place / "here.yaml").touch()
    (place / "picture.png").touch()
    (place / "folder").mkdir()
    return place


def check(offered: list[str], wanted: list[str]) -> None:
    for word in wanted:
        if word.startswith("-") and not word.startswith("--"):
            assert word[1:] not in offered
        elif word == "--":
            assert not any(each.startswith("-") for each in offered)
        elif word.startswith("---"):
            assert word[1:] not in offered
        else:
            assert word in [each.rstrip("/") for each in offered]


def test_bash_completes(tmp_path: Path, folder: Path) -> None:
    """bash offers commands, options, words, files by kind and settings with their words, wherever it cuts the line."""
    bash = needs("bash")
    calls = [f"source {script('bash', tmp_path)}"]
    for words, _ in LINES.values():
        line = " ".join(json.dumps(word) for word in ["streaminfer", *words])
        calls.append(f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _streaminfer_complete")
        calls.append('printf "%s\\n" "${COMPREPLY[@]}" END')
    done = subprocess.run(
        [bash, "--norc", "-c", "\n".join(calls)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    offered = [part.split("\n") for part in done.stdout.split("END\n")[:-1]]
    assert len(offered) == len(LINES)
    for name, words in zip(LINES, offered, strict=True):
        try:
            check([word for word in words if word], LINES[name][1])
        except AssertionError as error:
            raise AssertionError(f"{name}: {words}") from error


def test_fish_completes(tmp_path: Path, folder: Path) -> None:
    """fish offers commands, options, words, files and settings."""
    fish = needs("fish")
    source = script("fish", tmp_path)

    def offered(line: str) -> list[str]:
        command = f"source {source}; complete -C '{line}'"
        done = subprocess.run([fish, "-c", command], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return [each.partition("\t")[0] for each in done.stdout.splitlines()]

    check(offered("streaminfer "), ["run", "dlq", "completion"])
    check(offered("streaminfer dlq "), ["list", "show", "replay", "-run"])
    check(offered("streaminfer dlq list --wh"), ["--where"])
    check(offered("streaminfer tail --what "), ["results", "metrics", "dead-letter", "-here.yaml"])
    check(offered("streaminfer run he"), ["here.yaml"])
    check(offered("streaminfer run --set deliv"), ["delivery=", "delivery=exactly_once"])


def test_zsh_completes(tmp_path: Path, folder: Path) -> None:
    """zsh, on a terminal, completes a command, a word of a setting and a configuration."""
    zsh = needs("zsh")
    script("zsh", tmp_path)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(zsh, [zsh, "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "$ "})
    try:
        screen = Screen(terminal)
        setup = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D; echo rea''dy\n"
        os.write(terminal, setup.encode())
        screen.wait("ready")
        screen.wait("$ ")
        for typed, whole in (
            ("streaminfer comp", "streaminfer completion "),
            ("streaminfer run --set delivery=ex", "delivery=exactly_once"),
            ("streaminfer run he", "run here.yaml"),
        ):
            os.write(terminal, f"{typed}\t".encode())
            screen.wait(whole)
            os.write(terminal, b"\x15")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


class Screen:
    """What a terminal shows."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._shown = ""

    def wait(self, text: str) -> None:
        """Read until this text is there; the next call looks behind it."""
        deadline = time.monotonic() + 20
        while text not in self._shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self._shown!r}"
            if select.select([self._terminal], [], [], 0.2)[0]:
                self._shown += os.read(self._terminal, 4096).decode(errors="replace")
        self._shown = self._shown.partition(text)[2]


def test_every_command_and_option_is_in_every_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scripts name every command and every option that is shown in its help, and no hidden one."""
    tree = commands()
    assert {command.path[0] for command in tree if command.path} == set(COMMANDS)
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        for command in tree:
            for option in command.options:
                assert all(name.lstrip("-") in text for name in option.names)
        assert "replica-index" not in text
    assert main(["completion", "tcsh"]) == 2


def test_the_keys_are_settings() -> None:
    """Each key that is offered for --set is one that a configuration may have, with the words of the schema."""
    keys = setting_keys()
    assert keys["order"] == ("partition", "none")
    assert "number" not in keys["batching.max_size"]
    assert {"kafka.bootstrap.servers", "input.format", "postprocess.classification.top_k"} <= keys.keys()
    assert not any(key.startswith(("pipelines", "tests", "defaults")) for key in keys)
    for key in ("order", "input.start"):
        for word in keys[key]:
            document = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text())
            section = document
            *parts, last = key.split(".")
            for part in parts:
                section = section[part]
            section[last] = word
            settings.validate(document, ROOT / "examples")


def test_the_schema_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """`streaminfer schema` prints the schema of the settings, and --path a file that is there; it has an id and names for values."""
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == settings.json_schema()
    assert schema["$id"].startswith("urn:")
    assert schema["$defs"]["BatchingSettings"]["properties"]["max_size"]["title"] == "max_size"
    assert "description" in schema["properties"]["kafka"]["properties"]["group.id"]
    assert main(["schema", "--path"]) == 0
    assert json.loads(Path(capsys.readouterr().out.strip()).read_text()) == schema
    assert FILE.is_file()
