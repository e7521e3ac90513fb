"""Commands and examples that deal with sound."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import sounds

from worker.cli.main import main
from worker.cli.sources import opened

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "audio"


def answered(capsys: pytest.CaptureFixture[str], command: list[str]) -> Any:
    """The result that a `check --sample` command prints."""
    assert main([*command, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = next(line["message"] for line in lines if line["check"] == "sample")
    return json.loads(said)


def command_of(name: str) -> list[str]:
    """The command in the first line of an example, with the files where they are."""
    line = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()[0]
    words = shlex.split(
        line.partition("streaminfer ")[2].partition("streaminfer ")[2] or line.rpartition("streaminfer ")[2]
    )
    return [word.replace("examples/", f"{ROOT}/examples/") for word in words]


@pytest.mark.parametrize("sound", ["hum", "whistle"])
def test_the_example_of_tones_hears_them(capsys: pytest.CaptureFixture[str], sound: str) -> None:
    """The command of examples/audio/tones.yaml hears the tone in the middle of the sound, and nothing at its ends."""
    command = [word.replace("whistle", sound) for word in command_of("tones.yaml")]
    heard = [(w["start_s"], w["label"]) for w in answered(capsys, command)["predictions"]]
    assert dict(heard)[1.25] == sound
    assert heard[0] == (0.0, "other")
    assert heard[-1] == (2.5, "other")


def test_the_example_of_speech_finds_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of examples/audio/speech.yaml finds the voice between one second and two and a half, with Silero's model."""
    model = metadata.distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k_op15.onnx")
    monkeypatch.setenv("SILERO_VAD", str(model))
    (segment,) = answered(capsys, command_of("speech.yaml"))["prediction"]["segments"]
    assert 0.9 <= segment["start_s"] <= 1.1
    assert 2.2 <= segment["end_s"] <= 2.6
    assert segment["score"] > 0.5


def test_produce_sends_sounds(tmp_path: Path) -> None:
    """A sound file is one record; of a folder, every sound is, and what is none is told."""
    for name, encoding in (("a.wav", "wav"), ("b.flac", "flac"), ("c.mp3", "mp3"), ("d.ogg", "opus")):
        (tmp_path / name).write_bytes(sounds.file(sounds.speech(0.1), 16_000, encoding))
    (tmp_path / "e.txt").write_text("no sound")
    source = opened(str(tmp_path), "name")
    assert [item.key for item in source.read()] == [b"a.wav", b"b.flac", b"c.mp3", b"d.ogg"]
    assert "1 of 5 files left out (.txt 1)" in source.left_out
    (one,) = opened(str(tmp_path / "c.mp3"), None).read()
    assert one.value == (tmp_path / "c.mp3").read_bytes()
