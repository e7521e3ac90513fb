"""``streaminfer init``: what it writes for a model and a record loads, and answers the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import yaml

from worker import settings
from worker.cli import init
from worker.cli.init_guess import kind_of, picture_of
from worker.cli.init_predictions import label_file
from worker.cli.main import main
from worker.model.signature import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "worker" / "demo_data"
FRAMES = ROOT / "examples" / "frames"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(
    here: Path, model: bytes, sample: tuple[str, bytes] | None, *arguments: str, code: int = 0
) -> dict[str, Any]:
    """What init writes for a model and a record."""
    models.write(here, model, "mine.onnx")
    command = ["init", "--yes", "--force", *arguments]
    if sample is not None:
        (here / sample[0]).write_bytes(sample[1])
        command += ["--sample", sample[0]]
    assert main(command) == code
    text = (here / "mine.yaml").read_text()
    document = yaml.safe_load(text)
    assert settings.load(here / "mine.yaml").name == "mine"
    assert isinstance(document, dict)
    return document


def test_a_picture_and_a_model_become_a_worker(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the demo's model and a frame everything is found, the frame is answered, and the file's own test passes."""
    for name in ("digits.onnx", "digits.txt"):
        shutil.copy(DEMO / name, here)
    shutil.copy(FRAMES / "7.png", here)
    assert main(["init", "--sample", "7.png"]) == 0
    said = capsys.readouterr().out
    assert 'the sample gives {"label": "7", "score": 0.99' in said
    assert "scale, mean, std and color as in training" in said
    text = (here / "digits.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert Path(first.partition("=")[2]).is_file()
    document = yaml.safe_load(text)
    assert document["input"] == {"topics": ["digits"], "format": "image"}
    image = {"size": [28, 28], "color": "gray", "layout": "nchw", "scale": 0.00392157}
    assert document["preprocess"] == {"image": image}
    assert document["postprocess"] == {"classification": {"labels": "digits.txt", "top_k": 3}}
    assert main(["test", "digits.yaml"]) == 0
    assert main(["check", "digits.yaml", "--offline", "--sample", "7.png"]) == 0


def test_the_file_may_lie_elsewhere(here: Path) -> None:
    """Paths in the file are relative to it, wherever the command runs."""
    (here / "conf").mkdir()
    shutil.copy(DEMO / "digits.onnx", here / "seen.onnx")
    shutil.copy(FRAMES / "3.png", here)
    arguments = ["--out", "conf/mine.yaml", "--name", "zoo", "--topic", "frames", "--bootstrap", "kafka:9092"]
    assert main(["init", "--sample", "3.png", *arguments]) == 0
    document = yaml.safe_load((here / "conf" / "mine.yaml").read_text())
    assert document["model"] == {"path": "../seen.onnx"}
    assert document["tests"][0]["record"] == {"file": "../3.png"}
    assert document["output"] == {"topic": "frames.predictions"}
    assert document["kafka"] == {"bootstrap.servers": "kafka:9092", "group.id": "zoo"}
    assert main(["test", "conf/mine.yaml"]) == 0


FLOWER = {"id": "x7", "flower": {"length": 5.1, "width": 3.5}, "petal": 1.4, "stem": 0.2}
ROWS = b"length,width,petal,stem,kind\n5.1,3.5,1.4,0.2,setosa\n"


@pytest.mark.parametrize(
    ("model", "sample", "expected"),
    [
        (models.mlp(4, 3), ("a.json", json.dumps(FLOWER).encode()),
         {"input": {"format": "json", "fields": ["flower.length", "flower.width", "petal", "stem"]},
          "postprocess": {"classification": {"top_k": 3, "activation": "softmax"}}}),
        (models.mlp(4, 1), ("rows.csv", ROWS),
         {"input": {"format": "json", "fields": ["length", "width", "petal", "stem"]}, "postprocess": {"regression": {}}}),
        (models.mlp(4, 384), ("a.json", b'{"features": [1, 2, 3, 4]}'),
         {"input": {"format": "json"}, "postprocess": {"embedding": {"normalize": True}}}),
        (models.add(), ("a.jsonl", b'{"A": [1, 2, 3, 4], "b": [1, 2, 3, 4], "c": "x"}\n{}\n'),
         {"preprocess": {"inputs": {"a": {"from": "A"}, "b": {"from": "b"}}}}),
        (models.zipmap(), ("a.json", b'{"features": [1, 2]}'),
         {"postprocess": {"classification": {"from": "probabilities"}}}),
        (models.mlp(4, 3), ("a.bin", np.arange(4, dtype=np.float32).tobytes()), {"input": {"format": "tensor"}}),
        (models.identity(str, ("N", 1)), ("a.txt", b"hello"), {"input": {"format": "text"}}),
        (models.detector(np.zeros((84, 100), np.float32)), ("7.png", (FRAMES / "7.png").read_bytes()),
         {"preprocess": {"image": {"size": [32, 32], "color": "rgb", "layout": "nhwc", "resize": "letterbox"}},
          "postprocess": {"detection": {"layout": "yolov8", "score": 0.25}}}),
        (models.image(3, None), None,
         {"preprocess": {"image": {"size": [224, 224], "color": "rgb", "layout": "nchw", "scale": 0.00392157}}}),
        (models.image(1, 16, np.uint8), None,
         {"preprocess": {"image": {"size": [16, 16], "color": "gray", "layout": "nchw"}}}),
    ],
    ids=["fields", "a table", "a vector", "two inputs", "scikit-learn", "raw bytes", "text", "boxes", "free size", "pixels"],
)  # fmt: skip
def test_the_kind_of_record_and_of_prediction_is_found(
    here: Path, model: bytes, sample: tuple[str, bytes] | None, expected: dict[str, Any]
) -> None:
    """By the record's bytes and the model's shapes and answers: format, contents and postprocess; the file loads and answers."""
    document = written(here, model, sample)
    for section, values in expected.items():
        assert {name: document[section][name] for name in values} == values
    if "postprocess" not in expected and sample is not None and sample[0] == "a.bin":
        assert "postprocess" not in document


def test_custom_code_is_a_stub_that_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--custom writes a module whose postprocess answers the sample, and whose decode reads records by the inputs' names."""
    document = written(here, models.mlp(4, 3), ("a.json", b'{"features": [1, 2, 3, 4]}'), "--custom")
    assert document["postprocess"] == "custom_code:postprocess"
    assert 'the sample gives {"y": [' in capsys.readouterr().out
    (here / "b.json").write_text('{"x": [1, 2, 3, 4]}')
    given = ["--set", "input={topics: [a], format: 'custom_code:decode'}"]
    assert main(["check", "mine.yaml", "--offline", "--sample", "b.json", *given]) == 0
    assert main(["check", "mine.yaml", "--offline", "--sample", "a.json", *given]) == 2
    assert "the record lacks x; expected x" in capsys.readouterr().out


def test_what_does_not_fit_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture for a model of numbers: the file is written with what is known, the reason is told, and the exit code is 2."""
    document = written(here, models.mlp(4, 3), ("7.png", (FRAMES / "7.png").read_bytes()), code=2)
    assert document["input"]["format"] == "image"
    said = capsys.readouterr()
    assert "no input has the shape of a picture (x FP32[*,4])" in said.out
    assert "mine.yaml was written, but it does not load yet: preprocess.image" in said.err


def test_a_refused_sample_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that the written configuration refuses is exit 2 with the reason of its dead letter."""
    sample = ("a.json", b'{"features": [1, 2]}')
    written(here, models.mlp(4, 3), sample, code=2)
    assert "the sample is refused: invalid in decode" in capsys.readouterr().out


def test_a_terminal_is_asked_for_what_cannot_be_known(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal it asks for topic and broker, an empty line takes the default, and --yes asks nothing."""
    models.write(here, models.mlp(4, 3), "mine.onnx")
    asked: list[str] = []
    replies = iter(["flowers", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(replies))
    assert main(["init"]) == 0
    assert asked == ["Input topic [mine]: ", f"Broker [{init.BOOTSTRAP}]: "]
    document = yaml.safe_load((here / "mine.yaml").read_text())
    assert document["input"]["topics"] == ["flowers"]
    assert document["kafka"]["bootstrap.servers"] == init.BOOTSTRAP
    assert main(["init", "--yes", "--force"]) == 0
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "--model: no .onnx file is here"),
        (["--model", "nowhere.onnx"], 2, "--model: nowhere.onnx does not exist"),
        (["--model", "."], 2, "--model: . holds no model.onnx"),
        (["--model", "broken.onnx"], 3, "broken.onnx"),
        (["--model", "good.bin", "--sample", "nowhere.png"], 2, "nowhere.png"),
        (["--model", "good.bin", "--labels", "nowhere.txt"], 2, "--labels: nowhere.txt does not exist"),
        (["--model", "good.bin", "--out", "no/such/folder.yaml"], 2, "--out: no/such/folder.yaml cannot be written"),
        (["--model", "good.bin", "--out", "there.yaml"], 2, "there.yaml is there already; expected --out FILE, or --force"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str
) -> None:
    """No model, a broken one, a missing file, a file in the way: one sentence, and nothing is written over."""
    (here / "there.yaml").write_text("mine")
    models.write(here, models.mlp(4, 3), "good.bin")
    if "broken.onnx" in arguments:
        (here / "broken.onnx").write_bytes(b"no model")
    assert main(["init", "--yes", *arguments]) == code
    said = capsys.readouterr()
    assert sentence in said.err
    assert (here / "there.yaml").read_text() == "mine"


def spec(shape: tuple[int | None, ...], dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec("x", np.dtype(dtype), "FP32", (None, *shape))


def test_formats_are_told_by_their_first_bytes() -> None:
    """Magic numbers, JSON, an Open Inference Protocol request, text; bytes of no known kind are none."""
    signature = Signature((spec((4,)),), (spec((2,)),))
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    for value, kind in {
        (FRAMES / "7.png").read_bytes(): "image",
        b"\xff\xd8\xff\xe0": "image",
        b"RIFF\0\0\0\0WEBPVP8 ": "image",
        b"RIFF\0\0\0\0WAVEfmt ": "audio",
        b"fLaC\0": "audio",
        b"\0\0\0\x18ftypmp42": "video",
        b"\x93NUMPY\x01\0": "npy",
        b"\0" * 16: "tensor",
        b'{"a": 1}': "json",
        json.dumps(request).encode(): "oip",
        b"hello": "text",
        b"\0\xff\xfe": "",
    }.items():
        assert kind_of(value, signature) == kind


def test_only_shapes_of_pictures_are_pictures() -> None:
    """One or three channels first or last, and sides of some pixels; a sequence of vectors is none."""
    assert picture_of(spec((3, 64, 48))) == {
        "size": [64, 48],
        "color": "rgb",
        "layout": "nchw",
        "scale": 0.00392157,
    }
    assert picture_of(spec((64, 48, 1), np.uint8)) == {"size": [64, 48], "color": "gray", "layout": "nhwc"}
    assert picture_of(spec((128, 64, 48))) is None
    assert picture_of(spec((3, 4, 4))) is None
    assert picture_of(spec((64, 48))) is None


def test_labels_are_a_file_of_as_many_lines(tmp_path: Path) -> None:
    """The file beside the model counts whose lines are as many as the classes; others, and binary ones, do not."""
    (tmp_path / "labels.txt").write_text("a\nb\n")
    (tmp_path / "readme.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\0")
    assert label_file(tmp_path, "m", 2) == tmp_path / "labels.txt"
    assert label_file(tmp_path, "m", 3) == tmp_path / "readme.txt"
    assert label_file(tmp_path, "m", 4) is None
    assert label_file(tmp_path, "m", None) is None
