"""`quantize`: what the new model answers, what it takes, what is said about it, and each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from worker.batch import Array
from worker.cli import main as cli
from worker.errors import ConfigError
from worker.model import session
from worker.quantize import measure
from worker.quantize.fold import fold

DEMO = Path(session.__file__).parents[1] / "demo_data"
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.005)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits the demo's model never saw, in folders 0 to 9."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(DEMO / "digits.npz") as held_out:
        frames, labels = held_out["frames"], held_out["labels"]
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / str(label) / f"{index}.png"), frame)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve colourful pictures without labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        patches = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(patches, (24, 20)))
    return folder


def quantize_digits(digits: Path, out: Path, *options: str) -> int:
    arguments = ["--data", str(digits), "--out", str(out), "--config", str(DEMO / "digits.yaml")]
    return cli.main(["quantize", str(DEMO / "digits.onnx"), *arguments, *options])


# the command


def test_static_int8_keeps_accuracy_at_a_third_of_the_size(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits model loses at most one point of accuracy, and both lines of figures say so."""
    out = tmp_path / "digits.int8.onnx"
    assert quantize_digits(digits, out, "--json") == 0
    before, after = map(json.loads, capsys.readouterr().out.splitlines())

    assert (before["kind"], after["kind"]) == ("float", "int8")
    assert before["accuracy"] > 0.95
    assert after["accuracy"] >= before["accuracy"] - 0.01
    assert after["agreement"] >= 0.99
    assert after["similarity"] > 0.999
    assert after["bytes"] == out.stat().st_size < before["bytes"] / 3
    assert before["pictures"] == 599 - 200
    assert all(
        line[key] > 0 for line in (before, after) for key in ("prepare_us", "batch_1_us", "batch_8_us")
    )


def test_a_folded_model_runs_in_the_worker_without_scaling(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker gives the folded model the decoded picture's bytes and gets the right digit."""
    assert quantize_digits(digits, tmp_path / "bytes.onnx", "--fold-preprocess") == 0
    said = capsys.readouterr().out
    assert "remove scale, mean and std" in said
    (tmp_path / "bytes.yaml").write_text(
        "input: {topics: [in], format: image}\n"
        "preprocess: {image: {color: gray}}\n"
        "model: {path: bytes.onnx}\n"
        "postprocess: {classification: {}}\n"
        "output: {topic: out}\n"
        "dead_letter: {topic: dead}\n"
        'kafka: {bootstrap.servers: "localhost:9092", group.id: g}\n'
    )
    for label in ("3", "7"):
        sample = str(next((digits / label).iterdir()))
        assert (
            cli.main(["check", str(tmp_path / "bytes.yaml"), "--offline", "--json", "--sample", sample]) == 0
        )
        checks = {
            line["check"]: line["message"] for line in map(json.loads, capsys.readouterr().out.splitlines())
        }
        assert "UINT8" in checks["signature"]
        assert f'"label": "{label}"' in checks["sample"]


def test_the_table_is_for_people(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json there is one heading and one line per model."""
    assert quantize_digits(digits, tmp_path / "out.onnx", "--count", "60") == 0
    heading, before, after, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["model", "bytes", "accuracy", "agreement", "cosine"]
    assert before.split()[0] == "float"
    assert after.split()[0] == "int8"


@pytest.mark.parametrize(
    ("kind", "sentence"), [("dynamic", "run each record alone"), ("fp16", "nothing on a CPU")]
)
def test_other_kinds_say_where_they_do_not_help(
    kind: str, sentence: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dynamic INT8 and FP16 work and come with one sentence of advice."""
    assert quantize_digits(digits, tmp_path / "out.onnx", "--count", "40", "--json", "--kind", kind) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[1])["agreement"] > 0.9
    assert sentence in captured.err


def test_a_flat_folder_has_agreement_but_no_accuracy(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without class folders nobody knows the right answer, so only the float model's is compared with."""
    model = models.write(tmp_path, network())
    options = ["--data", str(pictures), "--out", str(tmp_path / "out.onnx"), "--json"]
    image = json.dumps({"scale": 1 / 255, "mean": MEAN.tolist(), "std": STD.tolist()})
    assert cli.main(["quantize", str(model), *options, "--image", image, "--fold-preprocess"]) == 0
    captured = capsys.readouterr()
    after = json.loads(captured.out.splitlines()[1])
    assert after["accuracy"] is None
    assert after["similarity"] > 0.99
    assert "reads as pixel value 114" in captured.err  # the mean of 0.485, 0.456 and 0.406, times 255


def test_the_result_loads_on_older_runtimes(digits: Path, tmp_path: Path) -> None:
    """The file has the IR version and operator sets of its original, and nothing it does not use."""
    assert quantize_digits(digits, tmp_path / "out.onnx", "--count", "40", "--fold-preprocess") == 0
    made, original = onnx.load(tmp_path / "out.onnx"), onnx.load(DEMO / "digits.onnx")
    assert made.ir_version == original.ir_version
    assert list(made.opset_import) == list(original.opset_import)


# folding, in floating point: exactly the same numbers


def network(padding: int = 1, group: int = 1) -> bytes:
    """float32 (N, 3, 16, 16) -> (N, 6): two convolutions, ReLU between, mean over the plane."""
    weights = {
        "w0": RANDOM.normal(size=(6, 3 // group, 3, 3)).astype(np.float32),
        "b0": RANDOM.normal(size=6).astype(np.float32),
        "w1": RANDOM.normal(size=(6, 6, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[padding] * 4, group=group),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"]),
        helper.make_node("GlobalAveragePool", ["c1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    shape = ["N", 3, 16, 16]
    return models.build(
        nodes, [models.tensor("x", np.float32, shape)], [models.tensor("y", np.float32, ["N", 6])], weights
    )


def layer_after(
    nodes: list[onnx.NodeProto], layer: onnx.NodeProto, constants: dict[str, Any], dtype: Any = np.float32
) -> bytes:
    """(N, 4, 4, 3) in ``dtype`` through ``nodes`` into a ``layer`` that gives y."""
    return models.build(
        [*nodes, layer],
        [models.tensor("x", dtype, ["N", 4, 4, 3])],
        [models.tensor("y", np.float32, None)],
        constants,
    )


def weights(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


FLATTEN = helper.make_node("Flatten", ["x"], ["flat"])
TRANSPOSE = helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2])
FOLDABLE: dict[str, Callable[[], bytes]] = {
    "a convolution without a border": lambda: network(padding=0),
    "a convolution with one filter per channel": lambda: network(padding=0, group=3),
    "a convolution behind a transpose": lambda: layer_after(
        [TRANSPOSE], helper.make_node("Conv", ["planes", "w"], ["y"]), {"w": weights(2, 3, 3, 3)}
    ),
    "a Gemm behind a flatten": lambda: layer_after(
        [FLATTEN],
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0),
        {"w": weights(5, 48), "b": weights(5)},
    ),
    "a Gemm without a bias": lambda: layer_after(
        [FLATTEN], helper.make_node("Gemm", ["flat", "w"], ["y"]), {"w": weights(48, 5)}
    ),
    "a product over the channels": lambda: layer_after(
        [], helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weights(3, 5)}
    ),
    "a model that scales by itself": lambda: layer_after(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["floats", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        ],
        helper.make_node("Conv", ["planes", "w"], ["y"]),
        {"mean": MEAN * 255, "std": STD * 255, "w": weights(2, 3, 3, 3)},
        np.uint8,
    ),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_layer_gives_the_same_numbers(name: str) -> None:
    """Without a border the folded model on p - z answers what the original answers on the scaled pixels."""
    model = onnx.load_from_string(FOLDABLE[name]())
    pixels, prepare = picture_for(model)
    expected = answer(model, prepare(pixels))
    folded = fold(model, lambda level: prepare(np.full_like(pixels, level)))
    actual = answer(folded.model, pixels.astype(np.float32) - folded.zero_point)
    assert folded.note is None
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_border_without_a_mean_is_folded_exactly() -> None:
    """Where x = 0 stands for one whole pixel value, the border is that value and nothing changes."""
    model = onnx.load_from_string(network(padding=1))
    pixels, _ = picture_for(model)

    def prepare(values: Array) -> Array:
        return (values.astype(np.float32) - 32) * np.float32(1 / 255)

    expected = answer(model, prepare(pixels))
    folded = fold(model, lambda level: prepare(np.full_like(pixels, level)))
    assert (folded.zero_point, folded.note) == (32, None)
    np.testing.assert_allclose(answer(folded.model, pixels.astype(np.float32) - 32), expected, rtol=1e-4)


RELU = helper.make_node("Relu", ["x"], ["r"])
UNFOLDABLE: dict[str, Callable[[], bytes]] = {
    "Relu; expected Conv": lambda: layer_after(
        [RELU], helper.make_node("MatMul", ["r", "w"], ["y"]), {"w": weights(3, 5)}
    ),
    "goes to 2 places": lambda: layer_after(
        [helper.make_node("Identity", ["x"], ["other"])],
        helper.make_node("Concat", ["x", "other"], ["y"], axis=1),
        {},
    ),
    "differs from pixel to pixel": lambda: layer_after(
        [helper.make_node("Mul", ["x", "mask"], ["masked"])],
        helper.make_node("MatMul", ["masked", "w"], ["y"]),
        {"mask": np.arange(1, 49, dtype=np.float32).reshape(4, 4, 3), "w": weights(3, 5)},
    ),
}


@pytest.mark.parametrize("words", UNFOLDABLE)
def test_what_cannot_be_folded_is_said_in_one_sentence(words: str) -> None:
    """A model whose first layer cannot take the scaling is refused, with the reason."""
    model = onnx.load_from_string(UNFOLDABLE[words]())
    pixels, prepare = picture_for(model)
    with pytest.raises(ConfigError, match=words):
        fold(model, lambda level: prepare(np.full_like(pixels, level)))


def picture_for(model: onnx.ModelProto) -> tuple[Array, Callable[[Array], Array]]:
    """One random picture for the model's input, and how its pixels are scaled, channels first or last."""
    kind = model.graph.input[0].type.tensor_type
    shape = [1, *(dimension.dim_value for dimension in kind.shape.dim[1:])]
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    per_channel = (3, 1, 1) if shape[1] == 3 else (3,)

    def prepare(values: Array) -> Array:
        if kind.elem_type == TensorProto.UINT8:
            return values
        scaled = values.astype(np.float32) * np.float32(1 / 255)
        result: Array = (scaled - MEAN.reshape(per_channel)) / STD.reshape(per_channel)
        return result

    return pixels, prepare


def answer(model: onnx.ModelProto, value: Array) -> Array:
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = runtime.run(None, {"x": value})[0]
    return result


# mistakes


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--data", "nowhere"], 2, "--data: nowhere does not exist"),
        (["--data", "."], 2, "--data: . has 0 pictures"),
        (["--image", "{colour: gray}"], 2, "the nearest known key is color"),
        (["--image", "[1"], 2, "expected a mapping"),
        (["--image", "{color: gray, mean: [1, 2]}"], 2, "preprocess.image.mean: got 2 numbers"),
        (["--out", "no/such/folder/out.onnx"], 2, "--out: the folder"),
        (["--labels", "missing.txt"], 2, "--labels: missing.txt does not exist"),
        (["--kind", "fp16", "--fold-preprocess"], 2, "--fold-preprocess goes with --kind static"),
        (["--count", "1"], 2, "--count: expected a whole number from 2 on, got 1"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str],
    code: int,
    words: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each wrong argument ends the command with its code and a sentence that names it; nothing is written."""
    monkeypatch.chdir(tmp_path)
    defaults = ["--data", str(digits), "--out", "out.onnx", "--image", "{color: gray}"]
    assert cli.main(["quantize", str(DEMO / "digits.onnx"), *defaults, *options]) == code
    *_, sentence = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("streaminfer: ")
    assert words in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_cannot_start(digits: Path, tmp_path: Path) -> None:
    """A missing model is exit 3, as everywhere."""
    arguments = ["--data", str(digits), "--out", str(tmp_path / "out.onnx")]
    assert cli.main(["quantize", str(tmp_path / "missing.onnx"), *arguments]) == 3


def test_a_picture_that_is_none_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be decoded ends the command with its name."""
    (pictures / "broken.png").write_bytes(b"not a picture")
    model = models.write(tmp_path, network())
    arguments = ["--data", str(pictures), "--out", str(tmp_path / "out.onnx")]
    assert cli.main(["quantize", str(model), *arguments]) == 2
    assert "broken.png cannot be decoded" in capsys.readouterr().err


def test_the_worker_does_not_import_onnx() -> None:
    """Only the command itself needs the onnx package, not even its --help."""
    script = (
        "import sys; from worker.cli import main; import worker.model.session, worker.cli.check;"
        "main.main(['quantize', '--help']); sys.exit('onnx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
